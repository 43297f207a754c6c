"""torch's fused Adam kernel: the one place that calls it.

`torch._fused_adamw_` is private; `torch.optim.AdamW(fused=True)` is built on it. Where a torch has
none, or has another, `available` says no and the foreach path is taken.
`tests/optim/test_adamp.py::test_the_private_kernel_is_there_and_does_adamw` names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_kernel = getattr(torch, "_fused_adamw_", None)
DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel takes tensors of this device and dtype."""
    return _kernel is not None and device.type in DEVICES and dtype in DTYPES


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019), in place; `steps` count this step already.

    All tensors of one parameter have the same strides and no gaps.
    """
    assert _kernel is not None  # for the type checker
    _kernel(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        amsgrad=False,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        grad_scale=None,
        found_inf=None,
    )
