"""One run folder: fit, resume, plan, predictions, history and figures."""
