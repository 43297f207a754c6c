"""Loggers for CSV, TensorBoard and Weights & Biases."""

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
