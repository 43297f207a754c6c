"""SAM against a loop written from Foret et al. 2021 and Kwon et al. 2021."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from dlblocks.callbacks import SAM, MixUp, sam_perturbation
from dlblocks.models import MLPClassifier

X = torch.randn(28, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(28) % 3
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 28, 4)]


def loader(collate=default_collate):
    return DataLoader(TensorDataset(X, Y), 4, collate_fn=collate)


def small_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


class Net(pl.LightningModule):
    def __init__(self, net=None):
        super().__init__()
        self.net = net or small_net()
        self.outputs = []

    def training_step(self, batch, batch_idx):
        x, y = batch.values() if isinstance(batch, dict) else batch
        return F.cross_entropy(self.net(x), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs.append(float(outputs["loss"]) if outputs else None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def papers_loop(net, *, rho, adaptive, window, clip, autocast):
    """Sums of gradients over each window of batches, and the two steps of the paper."""
    weights = list(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    momentum = [torch.zeros_like(w) for w in weights]

    def gradient(batches):
        total = [torch.zeros_like(w) for w in weights]
        for x, y in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(net(x.to(weights[0].dtype)), y) / window
            for t, g in zip(total, torch.autograd.grad(loss, weights), strict=True):
                t += g
        return total

    for first in range(0, len(BATCHES), window):
        batches = BATCHES[first : first + window]
        g = gradient(batches)
        scale = [
            w.detach().abs() + 0.01 if adaptive and name.endswith("weight") else torch.ones_like(w)
            for w, name in zip(weights, names, strict=True)
        ]
        norm = sum(float((t * a).square().sum()) for t, a in zip(scale, g, strict=True)) ** 0.5
        with torch.no_grad():
            clean = [w.clone() for w in weights]
            for w, t, a in zip(weights, scale, g, strict=True):
                w += rho * t * t * a / norm
        g = gradient(batches)
        norm = sum(float(a.square().sum()) for a in g) ** 0.5
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        with torch.no_grad():
            for w, before, m, a in zip(weights, clean, momentum, g, strict=True):
                m.mul_(0.9).add_(factor * a)
                w.copy_(before - 0.2 * m)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(
    ("clip", "precision"), [(None, "64-true"), (0.5, "64-true"), (None, "bf16-mixed")]
)
def test_step_is_the_papers_loop(adaptive, window, clip, precision, make_trainer):
    module, net = Net(), small_net()
    if precision == "64-true":
        net.double()
    papers_loop(
        net,
        rho=0.3,
        adaptive=adaptive,
        window=window,
        clip=clip,
        autocast=precision == "bf16-mixed",
    )
    make_trainer(
        callbacks=[SAM(0.3, adaptive=adaptive)],
        accumulate_grad_batches=window,
        gradient_clip_val=clip,
        precision=precision,
    ).fit(module, loader())
    tolerance = 1e-10 if precision == "64-true" else 1e-4
    for ours, theirs in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.to(theirs), theirs, rtol=tolerance, atol=tolerance)
    assert not vars(module).keys() & {"training_step", "optimizer_step", "log"}


def test_accumulation_is_the_large_batch(make_trainer):
    modules = []
    for size, window in ((4, 7), (28, 1)):
        module = Net()
        trainer = make_trainer(
            max_epochs=3, callbacks=[SAM(0.5)], accumulate_grad_batches=window, precision="64-true"
        )
        trainer.fit(module, DataLoader(TensorDataset(X.double(), Y), size))
        assert trainer.global_step == 3
        modules.append(module)
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def fit_in_half(scale, make_trainer, *callbacks):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    module = Net()
    before = copy.deepcopy(module.net)
    trainer = make_trainer(
        callbacks=list(callbacks), plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    trainer.fit(module, loader())
    return module, before, scaler


def test_scaled_half_precision(make_trainer):
    module, before, _ = fit_in_half(2.0**10, make_trainer, SAM(0.3))
    papers_loop(before, rho=0.3, adaptive=False, window=1, clip=None, autocast=False)
    for ours, theirs in zip(module.net.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01)
    plain, _, _ = fit_in_half(2.0**10, make_trainer)
    assert not torch.allclose(plain.net[0].weight, module.net[0].weight, atol=0.01)


def test_overflow_leaves_the_weights_as_they_were(make_trainer):
    module, before, scaler = fit_in_half(2.0**60, make_trainer, SAM(0.3))
    assert scaler.get_scale() == 2.0**53  # each of the seven steps overflowed
    for a, b in zip(module.net.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


class Passes(nn.Module):
    """Keeps what goes through it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return x


def test_both_passes_drop_the_same_units(make_trainer):
    ends = []
    for callbacks in ([SAM(1e-12)], []):
        net = nn.Sequential(Passes(), nn.Dropout(0.5), Passes(), nn.Linear(5, 3))
        torch.manual_seed(5)
        module = Net(net)
        make_trainer(callbacks=callbacks, accumulate_grad_batches=2).fit(module, loader())
        ends.append((torch.rand(()), net[0].seen, net[2].seen))
    (after, inputs, dropped), (after_plain, _, dropped_plain) = ends
    assert after == after_plain  # no more random numbers were used than without
    assert len(dropped) == 2 * len(dropped_plain) == 14
    for first in range(0, 12, 4):  # batches 0, 1, and both again
        assert torch.equal(dropped[first], dropped[first + 2])
        assert torch.equal(dropped[first + 1], dropped[first + 3])
        assert torch.equal(dropped[first], dropped_plain[first // 2])
        assert torch.equal(inputs[first + 1], inputs[first + 3])
    assert not torch.equal(dropped[0] == 0, dropped[1] == 0)


def test_a_batch_is_mixed_once(make_trainer):
    net = nn.Sequential(Passes(), nn.Linear(5, 3))
    make_trainer(callbacks=[MixUp(1.0, num_classes=3), SAM()]).fit(Net(net), loader())
    seen = net[0].seen
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(seen[0], BATCHES[0][0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_of_batch_norm_are_those_at_the_weights(momentum, make_trainer):
    net = nn.Sequential(nn.BatchNorm1d(5, momentum=momentum), nn.Linear(5, 3))
    expected = copy.deepcopy(net[0])
    for x, _ in BATCHES:
        expected(x)
    make_trainer(callbacks=[SAM(0.5)]).fit(Net(net), loader())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(net[0], name), getattr(expected, name))


class InPlace(torchmetrics.Metric):
    """Counts updates, in place, as many metrics of users do."""

    def __init__(self):
        super().__init__()
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self):
        self.count += 1

    def compute(self):
        return self.count


class Logs(Net):
    def __init__(self):
        super().__init__()
        self.updates = InPlace()
        metrics = {
            "accuracy": torchmetrics.Accuracy("multiclass", num_classes=3),
            "recall": torchmetrics.Recall("multiclass", num_classes=3),
            "auroc": torchmetrics.AUROC("multiclass", num_classes=3),  # its sums are a list
        }
        self.metrics = torchmetrics.MetricCollection(metrics)
        self.kept = []

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.kept.append((logits.detach().softmax(1), batch[1], loss.detach()))
        self.metrics(logits.softmax(1), batch[1])
        self.updates.update()
        self.log("updates", self.updates, on_epoch=True, on_step=False)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log_dict(self.metrics, on_epoch=True, on_step=False)
        return loss


def test_logs_metrics_and_outputs_are_those_of_the_first_pass(make_trainer):
    module = Logs()
    trainer = make_trainer(callbacks=[SAM(2.0)])
    trainer.fit(module, loader())
    first = module.kept[::2]
    assert len(module.kept) == 14
    losses = [float(loss) for _, _, loss in first]
    assert module.outputs == losses
    logged = trainer.callback_metrics
    assert float(logged["loss"]) == pytest.approx(sum(losses) / 7)
    assert float(logged["updates"]) == 7
    p, y = (torch.cat([step[i] for step in first]) for i in (0, 1))
    fresh = torchmetrics.MetricCollection(
        {name: metric.clone() for name, metric in module.metrics.items(copy_state=False)}
    )
    fresh.reset()
    for name, value in fresh(p, y).items():
        assert float(logged[name]) == pytest.approx(float(value)), name


def test_our_models_count_each_sample_once(make_trainer):
    def fit(*callbacks):
        torch.manual_seed(0)
        model = MLPClassifier(5, 3, hidden=[4], optimizer="sgd", lr=0.0)
        trainer = make_trainer(callbacks=list(callbacks))
        trainer.fit(model, loader(), loader())
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    # Learning rate 0: both passes of all steps are at the same two points.
    assert fit(SAM(5.0)) == fit()


def test_somebody_elses_module_and_data(make_trainer):
    module = BoringModel()
    make_trainer(max_epochs=2, callbacks=[SAM()]).fit(module, datamodule=BoringDataModule())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_containers(kind, make_trainer):
    def collate(samples):
        x, y = default_collate(samples)
        return (x, y) if kind == "tuple" else {"x": x, "y": y}

    modules = [Net(), Net()]
    for module, own in zip(modules, (collate, default_collate), strict=True):
        make_trainer(callbacks=[SAM()]).fit(module, loader(own))
    assert torch.equal(modules[0].net[0].weight, modules[1].net[0].weight)


def test_a_failing_second_pass_puts_the_weights_back(make_trainer):
    class Fails(Net):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == 2:
                assert not torch.equal(self.net[0].weight, self.clean)
                raise RuntimeError("on purpose")
            self.clean = self.net[0].weight.detach().clone()
            return super().training_step(batch, batch_idx)

    module = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(callbacks=[SAM(1.0)]).fit(module, loader())
    assert torch.equal(module.net[0].weight, module.clean)
    assert not vars(module).keys() & {"training_step", "optimizer_step", "log"}


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_batches_may_be_left_out(make_trainer):
    class Skips(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 2 else {"loss": loss, "more": 1}

    module = Skips()
    make_trainer(callbacks=[SAM()], accumulate_grad_batches=2).fit(module, loader())
    assert all(p.isfinite().all() for p in module.parameters())


def test_zero_gradients():
    (step,) = sam_perturbation([torch.ones(3)], [torch.zeros(3)], 0.1)
    assert torch.equal(step, torch.zeros(3))


def test_norm_of_half_precision_does_not_overflow():
    gradient = torch.full((100,), 300.0, dtype=torch.float16)
    (step,) = sam_perturbation([torch.ones_like(gradient)], [gradient], 1.0)
    torch.testing.assert_close(step.float(), torch.full((100,), 0.1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rho": 0}, "rho=0 is outside"), ({"rho": -1.0}, "rho=-1.0"), ({"eta": -1}, "eta=-1")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SAM(**arguments)


class ByLBFGS(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Iterates(Net):
    def training_step(self, dataloader_iter):
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore:You are using the .dataloader_iter. step flavor")
@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (ByLBFGS, [SAM()], "LBFGS"),
        (Manual, [SAM()], "automatic_optimization=False"),
        (Iterates, [SAM()], "dataloader_iter"),
        (Net, [SAM(), SAM()], "has SAM twice"),
    ],
)
def test_what_does_not_go_together(module, callbacks, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=callbacks).fit(module(), loader())


@pytest.mark.parametrize("scale", [0.0, 6e-8, 1.0])
def test_small_gradients_in_half_precision(scale):
    gradient = torch.tensor([3.0, 4.0]).mul(scale).half()
    (found,) = sam_perturbation([torch.ones(2).half()], [gradient], rho=0.5)
    (expected,) = sam_perturbation([torch.ones(2)], [gradient.float()], rho=0.5)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=0)
