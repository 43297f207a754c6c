"""What other cross-validations of Lightning and torch do: facts, by running them.

The same 300 samples of two classes, the same net, five folds. Each line says what was seen, not
what a documentation promises.

- *once*: samples that are validated exactly once, of 300.
- *scored and trained on*: samples that a fold scores although it trained on them.
- *same folds again*: a second call with the same global seed has the same folds.
- *same folds, other seed*: so has one with another global seed, as for two models to be compared.
- *shuffles*: the order of the training samples changes from epoch to epoch.
- *new weights*: the folds start with different weights.
- *predictions*: a prediction of each sample by a model that has not seen it.

Seen with lightning 2.6.6 and torch 2.15: lightning-kfold 0.1.0 validates 115 of the 300 samples
exactly once, since each fit calls `setup`, which splits again at random. pl-crossvalidate 0.1.0
trains in the same order in all epochs, and its `out_of_sample_score` fails: Lightning lets no
instance call `load_from_checkpoint`. Both give all folds the same initial weights, and other folds
under another global seed. dlblocks validates all 300 once.

Run: pip install 'dlblocks[bench]', then python benchmarks/peers_crossval.py
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dlblocks._quiet import quiet
from dlblocks.crossval import cross_validate
from dlblocks.data import FoldedDataModule

FOLDS, EPOCHS, SAMPLES = 5, 3, 300
TRAINER: dict[str, Any] = {
    "max_epochs": EPOCHS,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
Facts = dict[str, Any]


class Noise(Dataset[tuple[torch.Tensor, int, int]]):
    """Inputs and labels without any relation; a sample says its number."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(SAMPLES, 8, generator=generator)
        self.labels = torch.randint(0, 2, (SAMPLES,), generator=generator)
        self.targets = self.labels

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        return self.inputs[i], int(self.labels[i]), i


class Net(pl.LightningModule):
    """A net that writes down which samples each stage of each fit has seen."""

    fits: Sequence[Facts] = ()

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        )

    def on_fit_start(self) -> None:
        weights = next(self.parameters()).detach().clone()
        seen: Facts = {"weights": weights, "train": [], "val": [], "test": []}
        Net.fits = [*Net.fits, seen]

    def _step(self, stage: str, batch: Any) -> torch.Tensor:
        inputs, labels, index = batch
        Net.fits[-1][stage].append(index.tolist())  # a module may be copied to be scored
        logits = self.net(inputs)
        loss: torch.Tensor = F.cross_entropy(logits, labels)
        name = "val" if stage == "val" else stage
        self.log(f"{name}_loss", loss, batch_size=len(labels))
        self.log(f"{name}_acc", (logits.argmax(1) == labels).float().mean(), batch_size=len(labels))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.as_tensor(self.net(batch[0]).softmax(1))

    def score(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.predict_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def lightning_kfold() -> str:
    """Run lightning-kfold as its documentation shows."""
    from lightning_kfold import KFoldDataModule, KFoldTrainer

    class Data(KFoldDataModule):  # type: ignore[misc, unused-ignore]
        def setup_datasets(self) -> tuple[Any, Any, np.ndarray]:
            return Noise(), Noise(1), Noise().labels.numpy()

    data = Data(num_folds=FOLDS, batch_size=32)
    data.setup()
    KFoldTrainer(num_folds=FOLDS, export_path=tempfile.mkdtemp(), logger=False, **TRAINER).fit(
        Net(), data, test_ensemble=False
    )
    return "none"


def pl_crossvalidate() -> str:
    """Run pl-crossvalidate as its documentation shows."""
    from pl_crossvalidate import KFoldTrainer

    trainer = KFoldTrainer(
        num_folds=FOLDS, shuffle=True, default_root_dir=tempfile.mkdtemp(), **TRAINER
    )
    net, loader = Net(), DataLoader(Noise(), batch_size=32, shuffle=True)
    trainer.cross_validate(net, train_dataloader=loader, val_dataloaders=loader)
    try:
        trainer.out_of_sample_score(net)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return "given"


def ours() -> str:
    """Run `cross_validate`."""
    result = cross_validate(
        Net,
        FoldedDataModule(DataLoader(Noise(), batch_size=32, shuffle=True)),
        num_folds=FOLDS,
        monitor="val_loss",
        trainer=TRAINER,
        progress_bar=False,
        figures=False,
        run_dir=tempfile.mkdtemp(),
    )
    return "none" if result.oof is None else f"given, {len(result.oof)} samples"


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    """Return the samples of batches, in order."""
    return [i for batch in batches for i in batch]


def facts(run: Callable[[], str], scored: str) -> Facts:
    """Run three times and say what was seen; `scored` is the stage that is reported."""
    found: list[Sequence[Facts]] = []
    said = ""
    for seed in (0, 0, 1):
        Net.fits = ()
        pl.seed_everything(seed, verbose=False)
        with quiet(), redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = run()
        found.append(Net.fits)
    fits = found[0]
    batches = math.ceil(SAMPLES / FOLDS / 32)
    last = [set(flat(fit[scored][-batches:])) for fit in fits]
    counts = Counter(i for part in last for i in part)
    trained = [flat(fit["train"]) for fit in fits]
    folds = [[set(flat(fit["train"])) for fit in one] for one in found]
    first = [samples[: len(samples) // EPOCHS] for samples in trained]
    second = [samples[len(one) : 2 * len(one)] for samples, one in zip(trained, first, strict=True)]
    return {
        "fits": len(fits),
        "once": sum(count == 1 for count in counts.values()),
        "scored and trained on": sum(
            len(part & set(samples)) for part, samples in zip(last, trained, strict=True)
        ),
        "same folds again": folds[0] == folds[1],
        "same folds, other seed": folds[0] == folds[2],
        "shuffles": first != second,
        "new weights": len({float(fit["weights"].sum()) for fit in fits}) > 1,
        "predictions": said,
    }


def main() -> None:
    """Print what was seen of each."""
    os.chdir(tempfile.mkdtemp())  # where some leave checkpoints
    runs = {
        "dlblocks": (ours, "val"),
        "lightning-kfold": (lightning_kfold, "val"),
        "pl-crossvalidate": (pl_crossvalidate, "test"),
    }
    for name, (run, scored) in runs.items():
        print(name, importlib.metadata.version(name))
        for key, value in facts(run, scored).items():
            print(f"    {key}: {value}")


if __name__ == "__main__":
    main()
