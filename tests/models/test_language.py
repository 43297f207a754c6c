"""Language models: loss, tied weights, generation."""

import copy
import math

import forked
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional as F

import dlblocks
from dlblocks.callbacks import ExactResume
from dlblocks.data import ArrayDataModule, TextDataModule
from dlblocks.models import GPTLanguageModel, LanguageModel, RNNLanguageModel
from dlblocks.models._token_sampling import Sampling, _generators
from dlblocks.nets import GPT, LSTMDecoder
from dlblocks.tasks import LanguageModelTask, PredictionTable

SIZE = 11
SETTINGS = {
    "rotary": {"positions": "rotary", "num_kv_heads": 1},
    "learned": {"positions": "learned", "norm": "rms", "activation": "swiglu"},
}


def gpt(seed=0, context=10, **kwargs):
    torch.manual_seed(seed)
    model = GPTLanguageModel(SIZE, width=16, depth=2, num_heads=2, context=context, **kwargs)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def lstm(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = RNNLanguageModel(SIZE, width=8, hidden=12, num_layers=2, **kwargs)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


MODELS = [*({"make": gpt, **s} for s in SETTINGS.values()), {"make": lstm}]


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


def tokens_of(n=24, t=6, seed=0):
    """Tokens with rows of unequal numbers of targets that count."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZE, (n, t + 1))
    targets = tokens[:, 1:].copy()
    for row, length in zip(targets, rng.integers(1, t + 1, n), strict=True):
        row[length:] = -1
    return tokens[:, :-1], targets


def arrays(**kwargs):
    return ArrayDataModule(
        *tokens_of(), input_kind="tokens", target_kind="tokens", val_fraction=0.25, **kwargs
    )


# Loss and metrics


def test_loss_is_the_mean_over_tokens_in_numpy():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6, SIZE), torch.from_numpy(tokens_of(4)[1])
    weights = torch.rand(4)
    task = LanguageModelTask(SIZE)
    losses = [
        [-log_softmax(row.numpy())[t] if t >= 0 else 0.0 for row, t in zip(a, b, strict=True)]
        for a, b in zip(logits, targets.tolist(), strict=True)
    ]
    count = (targets >= 0).sum().item()
    assert task.loss(logits, targets).item() == pytest.approx(np.sum(losses) / count, rel=1e-5)
    expected = (np.sum(losses, 1) * weights.numpy()).sum() / count
    assert task.loss(logits, targets, weights).item() == pytest.approx(expected, rel=1e-5)


def test_no_token_that_counts_is_a_loss_of_zero():
    logits = torch.randn(2, 3, SIZE, requires_grad=True)
    loss = LanguageModelTask(SIZE).loss(logits, torch.full((2, 3), -1))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_untrained_models_score_log_v_and_not_zero_on_a_copy():
    for net in (GPT(50, width=16, depth=2, num_heads=2, context=64), LSTMDecoder(50)):
        torch.manual_seed(0)
        tokens = torch.randint(50, (8, 65))
        task = LanguageModelTask(50)
        loss = task.loss(net(tokens[:, :-1]), tokens[:, 1:]).item()
        assert loss == pytest.approx(math.log(50), rel=0.02)
        # targets that are the inputs themselves would be a mistake of the shift
        copied = task.loss(net(tokens[:, :-1]), tokens[:, :-1]).item()
        assert copied > 1


def test_metrics_equal_sums_over_all_tokens(tmp_path):
    model, data = gpt(), arrays(batch_size=5)
    found = trainer(tmp_path).validate(model, data, verbose=False)[0]
    inputs, targets, _ = data.arrays("val")
    with torch.no_grad():
        losses = F.cross_entropy(
            model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        right = (model(inputs).argmax(2) == targets)[targets >= 0].float().mean()
    mean = losses.sum().item() / (targets >= 0).sum().item()
    assert found["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert found["val/bits_per_token"] == pytest.approx(mean / math.log(2), rel=1e-5)
    assert found["val/accuracy"] == pytest.approx(right.item())
    assert "val/bits_per_character" not in found  # nobody has said what a token is


def test_tables_of_predictions_hold_no_logits():
    task = LanguageModelTask(SIZE)
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6, SIZE), torch.from_numpy(tokens_of(4)[1])
    chances = task.predict(logits, targets)
    full = task.predict(logits)
    assert chances.shape == (4, 6) and full.shape == (4, 6, SIZE)
    kept, same = task.keep(chances, targets), task.keep(full, targets)
    for name, column in kept.items():
        assert column.numel() <= 24
        torch.testing.assert_close(column, same[name], msg=name)
    table = PredictionTable({k: v.numpy() for k, v in kept.items()}, task="language_model")
    expected = task.loss(logits, targets).item() / math.log(2)
    assert table.score()["bits_per_token"] == pytest.approx(expected, rel=1e-5)
    weighted = task.weighted_metrics(table.target, table.prediction)
    ones = weighted["bits_per_token"](np.ones((2, 4)))
    np.testing.assert_allclose(ones, expected, rtol=1e-5)
    assert task.average(logits[None]).argmax(-1).equal(logits.argmax(-1))


@pytest.mark.parametrize("make", [gpt, lstm])
def test_micro_batches_equal_one_batch(make, tmp_path):
    weights = []
    for size, accumulate in ((8, 1), (1, 8), (2, 4)):
        model, data = make(), arrays(batch_size=size)
        model.optimizer_name, model.lr = "sgd", 0.1
        fit = trainer(tmp_path, accumulate_grad_batches=accumulate, limit_val_batches=0)
        fit.fit(model, data)
        assert fit.global_step == 3  # 18 samples: the last window is not full
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights[2], weights[0], atol=1e-5, rtol=1e-4)


def fit_on(devices):
    """Train on one device or two; batches of 8 are the same samples."""
    model, data = gpt(), arrays(batch_size=8 // devices)
    model.optimizer_name, model.lr = "sgd", 0.1
    strategy = {"strategy": "ddp", "devices": 2} if devices > 1 else {}
    fit = trainer(".", limit_train_batches=2, **strategy)
    fit.fit(model, data)
    (found,) = fit.validate(model, data, verbose=False)
    if fit.is_global_zero:
        weights = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.save({"weights": weights, **found}, f"{devices}.pt")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forked.run(fit_on, 1)
    forked.torchrun(fit_on, 2)
    one, two = (torch.load(f"{n}.pt") for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)


# Nets


@pytest.mark.parametrize("make", [gpt, lstm])
def test_tied_weights_stay_tied(make, tmp_path):
    model = make()
    names = [name for name, p in model.named_parameters() if p.shape == (SIZE, model.net.width)]
    assert names == ["net.embedding.weight"]
    model.save(tmp_path / "model.ckpt")
    inputs = torch.from_numpy(tokens_of()[0])
    loaded = dlblocks.load(tmp_path / "model.ckpt").model
    empty = make().to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assigned = make(seed=1)
    assigned.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    expected = model.eval()(inputs)
    for other in (loaded, empty, assigned, copy.deepcopy(model)):
        torch.testing.assert_close(other.eval()(inputs), expected)
        with torch.no_grad():  # both uses change
            other.net.embedding.weight.zero_()
        assert (other(inputs) == 0).all()


def test_untied_weights():
    model = gpt(tied=False)
    assert model.net.head.weight.shape == (SIZE, 16)
    with torch.no_grad():
        model.net.embedding.weight.zero_()
    assert model(torch.zeros(1, 2).long()).any()


def test_document_mask_equals_documents_alone():
    model = gpt(document_mask=True).eval()
    free = gpt().eval()
    tokens = torch.tensor([[1, 5, 6, 1, 7, 8, 9]])
    together = model(tokens)
    for part in (slice(0, 3), slice(3, 7)):
        torch.testing.assert_close(together[:, part], model(tokens[:, part]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(free(tokens)[:, 3:], together[:, 3:])


def test_lstm_with_lengths_equals_rows_alone():
    net = lstm().net.eval()
    tokens, lengths = torch.from_numpy(tokens_of(3)[0]), torch.tensor([6, 2, 4])
    found = net(tokens, lengths=lengths)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :n], net(tokens[row : row + 1, :n])[0])


# Generation


PROMPTS = [[1, 2, 3, 4, 5], [7], [2, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 3]]


@pytest.mark.parametrize("sampling", [{}, {"top_k": 3, "top_p": 0.9}])
def test_cached_batched_and_full_generation_agree(model, sampling):
    """17 tokens are beyond the window of 10, at different steps of each row."""
    arguments = {"max_new_tokens": 17, "seed": 3, **sampling}
    found = model.generate(PROMPTS, **arguments)
    assert [len(row) for row in found] == [17] * 4
    assert found == model.generate(PROMPTS, **arguments)  # a second call
    assert found == model.generate(PROMPTS, use_cache=False, **arguments)
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert model.generate([prompt], **arguments) == [row]
    assert found[::-1] == model.generate(PROMPTS[::-1], **arguments)


def test_greedy_generation_equals_a_loop_over_the_net(model):
    tokens, start, context = [1, 2, 3], 0, model.net.context
    for _ in range(14):
        if context and len(tokens) - start > context:
            start = len(tokens) - context // 2
        tokens.append(int(model.net.eval()(torch.tensor([tokens[start:]]))[0, -1].argmax()))
    assert model.generate([[1, 2, 3]], 14, temperature=0) == [tokens[3:]]


def test_equal_prompts_differ_and_the_first_is_that_alone():
    model = gpt()
    found = model.generate([[1, 2]] * 3, 20, seed=0)
    assert len({tuple(row) for row in found}) == 3
    assert model.generate([[1, 2]], 20, seed=0) == found[:1]
    assert (
        model.generate([[1, 2]] * 2, 20, seed=[5, 5])[0] == model.generate([[1, 2]], 20, seed=5)[0]
    )
    assert model.generate([[1, 2]], 20) != model.generate([[1, 2]], 20)


def test_different_prompts_get_different_random_numbers():
    prompts = [[2], [3], [2, 0], [2, 0, 0], [3, 2]]
    drawn = [g.initial_seed() for g in _generators(prompts, 5)]
    assert len(set(drawn)) == len(prompts)
    assert drawn[::-1] == [g.initial_seed() for g in _generators(prompts[::-1], 5)]


def test_generation_leaves_state_and_mode_alone():
    model = gpt(dropout=0.5).train()
    model.net.dropout_mode = model.net.transformer.blocks[0].eval()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    modes = [module.training for module in model.modules()]
    model.generate([[1]], 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert [module.training for module in model.modules()] == modes
    assert model.generate([[1]], 5, seed=0) == model.generate([[1]], 5, seed=0)


def test_top_k_with_ties_keeps_exactly_k():
    chances = Sampling(top_k=2).probabilities(torch.tensor([[1.0, 3.0, 3.0, 3.0], [0, 0, 0, 0]]))
    torch.testing.assert_close(chances, torch.tensor([[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]]).double())


def test_top_p_keeps_the_fewest_that_reach_it_and_one_at_least():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, kept in ((0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.94, 3), (1.0, 4)):
        found = Sampling(top_p=p).probabilities(logits)
        assert (found > 0).sum() == kept, p
        assert found.sum().item() == pytest.approx(1)


def test_temperature_zero_takes_the_first_of_the_likeliest():
    found = Sampling(temperature=0).probabilities(torch.tensor([[1.0, 5.0, 5.0]]))
    assert found.tolist() == [[0, 1, 0]]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().expand(40000, 4)
    uniform = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    drawn = Sampling(temperature=1.0).draw(logits, uniform)
    shares = torch.bincount(drawn, minlength=4) / 40000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.01, rtol=0)
    assert Sampling(top_k=1).draw(logits[:1], torch.tensor([1 - 1e-7])).item() == 0


def test_a_net_of_the_user_generates():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(SIZE, 8), nn.Linear(8, SIZE))
    model = LanguageModel(net, SIZE)
    found = model.generate([[1], [2, 3, 4]], 6, temperature=0)
    token, expected = 1, []
    for _ in range(6):
        token = int(net(torch.tensor([token])).argmax())
        expected.append(token)
    assert found[0] == expected


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"abc abd {'ab' * i} cd\n" * 3)
    data = TextDataModule(str(folder), block_size=8, repeats="keep", batch_size=4)
    torch.manual_seed(0)
    model = GPTLanguageModel(
        data.vocab_size + 5, width=16, depth=1, num_heads=2, context=8, lr=1e-2
    )
    trainer(folder, max_epochs=8).fit(model, data)
    return model, data


def test_texts_are_continued_by_characters_of_the_training(fitted):
    model, data = fitted
    found = model.generate(["ab", "", "abc abd"], 30, seed=0)
    assert len(found) == 3
    assert set("".join(found)) <= set(data.vocabulary.symbols)
    assert model.generate("ab", 30, seed=0) == found[0]
    assert model.generate([], 3) == []
    assert model.generate("ab", 0) == ""


def test_generation_ends_at_texts_and_at_the_end_of_a_document(fitted):
    model, _ = fitted
    full = model.generate("ab", 40, seed=1)
    stop = full[5:7]
    assert model.generate("ab", 40, seed=1, stop=stop) == full[: full.index(stop)]
    assert model.generate("ab", 40, seed=1, stop=["zzz", stop]) == full[: full.index(stop)]
    # the logits of the separator are the largest: nothing is written
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.net.embedding.weight.copy_(torch.zeros_like(sure.net.embedding.weight))
        sure.net.embedding.weight[1] = 10
        sure.net.transformer.norm.bias.fill_(1.0)
        sure.net.transformer.norm.weight.zero_()
    assert sure.generate("ab", 10, seed=0) == ""


@pytest.mark.parametrize(
    ("prompts", "kwargs", "message"),
    [
        ("aXb", {}, "prompt has 'X', first at position 1"),
        (["ab", "aQ"], {}, r"prompts\[1\] has 'Q'"),
        ([[]], {}, r"prompts\[0\] has shape \(0,\)"),
        ([[1, 99]], {}, r"prompts\[0\] has token 99 in row 0, position 1"),
        ("ab", {"temperature": -1}, "temperature=-1"),
        ("ab", {"top_k": 0}, "top_k=0"),
        ("ab", {"top_p": 0}, "top_p=0"),
        ("ab", {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ("ab", {"seed": [1, 2]}, "seed has 2 numbers for 1 prompts"),
        ([[1]], {"stop": "a"}, "stop='a' is a text, but prompts are tokens"),
    ],
)
def test_wrong_prompts(fitted, prompts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fitted[0].generate(prompts, **kwargs)


def test_wrong_tokens_are_named(tmp_path):
    with pytest.raises(ValueError, match="inputs has token 11 in row 1, position 2, but"):
        gpt()(torch.tensor([[0, 1, 2], [3, 4, 11]]))
    inputs, targets = tokens_of()
    targets[3, 0] = 12
    data = ArrayDataModule(inputs, targets, input_kind="tokens", target_kind="tokens")
    with pytest.raises(ValueError, match="targets has token 12 in row 3, position 0"):
        trainer(tmp_path).fit(gpt(), data)
    with pytest.raises(ValueError, match=r"has no vocabulary.*give tokens instead"):
        gpt().generate("text")
    with pytest.raises(ValueError, match="sequence of 11 tokens is longer than context=10"):
        gpt()(torch.zeros(1, 11).long())
    with pytest.raises(ValueError, match="num_heads=3 does not divide width=16"):
        GPTLanguageModel(SIZE, width=16, num_heads=3)
    classes = ArrayDataModule(inputs, np.arange(24) % 2, input_kind="tokens")
    with pytest.raises(ValueError, match=r"needs tokens .* of kind 'class'"):
        trainer(tmp_path).fit(gpt(), classes)


# Around


def test_resume_is_exact(tmp_path):
    def fit(path, epochs, ckpt=None):
        model = gpt(lr=1e-2, dropout=0.2)
        callbacks = [ExactResume(path)]
        pl.seed_everything(0, verbose=False)
        made = trainer(path, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
        made.fit(model, arrays(batch_size=5), ckpt_path=ckpt, weights_only=True)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    whole = fit(tmp_path / "a", 2)
    fit(tmp_path / "b", 1)
    assert torch.equal(fit(tmp_path / "b", 2, tmp_path / "b" / "last.ckpt"), whole)


def test_bf16(tmp_path):
    model = gpt()
    fit = trainer(tmp_path, precision="bf16-mixed")
    fit.fit(model, arrays(batch_size=5))
    assert torch.isfinite(fit.callback_metrics["val/loss"])
    assert model.net.embedding.weight.dtype == torch.float32
    half = gpt().bfloat16()
    assert len(half.generate([[1, 2]], 15, seed=0)[0]) == 15  # the cache has the dtype of the net


@pytest.mark.parametrize("make", [gpt, lstm])
def test_compiles_without_graph_breaks(make):
    net = make(**({"document_mask": True} if make is gpt else {})).net.eval()
    torch._dynamo.reset()
    inputs = torch.from_numpy(tokens_of(4)[0])
    with torch._dynamo.config.patch(allow_rnn=True):  # torch itself leaves its LSTM out
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(inputs), net(inputs))


def test_attention_maps_are_causal():
    maps = gpt().net.attention_maps(torch.from_numpy(tokens_of(2)[0]))
    assert [m.shape for m in maps] == [(2, 2, 6, 6)] * 2
    assert all((m.triu(1) == 0).all() for m in maps)


def test_a_document_mask_hides_earlier_documents_of_a_prompt():
    model = gpt(context=12, document_mask=True)
    for weight in model.parameters():
        torch.nn.init.normal_(
            weight, std=0.5, generator=torch.Generator().manual_seed(weight.numel())
        )
    prompts = [[1, 2, 3, 1, 4], [2, 2]]
    cached, full = (model.generate(prompts, 20, seed=3, use_cache=use) for use in (True, False))
    assert cached == full
    other = model.generate([[1, 3, 2, 1, 4]], 1, temperature=0)
    assert other == model.generate([prompts[0]], 1, temperature=0)


@pytest.mark.parametrize(
    ("prompts", "kwargs", "message"),
    [
        ([[2.0, 3.5]], {}, "tokens are whole numbers"),
        ([[2], "a"], {}, r"prompts\[1\] is a str"),
        ([[2]], {"seed": -1}, "seed=-1 must be a whole number"),
        ([[2]], {"seed": 1.5}, "seed=1.5 must be a whole number"),
        ([[2]], {"top_k": 2.5}, "top_k=2.5 must be a whole number"),
        ([[2]], {"max_new_tokens": 2.5}, "max_new_tokens=2.5 must be"),
        ([[2]], {"stop": ""}, "stop='' is in every text"),
    ],
)
def test_odd_arguments_of_generation(prompts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        gpt().generate(prompts, **{"max_new_tokens": 2, **kwargs})


def test_seeds_of_numpy_and_tiny_temperatures():
    model = gpt()
    assert model.generate([[2]], 5, seed=np.int64(3)) == model.generate([[2]], 5, seed=3)
    greedy = model.generate([[2, 3]], 5, temperature=0)
    assert model.generate([[2, 3]], 5, temperature=1e-320, seed=0) == greedy
