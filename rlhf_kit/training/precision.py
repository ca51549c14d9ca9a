"""bf16 or fp32, whichever is faster here. It is measured: cores that have bf16 instructions may still run them slowly."""

from __future__ import annotations

import time
from typing import Literal

import torch
from accelerate import Accelerator

from rlhf_kit.training.distributed import reduce_sum

Precision = Literal["auto", "fp32", "bf16"]
SIDE, TRIES = 512, 5
WORTH_BF16 = 1.5  # times as fast a product must be: casts and cache misses take some of it back


def bf16_speedup() -> float:
    """How many times as fast as in fp32 this CPU multiplies two matrices in bf16, one thread against one."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    matrices = {dtype: torch.ones(SIDE, SIDE, dtype=dtype) for dtype in best}
    for _ in range(TRIES):  # in turns, the best of each: a busy machine slows both
        for dtype, matrix in matrices.items():
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` becomes bf16 on GPUs that have it and on CPUs where it pays (0.01 s to find out), fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16" if bf16_speedup() > WORTH_BF16 else "fp32"
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def agree_on_precision(precision: Precision, accelerator: Accelerator) -> Literal["fp32", "bf16"]:
    """`resolve_precision`, the same on every rank: bf16 only where it pays for all."""
    own = resolve_precision(precision, accelerator.device)
    votes = reduce_sum(accelerator, {"bf16": float(own == "bf16")})["bf16"]
    return "bf16" if votes == accelerator.num_processes else "fp32"
