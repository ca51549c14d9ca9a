"""How two results are compared: one number a quantity, and how far apart the two sides are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.batches import IGNORE

Value = float | Sequence[float] | Tensor | Mapping[str, Tensor]  # a number, one a rollout, a tensor, or one tensor a parameter
Found = dict[str, Value]
TINY = 1e-30  # so that a quantity that is 0 on both sides can be divided by
FP32, FP64 = 1e-6, 1e-12


@dataclass(frozen=True)
class Case:
    """One algorithm in one setting: what either side makes of the same weights and the same batch.

    `loose` holds the quantities with another tolerance, each with its reason.
    """

    algorithm: str
    ours: Callable[[], Found]
    theirs: Callable[[], Found]
    precision: str = "fp32"
    loose: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a case is recorded under."""
        return f"{self.algorithm}, {self.precision}"

    def tolerance(self, quantity: str) -> tuple[float, str]:
        """The largest relative difference allowed, and why it is not the usual one."""
        return self.loose.get(quantity, (FP64 if self.precision == "fp64" else FP32, ""))


@dataclass(frozen=True)
class Row:
    """One quantity on both sides."""

    algorithm: str
    quantity: str
    precision: str
    ours: float
    theirs: float
    relative_difference: float
    tolerance: float
    reason: str = ""

    @property
    def exceeds(self) -> bool:
        """Whether the sides are further apart than is allowed, or cannot be compared (NaN)."""
        return not self.relative_difference <= self.tolerance


def compared(case: Case, ours: Found, theirs: Found) -> list[Row]:
    """What both sides of a case gave, quantity by quantity.

    Raises:
        ValueError: the sides do not hold the same quantities.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"{case.name}: quantities differ, ours {sorted(ours)}, theirs {sorted(theirs)}")
    return [
        Row(
            case.algorithm,
            quantity,
            case.precision,
            number(ours[quantity]),
            number(theirs[quantity]),
            relative_difference(ours[quantity], theirs[quantity]),
            *case.tolerance(quantity),
        )
        for quantity in theirs
    ]


def number(value: Value) -> float:
    """One number to print: itself; the mean over rollouts; a tensor's norm, or that of all of them; the trained labels."""
    if isinstance(value, Mapping):
        return math.sqrt(sum(float(x.double().square().sum()) for x in value.values()))
    if isinstance(value, Tensor) and value.ndim:
        return float(value.double().norm()) if value.is_floating_point() else float((value != IGNORE).sum())
    if isinstance(value, Sequence):
        return sum(value) / len(value)
    return float(value)


def relative_difference(ours: Value, theirs: Value) -> float:
    """How far apart two results are, in units of theirs; infinite where they cannot be compared.

    Numbers: |a - b| / |b|. One a rollout, and tensors: the largest |a - b| over the largest |b|. Gradients and weights: the
    largest over all parameters of ||a - b|| / ||b||, so that no parameter hides behind a larger one. Labels: the share of
    places that differ.
    """
    if isinstance(theirs, Mapping):
        if not isinstance(ours, Mapping) or ours.keys() != theirs.keys():
            return math.inf
        return max(_apart(ours[name], theirs[name], torch.linalg.vector_norm) for name in theirs)
    a, b = _tensor(ours), _tensor(theirs)
    if a.shape != b.shape:
        return math.inf
    if not b.is_floating_point():
        return float((a != b).double().mean())
    return _apart(a, b, lambda x: x.abs().max())


def _apart(a: Tensor, b: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    if a.shape != b.shape:
        return math.inf
    a, b = a.detach().double(), b.detach().double()
    return float(size(a - b) / size(b).clamp_min(TINY))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter's gradient, zeros where the loss does not reach it."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found)}


def table(rows: Sequence[Row]) -> str:
    """The rows as text, those that exceed their tolerance marked, the reasons of looser tolerances below."""
    head = ("algorithm", "quantity", "precision", "ours", "theirs", "relative difference", "tolerance", "")
    reasons = list(dict.fromkeys(row.reason for row in rows if row.reason))
    lines = [head] + [
        (
            row.algorithm,
            row.quantity,
            row.precision,
            f"{row.ours:.9g}",
            f"{row.theirs:.9g}",
            f"{row.relative_difference:.1e}",
            f"{row.tolerance:.0e}" + (f" [{reasons.index(row.reason) + 1}]" if row.reason else ""),
            "EXCEEDS" if row.exceeds else "",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join(text + [f"[{i}] {reason}" for i, reason in enumerate(reasons, 1)])


def summary(rows: Sequence[Row]) -> str:
    """A line an algorithm: how many quantities were compared, and the largest relative difference in either precision."""
    lines = [f"{'algorithm':26}{'quantities':>11}{'worst, fp64':>13}{'worst, fp32':>13}"]
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        own = [row for row in rows if row.algorithm == algorithm]
        worst = {p: [row.relative_difference for row in own if row.precision == p] for p in ("fp64", "fp32")}
        cells = "".join(f"{max(found):13.1e}" if found else f"{'':13}" for found in worst.values())
        lines.append(f"{algorithm:26}{len(own):11}{cells}".rstrip())
    return "\n".join(lines)
