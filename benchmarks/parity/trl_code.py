"""How TRL's own code is reached: trainers without their constructors, and stretches of `PPOTrainer.train` on given tensors."""

from __future__ import annotations

import inspect
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
    unwrap_model=lambda x: x,
)


def bare(kind: type, model: Any, **fields: Any) -> Any:
    """A trainer of TRL without its constructor: what its loss reads, and one process."""
    made: Any = object.__new__(kind)
    common = {
        "model": model, "accelerator": ACCELERATOR, "aux_loss_enabled": False, "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0, "args": SimpleNamespace(gradient_checkpointing_kwargs=None), "is_encoder_decoder": False,
    }  # fmt: skip
    made.__dict__.update(common | fields)
    return made


def metrics_of(trainer: Any) -> dict[str, float]:
    """What a trainer logged of its one batch."""
    return {name: values[0] for name, values in trainer._metrics["train"].items()}


@contextmanager
def widened(precision: str) -> Iterator[None]:
    """In fp64, whatever asks for fp32 gets fp64: both sides cast scores, logits or counts, which would hide other formulas."""
    if precision != "fp64":
        yield
        return
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double), patch.object(torch, "float32", torch.float64):
            yield
    finally:
        torch.set_default_dtype(default)


def run_between(first: str, last: str, names: dict[str, Any]) -> SimpleNamespace:
    """Runs the lines of `PPOTrainer.train` from the one with `first` up to the one with `last`, on `names`."""
    from trl.experimental.ppo import ppo_trainer

    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i, line in enumerate(lines) if i > start and last in line)
    exec(textwrap.dedent("\n".join(lines[start:stop])), vars(ppo_trainer), names)
    return SimpleNamespace(**names)
