"""Loggers: CSV, TensorBoard and Weights & Biases, and what is logged about a run."""

from dlblocks.tracking.loggers import (
    LOGGERS,
    LogFirstBatch,
    LoggerName,
    LogTrainerSettings,
    finish_logger,
    finishing,
    log_figures,
    log_scores,
    log_summary,
    make_logger,
    plain_attributes,
    trainer_settings,
    versions,
)

__all__ = [
    "LOGGERS",
    "LogFirstBatch",
    "LogTrainerSettings",
    "LoggerName",
    "finish_logger",
    "finishing",
    "log_figures",
    "log_scores",
    "log_summary",
    "make_logger",
    "plain_attributes",
    "trainer_settings",
    "versions",
]
