"""The reward model through a whole model: `RewardModelling` beside TRL's RewardTrainer, its collator and its metrics."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.parity import world
from benchmarks.parity.preference import batch_of
from benchmarks.parity.rows import Case, Found, gradients
from benchmarks.parity.trl_code import bare, metrics_of, widened
from rlhf_kit.training.stages import RewardModelling

MARGINS = (0.5, 0.0, 1.25, 2.0, 0.75)
CENTRING = 0.1


def ours(margin: bool, center: bool, precision: str) -> Found:
    """Our stage on our batch."""
    model = world.scalar_model(precision=precision)
    batch = batch_of(world.pairs())
    batch.margin = torch.tensor(MARGINS) if margin else None
    value, stats = RewardModelling(model, center_coef=CENTRING if center else 0.0)(batch)
    loss, mean = value / len(MARGINS), {name: float(x) / len(MARGINS) for name, x in stats.items()}
    return {
        "loss": loss.detach(),
        "gradients": gradients(loss, model),
        "accuracy": mean["accuracy"],
        "margin": mean["margin"],
        "mean_reward": (mean["chosen"] + mean["rejected"]) / 2,
    }


def theirs(margin: bool, center: bool, precision: str) -> Found:
    """TRL's trainer on its collator's batch."""
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    model = world.scalar_model(precision=precision)
    rows: list[dict[str, Any]] = [
        {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}
        | ({"margin": extra} if margin else {})
        for row, extra in zip(world.pairs(), MARGINS)
    ]
    trainer = bare(RewardTrainer, model, args=SimpleNamespace(center_rewards_coefficient=CENTRING if center else None))
    loss = trainer.compute_loss(model, DataCollatorForPreference(pad_token_id=world.PAD)(rows))
    logged = metrics_of(trainer)
    found: Found = {"loss": loss.detach(), "gradients": gradients(loss, model)}
    return found | {name: logged[name] for name in ("accuracy", "margin", "mean_reward")}


def side(run: Any, margin: bool, center: bool, precision: str) -> Found:
    """One side; our scores are fp32 whatever the weights are, so that both are widened for fp64."""
    with widened(precision):
        return run(margin, center, precision)


SETTINGS = {"plain": (False, False), "margin": (True, False), "centring": (False, True), "margin, centring": (True, True)}
ROUNDED = (5e-6, "one layer's gradient is a hundredth of the others': it nearly cancels between the pairs")
CASES = [
    Case(
        f"reward, {name}",
        partial(side, ours, margin, center, precision),
        partial(side, theirs, margin, center, precision),
        precision,
        {"gradients": ROUNDED} if center and precision == "fp32" else {},
    )
    for precision in ("fp64", "fp32")
    for name, (margin, center) in SETTINGS.items()
]
