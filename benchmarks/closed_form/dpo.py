"""What keeps DPO from the optimum: the loss, the noise of the labels, or too few pairs?

Three ways to the same optimum. `soft`: fresh pairs, each labelled with the probability that people prefer its first answer;
`sampled`: fresh pairs and one choice a pair; `fixed`: 4,096 such pairs, seen again and again. The exact distance to the optimum
is noted as each learns. What is kept of the last is the policy with the lowest loss on held-out pairs: a rule that needs no
knowledge of the optimum (`keep_best`, the kit's default).
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.closed_form.command import Found, each, parser, world_of, write
from benchmarks.closed_form.ours import TOKENIZER, WorldPairs, pair_config
from benchmarks.closed_form.world import BETA, LENGTH, World, judged_pairs
from benchmarks.pictures import sheet
from rlhf_kit.batches import PreferenceBatch
from rlhf_kit.evaluation.charts import Series, line_chart
from rlhf_kit.objectives.preference import Answers, PreferenceLoss, Stats, dpo
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import fit
from rlhf_kit.training.preference import PreferenceOptimisation

KINDS = ("soft", "sampled", "fixed")
FRESH: dict[str, Any] = {"batch_size": 64, "learning_rate": 2e-3}
FRESH_PAIRS = 32_768
FIXED: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "schedule": "constant",
}  # no schedule knows when it will be stopped
FIXED_PAIRS, HELD_OUT, EPOCHS = 4_096, 1_024, 4
LOOKS = 16  # at a run


class SoftLabels(PreferenceOptimisation):
    """DPO on the probability p of each choice: `p L(chosen, rejected) + (1 - p) L(rejected, chosen)`."""

    def __init__(self, policy: Any, world: World) -> None:
        super().__init__(policy, "dpo", beta=BETA)
        self.world, self.line = world, PreferenceLoss(self.soft, reference=True)

    def forward(self, batch: PreferenceBatch) -> tuple[Tensor, Stats]:
        """As DPO, once the probabilities are looked up."""
        assert batch.chosen_answer is not None
        assert batch.rejected_answer is not None
        answers = batch.chosen_ids[batch.chosen_answer], batch.rejected_ids[batch.rejected_answer]
        chosen, rejected = (self.world.reward_of(side.view(-1, LENGTH)) for side in answers)
        self.against = torch.sigmoid(rejected - chosen)
        return super().forward(batch)

    def soft(self, chosen: Answers, rejected: Answers, *, beta: float, **options: float) -> tuple[Tensor, Stats]:
        """The kit's loss, and what the other order adds: `L(rejected, chosen) - L(chosen, rejected)` is beta D itself."""
        loss, stats = dpo(chosen, rejected, beta=beta, **options)
        return loss + (self.against * beta * (chosen.log_ratio - rejected.log_ratio)).sum(), stats


def learn_fresh(world: World, soft: bool, folder: Path, pairs: int = FRESH_PAIRS, **settings: Any) -> Found:
    """`kl` after one pass over fresh pairs, and `curve`: (pairs, KL(pi, pi*))."""
    config = pair_config(world, folder, **(FRESH | settings))
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    stage = SoftLabels(policy, world) if soft else PreferenceOptimisation(policy, "dpo", beta=BETA)
    every = max(1, pairs // config.batch_size // LOOKS)
    points: list[tuple[int, float]] = []

    def look(step: int) -> None:
        if step % every == 0:
            points.append((step * config.batch_size, world.kl_to_optimum(policy)))

    batches = WorldPairs(world, judged_pairs(world, pairs, world.seed), config.batch_size, look=look)
    fit(stage, batches, config, make_accelerator(), tokenizer=TOKENIZER)
    kl = world.kl_to_optimum(policy)
    return {"kl": kl, "curve": [*points, (pairs, kl)]}


def learn_fixed(world: World, folder: Path, pairs: int = FIXED_PAIRS, epochs: int = EPOCHS, **settings: Any) -> Found:
    """`points` twice an epoch (`epoch, kl, train_loss, loss, accuracy`, the last two held out), and `kl` of what was kept."""
    every = pairs // FIXED["batch_size"] // 2
    config = pair_config(
        world,
        folder,
        **(FIXED | {"epochs": float(epochs), "eval_every": every, "log_every": every, "keep_best": True} | settings),
    )
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    judged = judged_pairs(world, pairs + HELD_OUT, world.seed)
    distances: list[float] = []
    batches = WorldPairs(world, judged.rows(slice(HELD_OUT, None)), config.batch_size)
    held_out = WorldPairs(
        world, judged.rows(slice(HELD_OUT)), HELD_OUT, look=lambda _: distances.append(world.kl_to_optimum(policy))
    )
    start = world.kl_to_optimum(policy)
    stage = PreferenceOptimisation(policy, "dpo", beta=BETA)
    found = fit(stage, batches, config, make_accelerator(), tokenizer=TOKENIZER, eval_batches=held_out)
    rows: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["step"], {}).update(row)
    points = [
        {
            "epoch": step / batches.steps_per_epoch,
            "kl": kl,
            "train_loss": row["train/loss"],
            "loss": row["eval/loss"],
            "accuracy": row["eval/rewards/accuracies"],
        }
        for (step, row), kl in zip(sorted(rows.items()), distances, strict=True)
    ]
    return {
        "start": start,
        "points": points,
        "kept_epoch": found["best_step"] / batches.steps_per_epoch,
        "kl": world.kl_to_optimum(policy),
        "last": distances[-1],
    }


def one(seed: int, kind: str) -> Found:
    """One way in one world."""
    world = world_of(seed)
    with TemporaryDirectory() as folder:
        return learn_fixed(world, Path(folder)) if kind == "fixed" else learn_fresh(world, kind == "soft", Path(folder))


def table(kinds: dict[str, list[Found]]) -> str:
    """Means and deviations over the worlds, and the fixed pairs by epoch."""
    fixed = kinds["fixed"]
    lines = [
        f"KL(pi, pi*) in nats, {len(fixed)} worlds; the reference starts at {statistics.mean(run['start'] for run in fixed):.3f}"
    ]
    for kind, words in (("soft", "probabilities"), ("sampled", "choices")):
        lines.append(f"{FRESH_PAIRS:,} fresh pairs, {words:13} {spread([run['kl'] for run in kinds[kind]])}")
    lines.append(
        f"{FIXED_PAIRS:,} fixed pairs, the best held out {spread([run['kl'] for run in fixed])}, kept from epochs "
        + ", ".join(f"{run['kept_epoch']:.1f}" for run in fixed)
    )
    lines.append(f"{'epoch':>7} {'KL(pi, pi*)':>20} {'train loss':>11} {'held out':>9} {'accuracy':>9}")
    for i, point in enumerate(fixed[0]["points"]):
        mean = {key: statistics.mean(run["points"][i][key] for run in fixed) for key in ("train_loss", "loss", "accuracy")}
        distance = spread([run["points"][i]["kl"] for run in fixed])
        lines.append(
            f"{point['epoch']:7.1f} {distance:>20} {mean['train_loss']:11.4f} {mean['loss']:9.4f} {mean['accuracy']:9.3f}"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and deviation."""
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else 0.0:.4f}"


def picture(kinds: dict[str, list[Found]]) -> str:
    """The distance on fresh pairs, on fixed ones, and the two losses of the latter; a line a world."""
    fresh = [
        Series(kind, [pairs / 1_000 for pairs, _ in run["curve"]], [kl for _, kl in run["curve"]], colour=colour)
        for colour, kind in enumerate(("soft", "sampled"), 1)
        for run in kinds[kind]
    ]
    fixed, losses = [], []
    for run in kinds["fixed"]:
        epochs = [point["epoch"] for point in run["points"]]
        fixed.append(Series("fixed", [0.0, *epochs], [run["start"], *(point["kl"] for point in run["points"])], colour=3))
        fixed.append(Series("kept", [run["kept_epoch"]], [run["kl"]], colour=3, style="dots"))
        for key, dashed in (("train_loss", True), ("loss", False)):
            losses.append(Series(key, epochs, [point[key] for point in run["points"]], colour=3, dashed=dashed))
    names = ("KL(pi, pi*), nats, fresh pairs", "KL(pi, pi*), nats; dots: kept", "Loss, held out; dashed: trained on")
    labels = ("pairs, thousands", "epochs", "epochs")
    charts = [
        (name, line_chart(series, name=name, x_label=label)) for name, label, series in zip(names, labels, (fresh, fixed, losses))
    ]
    return sheet(charts, ["probabilities, fresh pairs", "choices, fresh pairs", f"choices, {FIXED_PAIRS:,} pairs"])


def main(words: Sequence[str]) -> None:
    """Every way in every world."""
    arguments = parser("dpo", (__doc__ or "").splitlines()[0]).parse_args(words)
    kinds: dict[str, list[Found]] = {kind: [] for kind in KINDS}
    plan = [(seed, kind) for seed in range(arguments.seeds) for kind in KINDS]
    for (_, kind), found in each(one, plan, arguments.jobs, lambda found: f"{found['kl']:.4f}"):
        kinds[kind].append(found)
    print("\n" + table(kinds))
    write(arguments, {"kinds": kinds}, lambda _: picture(kinds))
