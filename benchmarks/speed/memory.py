"""Peak memory of one contender in a process of its own, and the largest tensor that a piece of work makes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.speed.measure import Clock, Setup

STATUS = Path("/proc/self/status")


def resident() -> tuple[float, float]:
    """(now, at most so far) MB of this process.

    `ru_maxrss` is the fallback: on Linux it starts at what the parent held when it launched this process.
    """
    if STATUS.exists():
        kilobytes = {line.split(":")[0]: line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("Vm")}
        return int(kilobytes["VmRSS"]) / 1e3, int(kilobytes["VmHWM"]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return peak, peak


def probe(setup: Setup) -> float:
    """MB that a run needs beyond what its models and data hold."""
    run = setup()
    before, _ = resident()
    run(Clock())
    return resident()[1] - before


def probe_in_subprocess(group: str, contender: str, *, quick: bool, threads: int) -> float:
    """`probe` of a contender named in `rows.py`, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed", "--probe", group, contender, "--threads", str(threads)]
    done = subprocess.run([*command, "--quick"] if quick else command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{group} {contender} failed in its own process:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation returns while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def largest_tensor(setup: Setup) -> int:
    """Elements of the largest tensor of a run."""
    run = setup()
    with LargestTensor() as seen, torch.enable_grad():
        run(Clock())
    return seen.elements
