"""VisionClassifier: frozen to the last bit, unfrozen under any schedule, resumed exactly."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging

from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule, DigitsDataModule
from dlblocks.engine._support import NotVectorizable, check_vectorizable
from dlblocks.models import VisionClassifier, load


def images():
    torch.manual_seed(0)
    return ArrayDataModule(
        torch.rand(48, 1, 16, 16), torch.arange(48) % 3, batch_size=16, val_fraction=0.25,
        test_fraction=0,
    )  # fmt: skip


def new(**arguments):
    torch.manual_seed(1)
    return VisionClassifier("resnet18", 3, in_channels=1, image_size=16, **arguments)


def states(model, head="fc."):
    found = {n: v.clone() for n, v in model.net.model.state_dict().items()}
    return (
        {n: v for n, v in found.items() if not n.startswith(head)},
        {n: v for n, v in found.items() if n.startswith(head)},
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_backbone_changes_no_bit(optimizer, make_trainer):
    model = new(freeze=True, optimizer=optimizer, lr=0.1, weight_decay=0.1)
    backbone, head = states(model)
    make_trainer(max_epochs=2).fit(model, datamodule=images())
    now, new_head = states(model)
    assert all(torch.equal(now[n], v) for n, v in backbone.items())  # buffers included
    assert not torch.equal(new_head["fc.weight"], head["fc.weight"])


def test_some_modules_are_frozen(make_trainer):
    model = new(freeze=["conv1", "bn1", "layer1"], lr=0.1)
    before, _ = states(model)
    make_trainer(max_epochs=1).fit(model, datamodule=images())
    now, _ = states(model)
    for name, value in before.items():
        is_frozen = name.startswith(("conv1.", "bn1.", "layer1."))
        if "num_batches" in name or value.is_floating_point():
            assert torch.equal(now[name], value) == is_frozen, name


class Rates(pl.Callback):
    """The learning rates of all groups, and whether the backbone has changed, epoch by epoch."""

    def __init__(self):
        self.rates, self.changed = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = pl_module.net.model.layer1[0].conv1.weight.clone()

    def on_train_epoch_end(self, trainer, pl_module):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        after = pl_module.net.model.layer1[0].conv1.weight
        self.changed.append(not torch.equal(self.before, after))


def test_unfreezing_keeps_the_groups_and_their_rates(make_trainer):
    model = new(
        freeze=True, unfreeze_epoch=2, lr=0.1, lr_schedule="exponential",
        lr_schedule_args={"gamma": 0.5}, optimizer_args={"lr_groups": {"net.model.layer*": 0.1}},
    )  # fmt: skip
    rates = Rates()
    make_trainer(max_epochs=4, callbacks=[rates]).fit(model, datamodule=images())
    assert rates.changed == [False, False, True, True]
    for row, other in zip(rates.rates, rates.rates[1:], strict=False):
        assert other == pytest.approx([0.5 * lr for lr in row])  # every group, frozen or not
    ratios = {round(lr / max(rates.rates[0]), 6) for lr in rates.rates[0]}
    assert ratios == {0.1, 1.0}


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_resumed_before_the_unfreezing_it_is_the_same_run(make_trainer, tmp_path):
    arguments = {"freeze": True, "unfreeze_epoch": 2, "lr": 0.05}
    whole = new(**arguments)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    make_trainer(max_epochs=4, callbacks=[keep], enable_checkpointing=True).fit(
        whole, datamodule=images()
    )
    for epoch in (1, 2):
        resumed = new(**arguments)
        again = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        make_trainer(max_epochs=4, callbacks=[again], enable_checkpointing=True).fit(
            resumed, datamodule=images(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt"
        )
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name


def test_a_checkpoint_loads_without_the_weights_file(tmp_path, make_trainer):
    stock = new()
    torch.save(stock.net.model.state_dict(), tmp_path / "weights.pth")
    model = new(weights=tmp_path / "weights.pth", freeze=True, stem="small")
    assert torch.equal(model.net.model.conv1.weight, stock.net.model.conv1.weight)
    make_trainer(max_epochs=1).fit(model, datamodule=images())
    model.save(tmp_path / "model.ckpt")
    (tmp_path / "weights.pth").unlink()
    loaded = load(tmp_path / "model.ckpt")
    raw = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(raw), model.eval()(raw))


def test_cross_validation_by_both_engines(tmp_path):
    found = []
    for engine in ("sequential", "vectorized"):
        result = cross_validate(
            lambda: VisionClassifier(
                "squeezenet1_1", 10, in_channels=1, image_size=8, freeze=True, lr=0.01
            ),
            DigitsDataModule(batch_size=256),
            num_folds=2,
            engine=engine,
            run_dir=tmp_path / engine,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
            progress_bar=False,
            logger=None,
            figures=False,
        )
        found.append(result.pooled()["accuracy"])
    assert found[0] > 0 and found[1] > 0


def test_errors(make_trainer):
    with pytest.raises(ValueError, match="freeze has 'layer9', which is not a module of the net"):
        new(freeze=["layer9"])
    with pytest.raises(ValueError, match="unfreeze_epoch=2 needs freeze"):
        new(unfreeze_epoch=2)
    with pytest.raises(TypeError, match="freeze='layer1' must be True, False or a list"):
        new(freeze="layer1")
    with pytest.raises(NotVectorizable, match="unfreeze_epoch changes what"):
        check_vectorizable(new(freeze=True, unfreeze_epoch=1), images(), [], {})
    model = VisionClassifier("vgg11", 3, in_channels=1)
    with pytest.raises(ValueError, match="vgg11 cannot take images of 16×16"):
        make_trainer(max_epochs=1).fit(model, datamodule=images())


def test_averaging_that_resets_frozen_statistics_is_refused(make_trainer):
    average = StochasticWeightAveraging(swa_lrs=0.01)
    with pytest.raises(ValueError, match="resets the running statistics of a frozen"):
        make_trainer(max_epochs=2, callbacks=[average]).fit(new(freeze=True), datamodule=images())
