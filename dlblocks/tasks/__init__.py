"""Define learning problems by their loss, metrics and predictions."""

from dlblocks.tasks._registry import find_task, task_names
from dlblocks.tasks.detection import DetectionTask
from dlblocks.tasks.forecast import ForecastTask
from dlblocks.tasks.generative import GenerativeTask, SampleTask
from dlblocks.tasks.language import LanguageModelTask
from dlblocks.tasks.multiclass import MulticlassTask
from dlblocks.tasks.multilabel import MultilabelTask
from dlblocks.tasks.regression import RegressionTask
from dlblocks.tasks.segmentation import SegmentationTask
from dlblocks.tasks.seq2seq import Seq2SeqTask, edit_distances
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
    "SampleTask",
    "SegmentationTask",
    "Seq2SeqTask",
    "Task",
    "edit_distances",
    "find_task",
    "task_names",
]
