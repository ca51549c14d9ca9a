"""LOOP ONE: learn from a fixed dataset. Pretraining, SFT and the reward model are this loop with another stage.

Deviations from the usual trainer, and why:
- A batch is a function of (seed, step, rank), so `--resume` needs no saved loader or RNG and is bit-exact on CPU.
- The loss is normalised by the units (tokens, pairs) of the whole optimizer step, not by a mean of micro-batch means.
- A step whose gradient is not finite is skipped on all ranks alike, counted, and given up on after ten in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_kit.config import check_least, plain_settings, save_config
from rlhf_kit.data.batching import Batches
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import reload_weights
from rlhf_kit.training.checkpoint import Checkpoints, load_trained_state, save_model_dir, stopped_at, trained_state
from rlhf_kit.training.distributed import StopSignal, no_sync, reduce_sum, seed_everything_for_step
from rlhf_kit.training.metrics import Metrics
from rlhf_kit.training.optim import clip_grad_norm, lr_at, make_optimizer, set_learning_rate
from rlhf_kit.training.precision import Precision
from rlhf_kit.training.stages import Stage

MAX_BAD_STEPS = 10  # consecutive non-finite gradients before the run is given up


@dataclass
class FitConfig:
    """How to learn from a fixed dataset. Every recipe of loop one has these fields."""

    output_dir: Path = Path("runs/fit")  # where the model, its metrics and its checkpoints go
    seed: int = 0
    epochs: float = 1.0  # passes over the data; `max_steps` overrides it
    max_steps: int | None = None  # optimizer steps
    batch_size: int = 64  # rows (sequences, pairs) an optimizer step, over all devices
    micro_batch_size: int = 16  # rows a forward
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup_fraction: float = 0.03  # share of the steps in which the learning rate rises from 0
    final_lr_fraction: float = 0.1  # the learning rate at the end, as a share of its peak
    weight_decay: float = 0.1  # on matrices only
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0: no clipping
    precision: Precision = "fp32"  # bf16: bf16 compute over fp32 master weights; auto: the faster of the two here
    gradient_checkpointing: bool = False  # recompute activations in the backward: less memory, a third more time
    eval_every: int = 100  # steps between evaluations; 0: only at the end
    eval_batches: int | None = None  # batches of an evaluation; None: all that is held out
    log_every: int = 10
    save_every: int = 200  # steps between checkpoints; 0: none
    keep_checkpoints: int = 2
    keep_best: bool = True  # output_dir holds the weights with the lowest eval/loss, not the last ones
    resume: bool = False  # go on from the newest sound checkpoint in output_dir
    trackers: tuple[str, ...] = ()  # any of tensorboard, trackio, wandb


def total_steps(config: FitConfig, batches: Batches) -> int:
    """Optimizer steps of the run."""
    return config.max_steps if config.max_steps is not None else max(1, round(config.epochs * batches.steps_per_epoch))


@torch.no_grad()
def evaluate(stage: Stage, batches: Batches, accelerator: Accelerator, limit: int | None = None) -> dict[str, float]:
    """Loss and statistics a unit over the first `limit` batches of a pass, all ranks together: `eval/loss`, ..."""
    training = stage.training
    stage.eval()
    sums: dict[str, Tensor] = {}
    rank, world = accelerator.process_index, accelerator.num_processes
    for step in range(min(batches.steps_per_epoch, limit or batches.steps_per_epoch)):
        micro_batches = [b.to(accelerator.device) for b in batches.micro_batches(step, rank, world)]
        with accelerator.autocast():
            stage.begin_step(micro_batches, accelerator)
        for batch in micro_batches:
            with accelerator.autocast():
                loss, stats = stage(batch)
            _accumulate(sums, {"loss": loss, "units": stage.units(batch), **stats})
    stage.train(training)
    return {f"eval/{name}": value for name, value in stage.means(reduce_sum(accelerator, sums)).items()}


def fit(
    stage: Stage,
    train: Batches,
    config: FitConfig,
    accelerator: Accelerator,
    *,
    tokenizer: Any,
    eval_batches: Batches | None = None,
    before_save: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train `stage.model` and leave it, with its tokenizer, in `config.output_dir`.

    Args:
        stage: model and objective; its `model` is what gets saved.
        train: the optimizer steps.
        eval_batches: a held-out pass, run every `config.eval_every` steps and at the end.
        before_save: called on the finished model before it is written (the reward model centres its scores here).
    Returns:
        The last evaluation's metrics, with `best_step` where `config.keep_best`.
    Raises:
        InputError: a setting that cannot be, or training that diverged (`MAX_BAD_STEPS` non-finite gradients in a row).
    """
    check_fit_config(config)
    steps, rank, world = total_steps(config, train), accelerator.process_index, accelerator.num_processes
    raw = stage
    if config.gradient_checkpointing:
        raw.model.gradient_checkpointing_enable()  # type: ignore[operator]
    raw.train()
    optimizer = make_optimizer(
        raw,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )
    stage, optimizer = accelerator.prepare(raw, optimizer)
    parameters = [p for p in raw.parameters() if p.requires_grad]

    checkpoints = Checkpoints(config.output_dir / "trainer_state", accelerator, keep=config.keep_checkpoints)
    start, best, best_step = 0, math.inf, -1
    skipped = bad_steps = 0  # non-finite steps in all, and in a row
    window: dict[str, Tensor] = {}  # sums since the last report
    if not config.resume:
        checkpoints.refuse_existing()
    elif (found := checkpoints.load_latest()) is not None:
        start, shared, local = found
        load_trained_state(raw, shared["stage"])
        optimizer.load_state_dict(shared["optimizer"])
        best, best_step, skipped = shared["best"], shared["best_step"], shared["skipped"]
        window = {name: value.to(accelerator.device) for name, value in local["window"].items()}
    if accelerator.is_main_process:
        save_config(config, config.output_dir / "run_config.yaml")
    metrics = Metrics(
        accelerator,
        config.output_dir,
        steps,
        trackers=config.trackers,
        resume_step=start if config.resume else None,
        settings=plain_settings(config),
        unit=raw.unit_name,
    )
    last_eval: dict[str, float] = {}

    with StopSignal(accelerator) as stop:
        for step in range(start, steps):
            # 1. This rank's share of the step, and the one denominator of everybody's loss.
            micro_batches = [b.to(accelerator.device) for b in train.micro_batches(step, rank, world)]
            count = torch.stack([raw.units(b) for b in micro_batches]).sum()
            units = reduce_sum(accelerator, {"units": count})["units"]

            # 2. Forward and backward; gradients are averaged over ranks by DDP, hence `* world`.
            seed_everything_for_step(config.seed, step, rank)
            with accelerator.autocast():
                raw.begin_step(micro_batches, accelerator)
            sums: dict[str, Tensor] = {"units": count}
            for i, batch in enumerate(micro_batches):
                with no_sync(accelerator, stage, enabled=i + 1 < len(micro_batches)):
                    with accelerator.autocast():
                        loss, stats = stage(batch)
                    accelerator.backward(loss * (world / max(units, 1.0)))
                _accumulate(sums, {"loss": loss.detach(), **stats})

            # 3. One optimizer step, at the learning rate that `step` alone decides.
            norm = clip_grad_norm(parameters, config.max_grad_norm or None)
            factor = lr_at(
                step,
                steps,
                warmup_steps=min(round(config.warmup_fraction * steps), steps - 1),
                schedule=config.schedule,
                final_fraction=config.final_lr_fraction,
            )
            set_learning_rate(optimizer, config.learning_rate * factor)
            if math.isfinite(norm):
                optimizer.step()
                bad_steps = 0
            else:
                skipped, bad_steps = skipped + 1, bad_steps + 1
                if bad_steps >= MAX_BAD_STEPS:
                    mend = f"as in each of the last {bad_steps} steps: lower --learning_rate or check the data"
                    raise InputError("grad_norm", norm, mend)
            optimizer.zero_grad(set_to_none=True)

            # 4. Report, evaluate, save.
            _accumulate(window, sums)
            done = step + 1
            if done % config.log_every == 0 or done == steps:
                totals = reduce_sum(accelerator, window)
                means = {f"train/{name}": value for name, value in raw.means(totals).items()}
                means |= {"lr": config.learning_rate * factor, "grad_norm": norm, "train/skipped_steps": skipped}
                metrics.log(done, means, units=totals["units"])
                window = {}
            evaluating = done == steps or (config.eval_every > 0 and done % config.eval_every == 0)
            if eval_batches is not None and evaluating:
                with metrics.aside():
                    last_eval = evaluate(raw, eval_batches, accelerator, config.eval_batches)
                    better = config.keep_best and last_eval["eval/loss"] < best
                    if better and save_model_dir(raw.model, tokenizer, config.output_dir, accelerator, required=done == steps):
                        best, best_step = last_eval["eval/loss"], done
                metrics.log(done, last_eval)
            stopping, saved = stop.requested(), False
            if stopping or (config.save_every > 0 and done % config.save_every == 0 and done < steps):
                progress = {"best": best, "best_step": best_step, "skipped": skipped}
                state = {"stage": trained_state(raw), "optimizer": optimizer.state_dict(), **progress}
                with metrics.aside():
                    saved = checkpoints.save(done, shared=state, local={"window": window})
            if stopping:
                metrics.close()
                raise KeyboardInterrupt(stopped_at(done, saved))

    # 5. Leave the best weights, finished by the stage, as a model directory: the next stage's `--model`.
    if config.keep_best and best_step not in (-1, steps):
        reload_weights(raw.model, config.output_dir)
    if before_save is not None:
        before_save()
    save_model_dir(raw.model, tokenizer, config.output_dir, accelerator)
    metrics.close()
    return last_eval | {"best_step": float(best_step)}


def check_fit_config(config: FitConfig) -> None:
    """Refuse by name what cannot work."""
    check_least(config, batch_size=1, micro_batch_size=1, max_steps=1, eval_batches=1, log_every=1, keep_checkpoints=1)
    check_least(config, eval_every=0, save_every=0, learning_rate=0, weight_decay=0, adam_eps=0, max_grad_norm=0)
    for name in ("adam_beta1", "adam_beta2", "warmup_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name}", getattr(config, name), "expected a number from 0 to below 1")
    if not 0 < config.epochs < math.inf:
        raise InputError("--epochs", config.epochs, "expected a number above 0")


def _accumulate(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()
