"""What the benchmarks of this world share: a command line, runs in processes of their own, and where the figures go."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.closed_form.world import make_world

world_of = lru_cache(maxsize=1)(make_world)  # for a process that runs several things in one world
Task = tuple[Any, ...]
Found = dict[str, Any]


def parser(name: str, about: str, *, seeds: int = 3) -> argparse.ArgumentParser:
    """The arguments that every benchmark here has."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.closed_form {name}".rstrip(), description=about)
    result.add_argument("--seeds", type=int, default=seeds, help="worlds")
    result.add_argument("--jobs", type=int, default=1, help="runs at a time")
    result.add_argument("--json", type=Path, help="where the figures go")
    result.add_argument("--picture", type=Path, help="where the curves go, as SVG")
    return result


def each(
    work: Callable[..., Found], plan: Sequence[Task], jobs: int, tell: Callable[[Found], str], *, fresh: bool = False
) -> Iterator[tuple[Task, Found]]:
    """`work(*task)` of every task in processes of one thread, in order, with a line of progress each.

    Args:
        tell: a result in a few words. fresh: a new process for each task, so that its memory is its own.
    """
    begun = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    children = 1 if fresh else None
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=settle, max_tasks_per_child=children) as pool:
        futures = [pool.submit(quietly, work, task) for task in plan]
        for done, (task, future) in enumerate(zip(plan, futures), 1):
            try:
                found = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # leaving the pool would wait for all that is planned
                raise
            spent = time.perf_counter() - begun
            left = spent / done * (len(plan) - done)
            text = f"{done}/{len(plan)} {' '.join(map(str, task))}: {tell(found)}"
            print(f"{text} | {spent / 60:.0f} min so far, about {left / 60:.0f} left", flush=True)
            yield task, found


def settle() -> None:
    """One thread and no chatter, for a process that runs benchmarks."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def quietly(work: Callable[..., Found], task: Task) -> Found:
    """`work(*task)`, without the lines of progress that every training run prints."""
    with contextlib.redirect_stderr(io.StringIO()):
        return work(*task)


def write(arguments: argparse.Namespace, result: Found, picture: Callable[[Found], str]) -> None:
    """The figures and the picture, where they were asked for."""
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.picture:
        arguments.picture.write_text(picture(result))
