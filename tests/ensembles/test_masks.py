"""Ensembles of segmenters against loops over members and pixels."""

import numpy as np
import pytest
import torch

from dlblocks.data import ArrayDataModule
from dlblocks.ensembles import Bagging, BaggingResult, DeepEnsemble, Voting
from dlblocks.ensembles._bootstrap import combine
from dlblocks.models import MLPClassifier, UNetSegmenter
from dlblocks.tasks import PredictionTable

SIZE, C = 10, 3
DRAW = torch.Generator().manual_seed(0)
MASKS = torch.randint(0, C, (30, SIZE, SIZE), generator=DRAW, dtype=torch.uint8)
IMAGES = MASKS[:, None] / 2 + 0.1 * torch.randn(30, 1, SIZE, SIZE, generator=DRAW)
MASKS[:, 0] = 255


def model():
    return UNetSegmenter(1, C, width=2, depth=1, lr=0.02)


def data():
    return ArrayDataModule(IMAGES, MASKS, batch_size=8)


def settings(folder, **more):
    return {"run_dir": folder, "trainer": {"max_epochs": 2, "accelerator": "cpu"},
            "progress_bar": False, **more}  # fmt: skip


def slow_scores(target, guess):
    known = target != 255
    ious = []
    for c in range(C):
        t, p = (target == c) & known, (guess == c) & known
        if (t | p).any():
            ious.append((t & p).sum() / (t | p).sum())
    return np.mean(ious), (target == guess)[known].mean()


@pytest.fixture(scope="module")
def bagged(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bagging") / "run"
    return Bagging(model, data(), num_members=4, **settings(folder)).fit()


def test_each_pixel_gets_the_class_of_most_members_that_have_not_seen_it(bagged):
    oob, members = bagged.oob, bagged.model.net.members
    assert oob.prediction.dtype == np.uint8
    guesses, targets = [], []
    for i, row in enumerate(oob.index.tolist()):
        count = np.zeros((C, SIZE, SIZE), int)
        for member, seen in zip(members, bagged.samples, strict=True):
            if row not in seen:
                with torch.no_grad():
                    labels = member(IMAGES[row : row + 1]).argmax(1)[0].numpy()
                for y, x in np.ndindex(SIZE, SIZE):
                    count[labels[y, x], y, x] += 1
        assert oob.votes[i] == count[:, 0, 0].sum()
        if oob.votes[i]:
            assert (oob.prediction[i] == count.argmax(0)).mean() > 0.99  # but for rounding
            assert (oob.target[i] == MASKS[row].numpy()).all()
            guesses.append(oob.prediction[i])
            targets.append(MASKS[row].numpy())
        else:
            assert (oob.target[i] == 255).all()
    iou, accuracy = slow_scores(np.stack(targets), np.stack(guesses))
    assert bagged.oob_score["oob/iou"] == pytest.approx(iou)
    assert bagged.oob_score["oob/accuracy"] == pytest.approx(accuracy)
    assert (bagged.run_dir / "figures" / "worst.png").is_file()


def test_the_result_loads_again(bagged):
    again = BaggingResult.load(bagged.run_dir)
    assert again.oob_score == bagged.oob_score
    np.testing.assert_array_equal(again.oob.prediction, bagged.oob.prediction)
    torch.testing.assert_close(again.model(IMAGES[:2]), bagged.model(IMAGES[:2]))
    assert again.oob.worst(3).index.tolist() == bagged.oob.worst(3).index.tolist()


def test_both_engines_draw_and_vote_alike(bagged, tmp_path):
    torch.manual_seed(0)
    other = Bagging(
        model, data(), num_members=4, engine="vectorized", figures=False, **settings(tmp_path)
    ).fit()
    for name, value in bagged.oob_score.items():
        assert other.oob_score[name] == pytest.approx(value, abs=0.02)


def test_votes_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    index, parts = np.array([1, 4, 5, 9]), []
    for size in (2, 3, 3, 2):
        rows = np.sort(rng.choice(index[:3], size, replace=False))
        target = np.broadcast_to(7 + rows[:, None, None], (size, 2, 3)).astype(np.uint8)
        guess = rng.integers(0, C, (size, 2, 3)).astype(np.uint8)
        parts.append(PredictionTable({"index": rows, "target": target, "prediction": guess}))
    found = combine(index, None, parts, voting="soft")
    for i, row in enumerate(index):
        each = [part.prediction[part.index == row][0] for part in parts if row in part.index]
        assert found.votes[i] == len(each)
        if each:
            for y, x in np.ndindex(2, 3):
                counts = np.bincount([labels[y, x] for labels in each], minlength=C)
                assert found.prediction[i, y, x] == counts.argmax()
            assert (found.target[i] == 7 + row).all()
        else:
            assert (found.target[i] == 255).all()


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_voting_is_that_of_a_loop_over_pixels(bagged, voting, make_trainer):
    members = list(bagged.model.net.members)
    ensemble = Voting(members, voting=voting)
    module = data()
    (found,) = make_trainer().validate(ensemble, module, verbose=False)
    images, masks, _ = module.arrays("val")
    with torch.no_grad():
        each = np.stack([member(images).softmax(1).numpy() for member in members])
    shares = each.mean(0)
    if voting == "hard":
        shares = np.zeros_like(shares)
        for one in each:
            for n, y, x in np.ndindex(len(images), SIZE, SIZE):
                shares[n, one[n, :, y, x].argmax(), y, x] += 1 / len(members)
    with torch.no_grad():
        np.testing.assert_allclose(ensemble(images).softmax(1).numpy(), shares, atol=1e-5)
    iou, accuracy = slow_scores(masks.numpy(), shares.argmax(1))
    assert found["val/iou"] == pytest.approx(iou, rel=1e-4)
    assert found["val/accuracy"] == pytest.approx(accuracy, rel=1e-4)
    predicted = make_trainer().predict(ensemble, module)
    assert predicted[0]["std"].shape == predicted[0]["prediction"].shape


def test_deep_ensembles_have_nothing_out_of_the_bag(tmp_path):
    result = DeepEnsemble(model, data(), num_members=2, figures=False, **settings(tmp_path)).fit()
    assert result.oob is None
    assert result.oob_score == {}
    with pytest.raises(ValueError, match="they must have the same"):
        Voting([model(), UNetSegmenter(1, 2, width=2, depth=1)])
    with pytest.raises(ValueError, match="segmentation"):
        Voting([model(), MLPClassifier(4, 3)])
