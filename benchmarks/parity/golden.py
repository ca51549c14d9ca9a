"""TRL's numbers, recorded: parity that does not need TRL, and survives the release that drops an algorithm.

Recorded is a fingerprint of each quantity: numbers as they are; of a tensor, or of each parameter's gradient, its norm and its
projection on a fixed wave, which between them notice any change of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.rows import TINY, Case, Found, Value

GOLDEN = Path(__file__).parents[2] / "tests" / "parity" / "golden.json"
Fingerprint = dict[str, list[float]]  # by parameter, or under "" where there is one thing only


def fingerprint(value: Value) -> Fingerprint:
    """What is recorded of a quantity."""
    if isinstance(value, Mapping):
        return {name: _of_tensor(x) for name, x in value.items()}
    if isinstance(value, Tensor) and value.ndim:
        return {"": _of_tensor(value)}
    return {"": [float(x) for x in value] if isinstance(value, Sequence) else [float(value)]}


def _of_tensor(x: Tensor) -> list[float]:
    flat = x.detach().double().flatten()
    wave = torch.cos(torch.arange(len(flat)).double() ** 1.1)
    return [float(f"{float(x):.15g}") for x in (flat.norm(), flat @ wave / wave.norm())]


def record(path: Path, found: Mapping[str, Found]) -> None:
    """Write what TRL gave of each case, a quantity a line."""
    import trl

    lines = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(quantity)}: {json.dumps(fingerprint(value))}" for quantity, value in quantities.items())
        + "\n }"
        for name, quantities in found.items()
    ]
    head = f'"trl": "{trl.__version__}", "torch": "{torch.__version__}"'
    path.write_text(f'{{{head}, "theirs": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def distance(case: Case, recorded: Mapping[str, Fingerprint]) -> dict[str, float]:
    """Per quantity: how far ours is from what was recorded, by its tolerance; 1 is just as far as is allowed."""
    ours = case.ours()
    if ours.keys() != recorded.keys():
        raise ValueError(f"{case.name}: quantities differ, ours {sorted(ours)}, recorded {sorted(recorded)}: record again")
    return {name: _apart(fingerprint(ours[name]), recorded[name]) / case.tolerance(name)[0] for name in recorded}


def _apart(ours: Any, recorded: Any) -> float:
    if ours.keys() != recorded.keys() or any(len(ours[name]) != len(recorded[name]) for name in recorded):
        return math.inf
    return max(
        max(abs(a - b) for a, b in zip(ours[name], recorded[name])) / max(*map(abs, recorded[name]), TINY) for name in recorded
    )
