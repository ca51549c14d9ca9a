"""What the recipes share: where data comes from, and how a run is opened. `world` means the embedded world."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from rlhf_kit.config import save_config
from rlhf_kit.data import records, world
from rlhf_kit.data.shards import read_texts
from rlhf_kit.models.loading import Lora
from rlhf_kit.training.distributed import make_accelerator

Split = Literal["train", "heldout"]


@dataclass
class LoraFields:
    """Fine-tune through LoRA instead of whole: a rank above 0 switches it on."""

    lora_rank: int = 0  # 0: train all weights
    lora_alpha: int = 32
    lora_target_modules: tuple[str, ...] = ()  # empty: every Linear but the head


def lora_of(config: LoraFields) -> Lora | None:
    """The adapter the config asks for, or None."""
    return Lora(config.lora_rank, config.lora_alpha, config.lora_target_modules or None) if config.lora_rank > 0 else None


def open_run(config: Any) -> Accelerator:
    """The accelerator of a training run, with the resolved config saved beside what the run will write."""
    accelerator = make_accelerator("bf16" if config.precision == "bf16" else "no")
    if accelerator.is_main_process:
        save_config(config, Path(config.output_dir) / "run_config.yaml")
    accelerator.wait_for_everyone()
    return accelerator


def documents(data: str, *, count: int, seed: int) -> Iterable[str]:
    """Texts to pretrain on."""
    return world.stories(count, seed) if data == "world" else read_texts(data)


def demonstrations(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"messages": [...]}` records."""
    return world.instructions(count, seed, split=split) if data == "world" else records.load_sft(data)


def preferences(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...], "chosen": [...], "rejected": [...]}` records."""
    return world.preferences(count, seed, split=split) if data == "world" else records.load_preferences(data)


def prompts(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...]}` records."""
    return world.prompts(count, seed, split=split) if data == "world" else records.load_prompts(data)


def spread(rows: list[Any], count: int) -> list[Any]:
    """At most `count` of the rows, evenly spaced and in order: files are often sorted by where their rows came from."""
    return [rows[i * len(rows) // count] for i in range(count)] if count < len(rows) else rows


def hold_out(rows: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """`(train, held out)`: a share of the rows, evenly spaced, is kept from training."""
    kept = min(max(1, round(len(rows) * fraction)), len(rows) - 1) if fraction > 0 and len(rows) > 1 else 0
    held_out = set(spread(list(range(len(rows))), kept)) if kept else set()
    return [row for i, row in enumerate(rows) if i not in held_out], [rows[i] for i in sorted(held_out)]
