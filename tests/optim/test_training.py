"""The optimizers, schedules and batch sizes as the models and datamodules use them."""

import forked
import lightning.pytorch as pl
import pytest
import torch

from dlblocks.cli import main
from dlblocks.data import CurveDataModule, DigitsDataModule
from dlblocks.models import MLPClassifier, MLPRegressor, load
from dlblocks.optim import OPTIMIZERS, describe


def trainer(tmp_path, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet["enable_checkpointing"] = False
    return pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, **{**quiet, "max_epochs": 1, **arguments}
    )


class Watch(pl.Callback):
    """The learning rate of every step; may stop the training."""

    def __init__(self, stop_after=None):
        self.rates, self.stop_after = [], stop_after

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, module):
        if self.stop_after is not None and trainer.current_epoch + 1 >= self.stop_after:
            trainer.should_stop = True


@pytest.mark.parametrize("name", [*OPTIMIZERS, "torch.optim.Adamax"])
def test_every_optimizer_trains_and_loads(name, tmp_path):
    torch.manual_seed(0)
    args = None if name == "lbfgs" else {"lr_groups": {"net": 0.5}}
    model = MLPRegressor(1, hidden=[8], optimizer=name, lr=1e-3, optimizer_args=args)
    data = CurveDataModule(num_samples=200, batch_size="full")
    fit = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    before = [p.clone() for p in model.parameters()]
    fit.fit(model, data)
    assert fit.global_step == 3
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    assert load(tmp_path / "last.ckpt").optimizer_name == name
    again = trainer(tmp_path, max_epochs=4, num_sanity_val_steps=0)
    again.fit(load(tmp_path / "last.ckpt").train(), data, ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4


def test_lbfgs_finds_the_minimum_of_least_squares(tmp_path):
    torch.manual_seed(0)
    data = CurveDataModule(num_samples=100, batch_size="full", noise=0.1)
    model = MLPRegressor(1, hidden=[], optimizer="lbfgs")
    trainer(tmp_path, max_epochs=5).fit(model, data)
    inputs, targets = data.arrays("train")[:2]
    x = torch.cat([data.transform(inputs).flatten(1), torch.ones(len(inputs), 1)], 1).double()
    best = torch.linalg.lstsq(x, targets.double().view(-1, 1)).solution.flatten()
    weights = torch.cat([p.detach().flatten() for p in model.net.parameters()])
    torch.testing.assert_close(weights.double(), best, rtol=0, atol=1e-4)


def test_lbfgs_does_not_accumulate(tmp_path):
    model = MLPRegressor(1, optimizer="lbfgs")
    with pytest.raises(ValueError, match="accumulate_grad_batches=2"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(model, CurveDataModule(num_samples=200))


@pytest.mark.parametrize("name", ["adamp", "sgdp", "lion", "lbfgs"])
def test_gradients_are_clipped(name, tmp_path):
    """Each step's gradient has at most the norm asked for; without, it is larger."""
    found = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        model = MLPClassifier(64, 10, hidden=[8], optimizer=name)
        after = After()
        fit = trainer(tmp_path, gradient_clip_val=clip, limit_train_batches=3, callbacks=[after])
        fit.fit(model, DigitsDataModule())
        found[clip] = after.norms
    assert len(found[1e-3]) == 3
    assert max(found[None]) > 1e-2
    assert max(found[1e-3]) <= 1e-3 * 1.001


class After(pl.Callback):
    """The norm of the gradient that a step left behind."""

    def __init__(self):
        self.norms = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        self.norms.append(torch.cat(grads).norm().item())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("exponential", {"gamma": 0.5}),
        ("cosine", {}),
        ("cosine_restarts", {"period": 2}),
        ("one_cycle", {}),
    ],
)
def test_rates_in_a_training_and_when_it_goes_on(name, args, accumulate, tmp_path):
    """5 batches an epoch: 5 or 2 steps; stopped after 2 of 4 epochs and gone on with, as in one."""

    def run(stop_after=None, ckpt_path=None):
        watch = Watch(stop_after)
        torch.manual_seed(0)
        model = MLPRegressor(1, lr=0.1, lr_schedule=name, lr_schedule_args=args)
        fit = trainer(tmp_path, max_epochs=4, accumulate_grad_batches=accumulate, callbacks=[watch])
        data = CurveDataModule(num_samples=100, test_fraction=0, batch_size=16)
        fit.fit(model, data, ckpt_path=ckpt_path)
        fit.save_checkpoint(tmp_path / "stopped.ckpt")
        return watch.rates

    whole = run()
    a_epoch = 5 if accumulate == 1 else 2
    assert len(whole) == 4 * a_epoch
    if name == "exponential":
        assert whole == pytest.approx([0.1 * 0.5 ** (i // a_epoch) for i in range(4 * a_epoch)])
    if name == "cosine_restarts":
        assert whole[2 * a_epoch] == pytest.approx(0.1)
        assert whole[: 2 * a_epoch] == pytest.approx(whole[2 * a_epoch :])
    first = run(stop_after=2)
    assert first + run(ckpt_path=tmp_path / "stopped.ckpt") == pytest.approx(whole)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_a_warmup_that_outlasts_the_training_is_refused(name, tmp_path):
    """Of those schedules, too, that do not need to know how long the training is."""
    model = MLPRegressor(1, lr_schedule=name, warmup_steps=10)
    data = CurveDataModule(num_samples=100, test_fraction=0, batch_size=16)
    with pytest.raises(ValueError, match="warmup_steps=10 is as long as the training, 10 steps"):
        trainer(tmp_path, max_epochs=2).fit(model, data)


def test_batch_size_decides_the_kind_of_descent(tmp_path):
    for batch_size, batches in (("full", 1), (32, 3), (1, 80)):
        data = CurveDataModule(num_samples=100, test_fraction=0, batch_size=batch_size)
        fit = trainer(tmp_path, limit_val_batches=0)
        fit.fit(MLPRegressor(1, hidden=[4]), data)
        assert fit.num_training_batches == batches
    data = CurveDataModule(num_samples=100, test_fraction=0, batch_size="full")
    data.setup("fit")
    assert [len(batch[0]) for batch in data.train_dataloader()] == [80]
    assert [len(batch[0]) for batch in data.val_dataloader()] == [20]
    with pytest.raises(ValueError, match="did you mean 'full'"):
        CurveDataModule(batch_size="ful")
    with pytest.raises(ValueError, match="batch_size=0"):
        CurveDataModule(batch_size=0)


def test_describe_says_how_a_model_will_be_trained():
    args = {"layer_decay": 0.5}
    model = MLPClassifier(64, 10, hidden=[8], lr=0.1, weight_decay=0.01, optimizer_args=args)
    lines = describe(model).splitlines()
    assert lines[0] == "Adam"
    assert [line.split()[1:3] for line in lines[2:]] == [
        ["0.05", "0.01"],
        ["0.1", "0.01"],
        ["0.05", "0"],
        ["0.1", "0"],
    ]


CONFIG = """
trainer: {max_epochs: 2, accelerator: cpu, logger: false}
model:
  class_path: dlblocks.models.MLPRegressor
  init_args:
    in_features: 1
    optimizer: adamp
    weight_decay: 0.01
    optimizer_args: {betas: [0.9, 0.99], lr_groups: {net: 2.0}}
    lr_schedule: multi_step
    lr_schedule_args: {milestones: [1], gamma: 0.5}
data:
  class_path: dlblocks.data.CurveDataModule
  init_args: {num_samples: 100, batch_size: full}
"""


def test_from_the_command_line(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    main(["fit", "--config", "config.yaml"])
    states = [torch.load(path, weights_only=True) for path in tmp_path.rglob("*.ckpt")]
    (state,) = [state for state in states if state["global_step"] == 2][:1]
    group = state["optimizer_states"][0]["param_groups"][0]
    assert (group["wd_ratio"], group["betas"]) == (0.1, (0.9, 0.99))
    assert group["lr"] == pytest.approx(0.001)  # 2 · 0.001, halved after the first epoch


def fit_on_two(optimizer, accumulate):
    torch.manual_seed(0)
    model = MLPRegressor(
        1, hidden=[4], optimizer=optimizer, lr=0.1, lr_schedule="exponential",
        lr_schedule_args={"gamma": 0.5},
    )  # fmt: skip
    data = CurveDataModule(num_samples=100, test_fraction=0, batch_size=16)
    fit = trainer(".", devices=2, strategy="ddp", max_epochs=2, accumulate_grad_batches=accumulate)
    fit.fit(model, data)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = fit.strategy.all_gather(weights)
    rate = fit.optimizers[0].param_groups[0]["lr"]
    print("found", fit.global_step, rate, torch.equal(both[0], both[1]), flush=True)


def both_on_two():
    fit_on_two("adamp", 2)
    try:
        fit_on_two("lbfgs", 1)
    except ValueError as error:
        print("refused", error, flush=True)


def test_two_processes(tmp_path):
    """80 samples on 2 ranks: 3 batches of 16, 2 steps an epoch; the rate halves twice."""
    forked.run(both_on_two, environments=forked.ranks(2))
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}.txt").read_text()
        assert "found 4 0.025 True" in said
        assert "on 2 devices, but lbfgs" in said
