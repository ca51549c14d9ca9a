"""Several processes as one: the launch guard, sums over ranks, randomness without saved state, and an orderly stop.

accelerate starts the process group and wraps the model. Added here is what it leaves silent: a launch that falls apart into
independent jobs, or that asks for FSDP or DeepSpeed, is refused; a collective that nobody answers ends at a timeout; a
signal to one rank stops all at the same step; a worker does not outlive its launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, Self

import numpy
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from rlhf_kit.errors import InputError

WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # what accelerate reads
SECOND_INTERRUPT = 3.0  # seconds; torchrun repeats a Ctrl-C that the terminal already gave to every process


def make_accelerator(mixed_precision: str = "no", *, timeout_minutes: float = 10.0) -> Accelerator:
    """The `Accelerator` of this run, joined to the other processes of the launch.

    Uses the GPU where there is one and the CPU (gloo) otherwise, with or without `ACCELERATE_USE_CPU`. May be called again in the
    same process, also with another precision: one stage after another in a script or a notebook.

    Args:
        mixed_precision: `no` or `bf16` (`accelerator.autocast()` then computes matrix products in bf16, on CPU as well). fp16
            would need loss scaling in both loops and is refused.
        timeout_minutes: how long a collective waits for a rank that does not come before the run ends with an error.
    Raises:
        InputError: the launch would not run as asked (see `check_launch`), or the precision is not known.
    """
    if mixed_precision not in ("no", "bf16"):
        raise InputError("--mixed_precision", mixed_precision, "expected no or bf16")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    AcceleratorState._reset_state()  # accelerate keeps the first precision for good; the process group stays
    no_gpu = not torch.accelerator.is_available() and "ACCELERATE_TORCH_DEVICE" not in os.environ
    group = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
    one = GradientAccumulationPlugin(num_steps=1)  # the loops accumulate themselves; a launcher's number would divide once more
    accelerator = Accelerator(
        mixed_precision=mixed_precision, cpu=no_gpu, gradient_accumulation_plugin=one, kwargs_handlers=[group]
    )
    check_launch(accelerator)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Refuse a launch that accelerate accepts in silence and runs as something else.

    `accelerate launch --cpu --num_processes N` starts one process, and marks it only by MASTER_PORT without WORLD_SIZE; a
    launcher whose processes do not find each other starts N independent jobs. FSDP and DeepSpeed become plain DDP on CPU, and
    neither resuming nor sampling knows of split weights yet.
    """
    script = sys.argv[0] or "SCRIPT"
    sizes = [int(os.environ[name]) for name in WORLD_SIZE_NAMES if name in os.environ]
    if sizes and sizes[0] != accelerator.num_processes:
        raise InputError(
            "number of processes",
            accelerator.num_processes,
            f"expected {sizes[0]}, as launched: the processes do not see each other and would train {sizes[0]} separate models; "
            f"launch with `torchrun --nproc_per_node {sizes[0]} {script} ...`",
        )
    if not sizes and "MASTER_PORT" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise InputError(
            "number of processes",
            1,
            "but several were asked for: `accelerate launch --cpu --num_processes N` starts only one; launch with "
            f"`torchrun --nproc_per_node N {script} ...` (or unset MASTER_PORT where one process is meant)",
        )
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "false").lower() == "true":
            raise InputError(
                name, "true", "expected a plain launch: weights split over devices (FSDP, ZeRO) are not supported yet"
            )


def step_seed(seed: int, step: int, rank: int, purpose: str = "") -> int:
    """A 63-bit seed that any run can compute again: the hash of all four. Hence a checkpoint holds no random state."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(seed: int, step: int, rank: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose (`"sample"`, `"shuffle"`) at one step on one rank, independent of all others."""
    return torch.Generator(device).manual_seed(step_seed(seed, step, rank, purpose))


def seed_everything_for_step(seed: int, step: int, rank: int) -> None:
    """Seed the global generators of torch (every device), numpy and Python, for what cannot take a generator: dropout."""
    value = step_seed(seed, step, rank, "global")
    torch.manual_seed(value)
    numpy.random.seed(value % 2**32)
    random.seed(value)


def reduce_sum(accelerator: Accelerator, values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Sum each number over all ranks: one collective and one wait for the device, whatever the count.

    Args:
        values: 0-dim tensors or floats, under the same names on every rank. Added in float64 (float32 on MPS).
    Raises:
        RuntimeError: the ranks came with different names, whose sums would be nonsense.
    """
    names = sorted(values)
    device = accelerator.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    check = float(zlib.crc32("\n".join(names).encode()) & 0xFFFFF)  # 20 bits: its sum is exact in float32 for 16 ranks
    columns = [torch.as_tensor(values[name], device=device).detach().to(kind) for name in names]
    packed = torch.stack([*columns, torch.tensor(check, dtype=kind, device=device)])
    *sums, checked = accelerator.reduce(packed, reduction="sum").tolist()
    if checked != check * accelerator.num_processes:
        raise RuntimeError(f"reduce_sum: rank {accelerator.process_index} has the names {names}, another rank has others")
    return dict(zip(names, sums))


def any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true on at least one rank; the same answer on all."""
    return reduce_sum(accelerator, {"flag": float(flag)})["flag"] > 0


def no_sync(accelerator: Accelerator, model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    """Where `enabled`, gradients stay on their rank: every micro-batch of a step but the last. `model` is the prepared one."""
    return accelerator.no_sync(model) if enabled else contextlib.nullcontext()


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a question the loop asks once a step, so that all ranks save the same step and leave.

    `requested()` is a collective: call it on every rank at the same place. A second Ctrl-C, more than `SECOND_INTERRUPT` seconds
    after the first, interrupts at once. On leaving the `with` block the old handlers are back. Outside the main thread, where
    Python allows no handlers, it only asks the other ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: int | None = None  # the signal's number
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank was told to stop; the same answer on all."""
        return any_rank(self.accelerator, self.received is not None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > SECOND_INTERRUPT:
            raise KeyboardInterrupt


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the process that started this one dies: a launcher killed with -9 leaves no worker behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # 1 is PR_SET_PDEATHSIG
