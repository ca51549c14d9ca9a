"""Checks on entry, shared by every objective: a wrong shape is refused by name instead of being broadcast."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """All `tensors` must have the shape of the first.

    Raises:
        ValueError: names the odd one, its shape, and what it should be.
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(reference.shape)}: pass it in the shape of {first}"
            )


def check_rank(rank: int, **tensors: Tensor) -> None:
    """All `tensors` must have `rank` dimensions.

    Raises:
        ValueError: names the odd one.
    """
    for name, tensor in tensors.items():
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {rank} dimension{'s' if rank != 1 else ''}")


def check_mask(mask: Tensor, name: str = "mask") -> None:
    """A mask must be bool: a mask of numbers silently turns selections into products.

    Raises:
        ValueError: the mask has another dtype.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} has dtype {mask.dtype}, expected torch.bool: pass {name}.bool(), True on valid tokens")


def real(tensor: Tensor) -> Tensor:
    """The tensor in the precision of the objectives: fp64 stays, everything else becomes fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def valid(tensor: Tensor, mask: Tensor) -> Tensor:
    """`real(tensor)` with zeros where `mask` is False, so that not even a NaN in the padding reaches a value or a gradient."""
    return real(tensor).masked_fill(~mask, 0.0)
