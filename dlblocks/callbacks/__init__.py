"""Callbacks for any LightningModule and any batch, each over a pure function.

Early stopping, the best weights and averaged weights are Lightning's own. `dlblocks.runs.fit.fit`,
the command line and `cross_validate` keep the best epoch's weights and give them back, by `monitor`
and `mode`. ``EarlyStopping(monitor="val/loss", patience=10)`` among the callbacks ends a fit before
`max_epochs`. Patience counts validations, and the weights of the last are not those that remain.

An exponential moving average (Polyak and Juditsky 1992; Tarvainen and Valpola 2017) is validated,
kept and given back with::

    EMAWeightAveraging(decay=0.999)     # for 1000 steps and more; 0.98 for 100

Lightning 2.6 behaves as follows; `tests/callbacks/test_averaging.py` holds it:

- `use_buffers=True`, the default, averages the statistics of batch norm along with the weights.
  With False they are those of the last step's weights, which are not those that are used.
- `update_starting_at_step` and `update_starting_at_epoch`: until then what is validated, and may
  become the best, are the weights of before the training. Early stopping stops at once. Leave them
  out: the average forgets its beginning.
- Updates at an epoch's end (``should_update(epoch_idx=…)``) come between an epoch's validation and
  its checkpoint, which then holds other weights than were measured. Update after steps.
- `StochasticWeightAveraging` (Izmailov et al. 2018) puts the average into the module after the last
  validation, so that the best weights that are given back are never the average. With batch norm it
  adds an epoch that sets the statistics, and the validation of that one is of the average. The
  weights of the last epoch are not in it; with ``swa_epoch_start=1`` those of before the training
  are. For an average over epochs that is validated, subclass `WeightAveraging`::

      class EpochMean(WeightAveraging):
          def __init__(self, start):
              super().__init__()
              self.start = start

          def setup(self, trainer, pl_module, stage):
              super().setup(trainer, pl_module, stage)
              self.trainer = trainer

          def should_update(self, step_idx=None, epoch_idx=None):
              if step_idx is None:
                  return False
              if self.trainer.current_epoch > self.start:
                  return self.trainer.is_last_batch
              self._average_model.n_averaged.zero_()  # until then, the weights themselves
              return True
"""

from dlblocks._geometry import affine, affine_matrix, shift_flip
from dlblocks.callbacks._batch_transform import BatchTransform
from dlblocks.callbacks._curvature import top_eigenvalue
from dlblocks.callbacks.augment import Augment, adjust_color
from dlblocks.callbacks.cutmix import CutMix, boxes, cutmix
from dlblocks.callbacks.cutout import Cutout, cutout
from dlblocks.callbacks.exact_resume import ExactResume
from dlblocks.callbacks.generalization_gap import GeneralizationGap
from dlblocks.callbacks.input_noise import InputNoise, gaussian_noise, salt_and_pepper
from dlblocks.callbacks.label_smoothing import LabelSmoothing, smooth_labels
from dlblocks.callbacks.mixup import MixUp, mixup
from dlblocks.callbacks.one_of import OneOf
from dlblocks.callbacks.sam import SAM, sam_perturbation
from dlblocks.callbacks.sharpness import Sharpness, sharpness
from dlblocks.callbacks.weight_noise import WeightNoise, add_weight_noise
from dlblocks.callbacks.weight_penalty import WeightPenalty, clip_rows, weight_penalty

__all__ = [
    "SAM",
    "Augment",
    "BatchTransform",
    "CutMix",
    "Cutout",
    "ExactResume",
    "GeneralizationGap",
    "InputNoise",
    "LabelSmoothing",
    "MixUp",
    "OneOf",
    "Sharpness",
    "WeightNoise",
    "WeightPenalty",
    "add_weight_noise",
    "adjust_color",
    "affine",
    "affine_matrix",
    "boxes",
    "clip_rows",
    "cutmix",
    "cutout",
    "gaussian_noise",
    "mixup",
    "salt_and_pepper",
    "sam_perturbation",
    "sharpness",
    "shift_flip",
    "smooth_labels",
    "top_eigenvalue",
    "weight_penalty",
]
