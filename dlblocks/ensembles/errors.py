"""What says that models cannot be fitted together."""


class NotVectorizable(ValueError):
    """Models cannot be fitted together in one batched computation; the message says why."""
