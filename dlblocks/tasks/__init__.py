"""Define learning problems by their loss, metrics and predictions."""

from dlblocks.tasks._registry import find_task, task_names
from dlblocks.tasks.detection import DetectionTask
from dlblocks.tasks.forecast import ForecastTask
from dlblocks.tasks.generative import GenerativeTask
from dlblocks.tasks.language import LanguageModelTask
from dlblocks.tasks.multiclass import MulticlassTask
from dlblocks.tasks.multilabel import MultilabelTask
from dlblocks.tasks.regression import RegressionTask
from dlblocks.tasks.segmentation import SegmentationTask
from dlblocks.tasks.table import Predictions, PredictionTable
from dlblocks.tasks.task import Task

__all__ = [
    "DetectionTask",
    "ForecastTask",
    "GenerativeTask",
    "LanguageModelTask",
    "MulticlassTask",
    "MultilabelTask",
    "PredictionTable",
    "Predictions",
    "RegressionTask",
    "SegmentationTask",
    "Task",
    "find_task",
    "task_names",
]
