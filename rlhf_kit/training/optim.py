"""The optimizer, the learning-rate schedule as a pure function, and gradient clipping that also holds across device meshes.

There is no scheduler object: the loop sets `lr_at(step, ...)` by hand, so a checkpoint has nothing of it to save, and accelerate,
which steps a prepared scheduler once a process, cannot distort it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_kit.errors import InputError

Schedule = Literal["cosine", "wsd", "linear", "constant"]


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the parameters of `model` that require a gradient, in two groups.

    Every tensor of two or more dimensions decays, embeddings among them, as in GPT-3 and nanoGPT: a tied embedding is also the
    output head and cannot be treated as both. Biases, norms and other scalars and vectors never decay, since pulling a gain or an
    offset towards zero regularises nothing. A tied parameter is counted once. The fused kernel is used unless parameters live on
    several device meshes (tensor parallel), where only the plain loop is right.

    Raises:
        InputError: no parameter requires a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(
            "model", type(model).__name__, "expected at least one parameter that requires a gradient: unfreeze something"
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    one_kernel = len({_mesh(p) for p in trained}) == 1
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=betas,
        eps=eps,
        fused=one_kernel,
        foreach=None if one_kernel else False,
    )


def lr_at(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    schedule: Schedule = "cosine",
    final_fraction: float = 0.0,
    decay_fraction: float = 0.2,
) -> float:
    """What the learning rate is multiplied with at optimizer step `step`, counted from 0.

    All rise as `(step + 1) / (warmup_steps + 1)` for `warmup_steps` steps, so that no step has rate 0, and then reach 1. After it

    - `constant` stays at 1;
    - `linear` and `cosine` (Loshchilov and Hutter 2017, eq. 5) fall to `final_fraction`, which step `total_steps` would have;
    - `wsd` (warmup, stable, decay: Hu et al. 2024, MiniCPM) stays at 1, then falls linearly over the last `decay_fraction`.

    Raises:
        InputError: a schedule nobody knows, or figures that leave no step to train on.
    """
    if total_steps < 1:
        raise InputError("total_steps", total_steps, "expected at least 1")
    if not 0 <= warmup_steps < total_steps:
        raise InputError("warmup_steps", warmup_steps, f"expected 0 <= warmup_steps < total_steps ({total_steps})")
    for name, fraction in (("final_fraction", final_fraction), ("decay_fraction", decay_fraction)):
        if not 0.0 <= fraction <= 1.0:
            raise InputError(name, fraction, "expected a number from 0 to 1")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    start = warmup_steps
    if schedule == "wsd":
        start = max(warmup_steps, total_steps - round(decay_fraction * total_steps))
    done = 1.0 if step >= total_steps else max(0.0, (step - start) / max(1, total_steps - start))
    if schedule == "cosine":
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule in ("linear", "wsd"):
        return 1 - (1 - final_fraction) * done
    raise InputError("schedule", schedule, "expected one of cosine, wsd, linear, constant")


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group of `optimizer` the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scale all gradients so that their joint L2 norm is at most `max_norm` (None: leave them). Returns the norm from before.

    The norm is the same number on every rank, also where parameters are sharded over one or several device meshes, so a NaN
    anywhere is a NaN everywhere and all ranks decide alike to skip the step (`math.isfinite(norm)` is the loop's business).
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    if not with_grad:
        return 0.0
    by_mesh: dict[object, list[nn.Parameter]] = {}
    for parameter in with_grad:
        by_mesh.setdefault(_mesh(parameter), []).append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole)) if len(whole) > 1 else whole[0]
    if max_norm is not None:
        for group in by_mesh.values():
            nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return float(total)


def _mesh(parameter: Tensor) -> object:
    return parameter.device_mesh if isinstance(parameter, DTensor) else None
