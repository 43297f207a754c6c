"""Encoder-decoder models: nets, loss, greedy and beam search."""

import itertools
import math

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

import dlblocks
from dlblocks.callbacks import ExactResume
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, SequencePairsDataModule
from dlblocks.fields import Padded, Ragged
from dlblocks.models import RNNSeq2Seq, Seq2Seq, TransformerSeq2Seq
from dlblocks.nets import CrossAttention, Seq2SeqTransformer
from dlblocks.nets.seq2seq import shifted
from dlblocks.tasks import Seq2SeqTask, edit_distances

SOURCES, TARGETS = 9, 5  # tokens
SETTINGS = {
    "rotary": {"num_kv_heads": 1},
    "learned": {"positions": "learned", "context": 12, "norm": "rms", "pre_norm": False},
}


def transformer(seed=0, **kwargs):
    torch.manual_seed(seed)
    sizes = {"width": 16, "depth": 2, "num_heads": 2}
    model = TransformerSeq2Seq(SOURCES, TARGETS, **sizes, **kwargs)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def lstm(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = RNNSeq2Seq(SOURCES, TARGETS, width=8, hidden=6, num_layers=2, **kwargs)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


MODELS = [*({"make": transformer, **s} for s in SETTINGS.values()), {"make": lstm}]


@pytest.fixture(params=range(3), ids=[*SETTINGS, "lstm"])
def model(request):
    kwargs = dict(MODELS[request.param])
    return kwargs.pop("make")(**kwargs)


def trainer(path, **kwargs):
    return pl.Trainer(
        **{"max_epochs": 1, "logger": False, "accelerator": "cpu", "enable_progress_bar": False,
           "enable_checkpointing": False, "enable_model_summary": False,
           "default_root_dir": path, **kwargs}
    )  # fmt: skip


def rows(n, high, longest, seed):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(2, high, rng.integers(1, longest + 1))) for _ in range(n)]


def arrays(n=24, **kwargs):
    sources, targets = Ragged.of(rows(n, SOURCES, 7, 0)), Ragged.of(rows(n, TARGETS, 5, 1))
    kinds = {"input_kind": "tokens", "target_kind": "tokens"}
    return ArrayDataModule(sources, targets, **kinds, val_fraction=0.25, **kwargs)


BATCH = Padded.of(rows(4, SOURCES, 7, 2)), Padded.of(rows(4, TARGETS, 5, 3))


# Nets


def test_cross_attention_equals_torch():
    torch.manual_seed(0)
    ours = CrossAttention(8, 2)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        bias = torch.cat([ours.query.bias, ours.key_value.bias])
        theirs.in_proj_bias.copy_(bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    found = ours(x, ours.keys_and_values(memory), mask[:, None, None])
    expected, _ = theirs(x, memory, memory, key_padding_mask=~mask)
    torch.testing.assert_close(found, expected)


def test_a_token_depends_on_the_source_and_on_earlier_tokens_alone(model):
    embedded = []
    model.net.embedding.register_forward_hook(lambda m, i, out: embedded.append(out))
    model.net.source_embedding.register_forward_hook(lambda m, i, out: embedded.append(out))
    for place in range(4):
        embedded.clear()
        logits = model.net(torch.tensor([[2, 3, 4]]), torch.tensor([[1, 2, 3, 4]]))
        by_ids = {part.shape[1]: part for part in embedded}
        target, source = torch.autograd.grad(
            logits[0, place].square().sum(), [by_ids[4], by_ids[3]]
        )
        assert (target[0, place + 1 :] == 0).all()
        assert (target[0, : place + 1].abs().sum(1) > 0).all()
        assert (source[0].abs().sum(1) > 0).all()


def test_a_padded_batch_equals_its_pairs_one_by_one(model):
    sources, targets = BATCH
    logits = model(sources, targets)
    loss = model.loss(logits, targets) * model.task.counted(targets).sum()
    loss.backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for i, (s, t) in enumerate(zip(sources.sequences(), targets.sequences(), strict=True)):
        alone = model(s[None], t[None])
        torch.testing.assert_close(logits[i, : len(t) + 1], alone[0], atol=1e-5, rtol=1e-4)
        (model.loss(alone, t[None]) * (len(t) + 1)).backward()
    for one, p in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, atol=1e-4, rtol=1e-3)


def test_a_source_without_tokens_is_no_nan():
    model = transformer()
    logits = model(Padded(torch.zeros(2, 3).long(), torch.tensor([0, 3])), torch.tensor([[2], [3]]))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_steps_with_a_cache_equal_the_whole_computation(model):
    sources, targets = BATCH
    tokens, _ = shifted(targets, 1)
    expected = model.net(sources, tokens)
    for _ in range(2):  # a second call too
        state = model.net.start(sources, tokens.shape[1])
        found = [model.net.step(tokens[:, t], state) for t in range(tokens.shape[1])]
        torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-5, rtol=1e-4)


def test_attention_maps_are_those_to_the_source():
    maps = transformer().net.attention_maps(BATCH[0], torch.ones(4, 3).long())
    assert [m.shape for m in maps] == [(4, 2, 3, BATCH[0].values.shape[1])] * 2
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(4, 2, 3))
        assert (each.transpose(1, 3)[~BATCH[0].mask] == 0).all()


# Loss


def test_loss_is_the_mean_over_tokens_and_ends_in_numpy(model):
    sources, targets = BATCH
    logits = model(sources, targets).detach()
    losses = []
    for row, target in zip(logits, targets.sequences(), strict=True):
        chances = log_softmax(row.numpy(), 1)
        losses.append([-chances[i, t] for i, t in enumerate([*target.tolist(), 1])])
    total = [sum(each) for each in losses]
    count = sum(map(len, losses))
    assert model.loss(logits, targets).item() == pytest.approx(sum(total) / count, rel=1e-5)
    weights = torch.rand(4)
    expected = (np.array(total) * weights.numpy()).sum() / count
    found = model.task.loss(logits, targets, weights)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_untrained_models_score_log_v():
    for make in (TransformerSeq2Seq, RNNSeq2Seq):
        torch.manual_seed(0)
        model = make(50, 50)
        sources, targets = torch.randint(2, 50, (8, 20)), torch.randint(2, 50, (8, 20))
        loss = model.loss(model(sources, targets), targets).item()
        assert loss == pytest.approx(math.log(50), rel=0.02)


@pytest.mark.parametrize("make", [transformer, lstm])
def test_micro_batches_equal_one_batch(make, tmp_path):
    weights = []
    for size, accumulate in ((8, 1), (1, 8)):
        model, data = make(), arrays(batch_size=size)
        model.optimizer_name, model.lr = "sgd", 0.1
        fit = trainer(tmp_path, accumulate_grad_batches=accumulate, limit_val_batches=0)
        fit.fit(model, data)
        assert fit.global_step == 3
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-4)


def slow_distance(a, b):
    table = [[i + j if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        table[i][j] = min(
            table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
        )
    return table[-1][-1]


def test_edit_distances_equal_a_slow_loop():
    rng = np.random.default_rng(0)
    pairs = [
        [torch.from_numpy(rng.integers(0, 4, rng.integers(0, 9))) for _ in range(2)]
        for _ in range(60)
    ]
    found = edit_distances(*(Padded.of(side) for side in zip(*pairs, strict=True)))
    assert found.tolist() == [slow_distance(a.tolist(), b.tolist()) for a, b in pairs]


def test_metrics_are_totals_over_the_data_set(tmp_path):
    model, data = transformer(), arrays(batch_size=4)
    found = trainer(tmp_path).validate(model, data, verbose=False)[0]
    sources, targets, _ = data.arrays("val")
    said = model.generate([row.tolist() for row in sources.sequences()])
    pairs = list(zip(said, [t.tolist() for t in targets.sequences()], strict=True))
    errors = [slow_distance(a, b) for a, b in pairs]
    assert found["val/error_rate"] == pytest.approx(sum(errors) / sum(len(b) for _, b in pairs))
    assert found["val/sequence_accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    logits = model(sources, targets)
    right = [
        (row[: len(t) + 1].argmax(1) == torch.tensor([*t, 1])).sum().item()
        for row, (_, t) in zip(logits, pairs, strict=True)
    ]
    count = sum(len(t) + 1 for _, t in pairs)
    assert found["val/token_accuracy"] == pytest.approx(sum(right) / count)
    assert found["val/loss"] == pytest.approx(model.loss(logits, targets).item(), rel=1e-5)


def predict_and_validate(devices):
    model, data = transformer(), arrays(batch_size=2)
    strategy = {"strategy": "ddp", "devices": 2} if devices > 1 else {}
    model.optimizer_name, model.lr = "sgd", 0.1
    data.batch_size = 8 // devices
    fit = trainer(".", limit_train_batches=2, **strategy)
    fit.fit(model, data)
    (found,) = fit.validate(model, data, verbose=False)
    if fit.is_global_zero:
        torch.save(found, f"{devices}.pt")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forked.run(predict_and_validate, 1)
    forked.torchrun(predict_and_validate, 2)
    one, two = (torch.load(f"{n}.pt") for n in (1, 2))
    assert one == {name: pytest.approx(value, abs=1e-5) for name, value in two.items()}


# Search


def score_of(model, source, tokens, alpha):
    """Log-probability of a target with its end, by the whole net, divided by length ** alpha."""
    target = torch.tensor([tokens], dtype=torch.int64)
    with torch.no_grad():
        chances = model(torch.tensor([source]), target)[0].double().log_softmax(1)
    labels = [*tokens, 1]
    return sum(chances[i, t].item() for i, t in enumerate(labels)) / len(labels) ** alpha


def test_enough_beams_equal_exhaustive_search():
    choices, source = [0, 2, 3, 4], [3, 4, 2]  # token 1 is the end
    targets = [list(t) for n in range(4) for t in itertools.product(choices, repeat=n)]
    lengths = np.array([len(t) + 1 for t in targets])
    for seed in range(3):
        model = transformer(seed=seed)
        with torch.no_grad():
            padded = Padded.of([torch.tensor(t, dtype=torch.int64) for t in targets])
            logits = model(torch.tensor([source] * len(targets)), padded)
        chances = logits.double().log_softmax(2)
        totals = np.array(
            [
                sum(chances[i, j, t] for j, t in enumerate([*row, 1]))
                for i, row in enumerate(targets)
            ]
        )
        best = set()
        for alpha in (0.0, 0.6, 1.0, 2.0, -0.5):
            scores = totals / lengths**alpha
            (found,), (score,) = model.generate(
                [source], 3, num_beams=64, length_penalty=alpha, return_scores=True
            )
            assert found == targets[scores.argmax()]
            assert score == pytest.approx(scores.max(), abs=1e-5)
            best.add(tuple(found))
    assert len(best) > 1  # the penalty matters


def slow_beams(model, source, most, beams, alpha):
    live, best = [([], 0.0)], (-math.inf, None)
    for _ in range(most + 1):
        new = []
        for tokens, total in live:
            with torch.no_grad():
                logits = model.net(torch.tensor([source]), torch.tensor([[1, *tokens]]))[0, -1]
            chances = logits.double().log_softmax(0).tolist()
            ended = (total + chances[1]) / (len(tokens) + 1) ** alpha
            best = max(best, (ended, tokens))
            new += [([*tokens, t], total + chances[t]) for t in (0, 2, 3, 4)]
        live = sorted(new, key=lambda each: -each[1])[:beams]
    return best[1]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beams", [2, 3])
def test_beams_equal_a_slow_loop_that_never_stops_early(model, beams, alpha):
    sources = [row.tolist() for row in BATCH[0].sequences()]
    found = model.generate(sources, 4, num_beams=beams, length_penalty=alpha)
    assert found == [slow_beams(model, source, 4, beams, alpha) for source in sources]


def test_greedy_search_equals_a_loop_over_the_net(model):
    source, tokens = [5, 2, 3], []
    for _ in range(6):
        token = int(model.net(torch.tensor([source]), torch.tensor([[1, *tokens]]))[0, -1].argmax())
        if token == 1:
            break
        tokens.append(token)
    found, (score,) = model.generate([source], 6, return_scores=True)
    assert found == [tokens]
    if len(tokens) < 6:
        assert score == pytest.approx(score_of(model, source, tokens, 1.0), abs=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("kind", "seed", "scale"), [(0, 2, 2), (1, 3, 2), (2, 0, 1)])
def test_batched_cached_and_full_search_agree(kind, seed, scale, beams):
    """Seeds and scales of the end's logit with which targets end at different steps."""
    kwargs = dict(MODELS[kind])
    model = kwargs.pop("make")(seed, **kwargs)
    with torch.no_grad():
        model.net.embedding.weight[1] *= scale
    sources = [row.tolist() for row in rows(12, SOURCES, 7, 5)]
    found, scores = model.generate(sources, 8, num_beams=beams, return_scores=True)
    assert model.generate(sources, 8, num_beams=beams) == found
    full, others = model.generate(sources, 8, num_beams=beams, use_cache=False, return_scores=True)
    assert full == found
    np.testing.assert_allclose(others, scores, atol=1e-5)
    for source, one in zip(sources, found, strict=True):
        assert model.generate([source], 8, num_beams=beams) == [one]
    assert model.generate(sources[::-1], 8, num_beams=beams) == found[::-1]
    assert len({len(one) for one in found}) > 1


def test_a_long_target_wins_by_its_mean():
    """A search that stops at the first complete target would miss it."""

    class Net(nn.Module):
        def forward(self, sources, tokens):
            # The end has 0.4 at once; after token 2 all is certain up to the end after four.
            chances = torch.full((*tokens.shape, 3), 1e-9)
            chances[..., 2] = 1
            steps = torch.arange(tokens.shape[1])
            chances[:, steps == 0, 1], chances[:, steps == 0, 2] = 0.6, 0.4
            chances[:, steps == 4, 1] = 1e9
            return (chances / chances.sum(-1, keepdim=True)).log()

    model = Seq2Seq(Net(), 3)
    assert model.generate([[1]], 6, num_beams=2, length_penalty=1.0) == [[2, 2, 2, 2]]
    assert model.generate([[1]], 6, num_beams=2, length_penalty=0.0) == [[]]
    assert model.generate([[1]], 6, num_beams=1) == [[]]


def test_search_leaves_state_and_mode_alone():
    model = transformer(dropout=0.5).train()
    model.net.encoder.eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    found = model.generate([[3, 4]], 5, num_beams=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert model.generate([[3, 4]], 5, num_beams=2) == found


def test_no_source_and_no_new_token():
    model = transformer()
    assert model.generate([]) == []
    assert model.generate([[2]], 0) == model.generate([[2]], 0, num_beams=3) == [[]]


# Bad input


@pytest.mark.parametrize(
    ("sources", "kwargs", "message"),
    [
        (
            [[2], [SOURCES]],
            {},
            rf"sources\[1\] has token {SOURCES} in row 0, position 0, but source",
        ),
        ([[2], []], {}, r"sources\[1\] has shape \(0,\)"),
        ([[2.5]], {}, "tokens are whole numbers"),
        ([[2] * 13], {}, "13 tokens, more than context=12"),
        (["ab"], {}, "has no vocabulary, because it was not fitted on a SequencePairsDataModule"),
        ([[2]], {"num_beams": 0}, "num_beams=0"),
        ([[2]], {"num_beams": 2.5}, "num_beams=2.5 must be a whole number"),
        ([[2]], {"length_penalty": math.nan}, "length_penalty=nan must be a finite number"),
        ([2, 3], {}, "give a list of sequences"),
        ([[2]], {"max_new_tokens": 1.5}, "max_new_tokens=1.5 must be a whole number"),
    ],
)
def test_odd_sources_are_named(sources, kwargs, message):
    with pytest.raises(ValueError, match=message):
        transformer(**SETTINGS["learned"]).generate(sources, **kwargs)


def test_odd_data_are_named_before_training(tmp_path):
    def fit(sources, targets, model=None):
        kinds = {"input_kind": "tokens", "target_kind": "tokens"}
        data = ArrayDataModule(Ragged.of(sources), Ragged.of(targets), **kinds, val_fraction=0.25)
        trainer(tmp_path).fit(model or transformer(), data)

    sources, targets = rows(8, SOURCES, 7, 0), rows(8, TARGETS, 5, 1)
    with pytest.raises(
        ValueError, match=r"inputs has token 9 in row 1, position 0, but source_voc"
    ):
        fit([sources[0], torch.tensor([9]), *sources[2:]], targets)
    with pytest.raises(ValueError, match="targets has token 5 in row 2, position 1"):
        fit(sources, [*targets[:2], torch.tensor([2, 5]), *targets[3:]])
    with pytest.raises(ValueError, match="targets has token 1, the separator"):
        fit(sources, [*targets[:2], torch.tensor([2, 1]), *targets[3:]])
    with pytest.raises(
        ValueError, match="targets has 12 tokens in row 7, and one before them, more"
    ):
        fit(sources, [*targets[:7], torch.full((12,), 2)], transformer(**SETTINGS["learned"]))
    with pytest.raises(ValueError, match="inputs has length 0 in row 0"):
        fit([sources[0][:0], *sources[1:]], targets)
    classes = ArrayDataModule(Ragged.of(sources), np.arange(8) % 2, input_kind="tokens")
    with pytest.raises(ValueError, match=r"needs tokens .* of kind 'class'"):
        trainer(tmp_path).fit(transformer(), classes)
    loader = torch.utils.data.DataLoader([(torch.zeros(3), torch.tensor([2]))])
    with pytest.raises(ValueError, match="expects tokens as inputs, Padded or integers"):
        trainer(tmp_path).fit(transformer(), loader, loader)


def test_loaders_of_the_user(tmp_path):
    """Sequences of one length are plain tensors."""
    pairs = [(torch.tensor([2, 3, i % 9]), torch.tensor([2, i % 3 + 2])) for i in range(8)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    model = transformer()
    made = trainer(tmp_path)
    made.fit(model, loader, loader)
    assert torch.isfinite(made.callback_metrics["val/error_rate"])
    found = made.predict(model, loader)
    assert [len(batch["prediction"]) for batch in found] == [4, 4]


class PlainNet(nn.Module):
    """A net of the user, which takes integers (N, S) alone."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(9, 8), nn.Embedding(9, 8)
        self.out = nn.Linear(8, 9)

    def forward(self, inputs, tokens):
        mean = self.source(inputs).mean(1, keepdim=True)
        return self.out(self.target(tokens).cumsum(1) + 10 * mean)


def test_a_net_of_the_user_gets_the_sources_in_the_form_of_the_batches(tmp_path):
    torch.manual_seed(0)
    pairs = [(torch.tensor([2, 3, i % 9]), torch.tensor([2, i % 3 + 2])) for i in range(8)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    model = Seq2Seq(PlainNet(), 9, max_new_tokens=4)
    trainer(tmp_path).fit(model, loader, loader)
    sources = [[2, 3], [4], [8, 6], [5, 7, 7], [3]]  # padding would change the mean
    for beams in (1, 3):
        found = model.generate(sources, num_beams=beams, length_penalty=2.0, return_scores=True)
        alone = [
            model.generate([each], num_beams=beams, length_penalty=2.0, return_scores=True)
            for each in sources
        ]
        assert found[0] == [tokens[0] for tokens, _ in alone]
        assert found[1] == pytest.approx([scores[0] for _, scores in alone])


def test_padded_batches_of_the_user_are_checked(tmp_path):
    """Padding behind a target would be taken for 0 without a word."""
    values, lengths = torch.full((2, 3), 4), torch.tensor([3, 3])

    def fit(source_lengths, target_lengths):
        batch = [Padded(values, source_lengths), Padded(values, target_lengths)]
        loader = torch.utils.data.DataLoader([batch], batch_size=None)
        trainer(tmp_path).fit(transformer(), loader, loader)

    fit(lengths, lengths)
    with pytest.raises(ValueError, match="inputs has length 2 in row 1, but step 2 is not 0"):
        fit(torch.tensor([3, 2]), lengths)
    with pytest.raises(ValueError, match="targets has length 2 in row 1, but step 2 is not 0"):
        fit(lengths, torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="targets has length 4 in row 0, but its values have 3"):
        fit(lengths, torch.tensor([4, 3]))


def test_targets_without_tokens_have_no_error_rate():
    empty, some = np.zeros((2, 0), np.int64), np.full((2, 1), 3)
    rates = Seq2SeqTask.weighted_metrics(empty, some)
    assert np.isnan(rates["error_rate"](np.ones(2)))
    rates = Seq2SeqTask.weighted_metrics(np.full((2, 1), 4), some)
    assert rates["error_rate"](np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(
        [1, np.nan], nan_ok=True
    )


# Around


WORDS = [("".join(p), " ".join("xyz"["abc".index(c)] for c in p)) for n in (1, 2, 3)
         for p in itertools.product("abc", repeat=n)]  # fmt: skip


def pairs(**kwargs):
    return SequencePairsDataModule(WORDS, target_level="word", batch_size=8, **kwargs)


def small(data, **kwargs):
    return TransformerSeq2Seq(
        data.source_vocab_size, data.target_vocab_size, width=16, depth=1, num_heads=2,
        optimizer="adamw", lr=0.01, **kwargs,
    )  # fmt: skip


def test_cross_validation_and_its_refit_predict_texts(tmp_path):
    import pandas as pd

    data = pairs()
    result = cross_validate(
        lambda: small(data), data, num_folds=2, trainer={"max_epochs": 1, "accelerator": "cpu"},
        select="last", logger="none", run_dir=tmp_path / "run", progress_bar=False,
    )  # fmt: skip
    table = result.oof
    assert sorted(table.index.tolist()) == list(range(len(WORDS)))
    texts = data.texts(table)
    assert list(texts["source"]) == [source for source, _ in WORDS]
    assert list(texts["target"]) == [target for _, target in WORDS]
    split = [[t.split() for t in texts[name]] for name in ("prediction", "target")]
    distances = [slow_distance(a, b) for a, b in zip(*split, strict=True)]
    assert list(texts["errors"]) == distances
    expected = sum(distances) / sum(map(len, split[1]))
    assert result.pooled()["error_rate"] == pytest.approx(expected)
    assert len(result.worst(3)) == 3
    assert (tmp_path / "run" / "figures" / "lengths.png").is_file()
    with pytest.raises(ValueError, match="no average; use the model of one fold"):
        result.ensemble()
    refit = result.refit()
    predictor = dlblocks.load(tmp_path / "run")
    pd.DataFrame({"source": ["ab", "nan", "cab"]}).to_csv(tmp_path / "new.csv", index=False)
    found = predictor.predict(str(tmp_path / "new.csv"), progress_bar=False)
    found.to_csv(tmp_path / "out.csv")
    again = pd.read_csv(tmp_path / "out.csv", dtype=str, na_filter=False)
    assert list(again) == ["source", "prediction"]
    assert list(again["source"]) == ["ab", "nan", "cab"]
    said = predictor.model.generate(["ab", "cab"])
    assert [again["prediction"][i] for i in (0, 2)] == said
    assert refit is not None
    with pytest.raises(
        ValueError, match=r"sources\[1\] has 'd', first at position 1, which the tr"
    ):
        predictor.model.generate(["a", "cd"])


def test_export_is_refused(tmp_path):
    example = Padded.of([torch.tensor([2, 3])])
    with pytest.raises(ValueError, match="a search for sequences cannot be exported"):
        dlblocks.load(transformer()).export(tmp_path / "model.pt2", example=example)


def test_resume_is_exact(tmp_path):
    def fit(path, epochs, ckpt=None):
        data = pairs()
        torch.manual_seed(0)
        model = small(data, dropout=0.2)
        pl.seed_everything(0, verbose=False)
        made = trainer(
            path, max_epochs=epochs, enable_checkpointing=True, callbacks=[ExactResume(path)]
        )
        made.fit(model, data, ckpt_path=ckpt, weights_only=True)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    whole = fit(tmp_path / "a", 2)
    fit(tmp_path / "b", 1)
    assert torch.equal(fit(tmp_path / "b", 2, tmp_path / "b" / "last.ckpt"), whole)


def test_bf16(tmp_path):
    model = transformer(num_beams=2)
    fit = trainer(tmp_path, precision="bf16-mixed")
    fit.fit(model, arrays(batch_size=8))
    assert torch.isfinite(fit.callback_metrics["val/error_rate"])
    assert len(transformer().bfloat16().generate([[2, 3]], num_beams=2)) == 1


def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    net = Seq2SeqTransformer(SOURCES, TARGETS, width=8, depth=1, num_heads=2)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    tokens, _ = shifted(BATCH[1], 1)
    torch.testing.assert_close(compiled(BATCH[0], tokens), net(BATCH[0], tokens))
