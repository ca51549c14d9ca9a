"""What the recipes share: where data comes from, and how a run is opened. `world` means the embedded world."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from accelerate import Accelerator

from rlhf_kit.config import check_least, read_yaml
from rlhf_kit.data import arithmetic, records, world
from rlhf_kit.data.feedback import load_feedback, unpair
from rlhf_kit.data.shards import read_texts
from rlhf_kit.data.stepwise import load_stepwise
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import Lora, check_fits
from rlhf_kit.objectives.ensemble import VARIANCE_COEF, Combination
from rlhf_kit.rollout.chat import load_speaker
from rlhf_kit.training.checkpoint import Checkpoints
from rlhf_kit.training.distributed import make_accelerator, seed_everything_for_step
from rlhf_kit.training.precision import agree_on_precision

Split = Literal["train", "heldout"]


@dataclass
class LoraFields:
    """Fine-tune through LoRA instead of whole: a rank above 0 switches it on."""

    lora_rank: int = 0  # 0: train all weights
    lora_alpha: int = 32
    lora_target_modules: tuple[str, ...] = ()  # empty: every Linear but the head


def lora_of(config: LoraFields) -> Lora | None:
    """The adapter the config asks for, or None."""
    check_least(config, lora_rank=0, lora_alpha=1)
    return Lora(config.lora_rank, config.lora_alpha, config.lora_target_modules or None) if config.lora_rank > 0 else None


@dataclass
class EnsembleFields:
    """How several `--reward`s, with commas between, become one score."""

    ensemble: Combination = "mean"  # or `min`, or `variance`: the mean less ensemble_variance_coef times the members' variance
    ensemble_variance_coef: float = VARIANCE_COEF


# What may change when a run is resumed: how long it is, how it is cut into forwards, and what is reported and kept.
FREE_ON_RESUME = {
    "resume", "output_dir", "epochs", "max_steps", "total_steps", "micro_batch_size", "gradient_checkpointing", "eval_every",
    "eval_batches", "log_every", "save_every", "keep_checkpoints", "keep_best", "trackers",
}  # fmt: skip


def open_run(config: Any) -> Accelerator:
    """The accelerator of a training run, once its output_dir is found fit for it; new weights are drawn from `config.seed`.

    Raises:
        InputError: an output_dir that cannot be written or holds another run, nothing to resume, or other settings than the
            run to resume has.
    """
    check_least(config, seed=0)
    accelerator = make_accelerator()
    checkpoints = Checkpoints(writable(config.output_dir) / "trainer_state", accelerator, keep=config.keep_checkpoints)
    if config.resume:
        checkpoints.require_existing()
        check_same_settings(config)
    else:
        checkpoints.refuse_existing()
    config.precision = agree_on_precision(config.precision, accelerator)
    seed_everything_for_step(config.seed, 0, 0)
    return make_accelerator("bf16") if config.precision == "bf16" else accelerator


def writable(folder: str | Path, field: str = "--output_dir") -> Path:
    """The folder, made where it is missing, once something could be written into it: before the work, not after."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        mend = f"expected a folder that can be written ({error.strerror}): choose another, or make room"
        raise InputError(field, str(folder), mend) from error
    return folder


def check_same_settings(config: Any) -> None:
    """Refuse by name a setting that differs from those that the run in `config.output_dir` was begun with.

    A precision of `auto` becomes what it was then.
    """
    path = Path(config.output_dir) / "run_config.yaml"
    if not path.exists():
        return
    for name, before in read_yaml(path, get_type_hints(type(config))).items():
        if name == "precision" and config.precision == "auto":
            config.precision = before
        now = getattr(config, name)
        if name not in FREE_ON_RESUME and now != before:
            mend = f"but the run to resume was begun with {before!r}: give that again, or start anew in another --output_dir"
            raise InputError(f"--{name}", now, mend)


def load_policy(path: str) -> tuple[Any, Any]:
    """A language model to be asked, in evaluation mode and on the GPU where there is one, and the tokenizer that fits it."""
    speaker = load_speaker(path)
    return speaker.model, speaker.tokenizer


def best_device() -> torch.device:
    """Where a model is asked: the machine's accelerator, else the CPU. (Training takes `accelerator.device`.)"""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def documents(data: str, *, count: int, seed: int) -> Iterable[str]:
    """Texts to pretrain on."""
    return world.stories(count, seed) if data == "world" else read_texts(data)


def demonstrations(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"messages": [...]}` records."""
    return world.instructions(count, seed, split=split) if data == "world" else records.load_sft(data)


def preferences(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...], "chosen": [...], "rejected": [...]}` records."""
    return world.preferences(count, seed, split=split) if data == "world" else records.load_preferences(data)


def feedback(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...], "completion": [...], "label": bool}` records; `count` pairs of the world are twice as many."""
    return unpair(world.preferences(count, seed, split=split)) if data == "world" else load_feedback(data)


def judged_steps(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...], "completions": [str, ...], "labels": [bool, ...]}` records; `arithmetic` is generated."""
    return arithmetic.solutions(count, seed, split) if data == "arithmetic" else load_stepwise(data)


def prompts(data: str, *, count: int, seed: int, split: Split = "train") -> list[dict[str, Any]]:
    """`{"prompt": [...]}` records."""
    return world.prompts(count, seed, split=split) if data == "world" else records.load_prompts(data)


def encoded_batches(
    rows: list[Any],
    held_out: list[Any],
    encode: Any,
    batches: Any,
    config: Any,
    accelerator: Accelerator,
    model: Any,
    tokenizer: Any,
    **options: Any,
) -> tuple[Any, Any | None]:
    """`(train, held out)` batches of a stage, None where nothing was held out; what became of the rows is printed.

    Args:
        encode: `(rows, tokenizer, max_length) -> (examples, counts)`. batches: a class of `rlhf_kit.data.batching`.
        options: for it alone.
    Raises:
        InputError: nothing is left of the rows, or the longest example is too long for the model.
    """

    def encoded(name: str, part: list[Any]) -> Any:
        examples, counts = encode(part, tokenizer, config.max_length)
        accelerator.print(f"{name}: {counts}")
        sizes = {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size, "seed": config.seed}
        made = batches(examples, **sizes, pad_id=tokenizer.pad_token_id, **options)
        check_fits(model, tokenizer, longest=made.longest)
        return made

    return encoded("train", rows), encoded("eval", held_out) if held_out else None


def spread(rows: list[Any], count: int) -> list[Any]:
    """At most `count` of the rows, evenly spaced and in order: files are often sorted by where their rows came from."""
    return [rows[i * len(rows) // count] for i in range(count)] if count < len(rows) else rows


def hold_out(rows: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """`(train, held out)`: a share of the rows, evenly spaced, is kept from training."""
    if not 0 <= fraction < 1:
        raise InputError("--eval_fraction", fraction, "expected a number from 0 to below 1")
    kept = min(max(1, round(len(rows) * fraction)), len(rows) - 1) if fraction > 0 and len(rows) > 1 else 0
    held_out = set(spread(list(range(len(rows))), kept)) if kept else set()
    return [row for i, row in enumerate(rows) if i not in held_out], [rows[i] for i in sorted(held_out)]
