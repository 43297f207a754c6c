"""Nested cross-validation of a ridge regression, which scikit-learn can do as well."""

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from dlblocks.crossval import nested_cross_validate

N = 60
RNG = np.random.default_rng(1)
X = RNG.normal(size=(N, 6)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5, 0.0, 0.0, 0.0] + 2 * RNG.normal(size=N)).astype(np.float32)
GROUPS = RNG.permutation(np.arange(N) // 4)
FOLDS = RNG.integers(0, 4, N)
ALPHAS = [0.01, 10.0, 3.0]  # of these the choices differ between folds
CPU = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}


class RidgeModel(pl.LightningModule):
    """scikit-learn's `Ridge` as a LightningModule; keeps the rows that it has trained on."""

    made: list = []  # noqa: RUF012

    def __init__(self, alpha=1.0):
        super().__init__()
        self.alpha, self.rows = alpha, []
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("weights", torch.zeros(7, dtype=torch.float64))
        self.made.append(self)

    def training_step(self, batch, batch_idx):
        self.rows.append(batch)
        self.optimizers().step()

    def on_train_epoch_end(self):
        x, y = (torch.cat(parts).numpy() for parts in zip(*self.rows, strict=True))
        self.x, self.y = x, y
        ridge = Ridge(self.alpha).fit(x.astype(np.float64), y)
        self.weights[:] = torch.from_numpy(np.append(ridge.coef_, ridge.intercept_))

    def forward(self, x):
        return x.double() @ self.weights[:-1] + self.weights[-1]

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y.double()), batch_size=len(x))

    def configure_optimizers(self):
        return torch.optim.SGD([self.unused], lr=0.0)


def run(data, make_model=RidgeModel, grid=None, **arguments):
    settings = {
        "trainer": CPU, "monitor": "val/mse", "mode": "min", "progress_bar": False,
        "figures": False, "logger": None, "run_dir": "run",
    }  # fmt: skip
    return nested_cross_validate(
        make_model, data, {"alpha": ALPHAS} if grid is None else grid, **{**settings, **arguments}
    )
