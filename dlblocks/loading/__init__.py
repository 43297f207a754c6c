"""Open a trained model, and predict new data with it.

`load` opens a run folder, a checkpoint or a saved file. What it returns reads new data as the
training data were read: columns and categories, image size, class names and normalisation come
with the model.
"""

from dlblocks.loading._load import load
from dlblocks.loading.predictor import Predictor

__all__ = ["Predictor", "load"]
