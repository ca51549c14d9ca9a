"""Real processes in under a second: forked from the test, joined by gloo through a file, each with its own accelerate state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState

RunRanks = Callable[..., list[Any]]


def _rank(rank: int, work: Callable[..., Any], world: int, folder: Path, join: bool, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    AcceleratorState._reset_state(True)  # what a test before this one left in the parent
    GradientState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    if join:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    if join:
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture
def run_ranks(tmp_path: Path) -> RunRanks:
    """`run_ranks(work, *arguments, world=2)` runs `work(rank, *arguments)` in `world` processes and returns what each returned.

    An exception in a rank fails the test with its traceback. `join=False` leaves the process group to `work`.
    """
    calls = 0

    def run(work: Callable[..., Any], *arguments: Any, world: int = 2, join: bool = True) -> list[Any]:
        nonlocal calls
        calls += 1
        folder = tmp_path / f"ranks-{calls}"
        folder.mkdir()
        mp.start_processes(_rank, (work, world, folder, join, arguments), nprocs=world, start_method="fork")
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return run
