"""How much of a known preference does the reward model learn from how many pairs, and does its confidence mean what it says?

Pairs of the reference's answers, judged as Bradley and Terry say, train a scalar head on the reference's body with the kit's
loss. What comes out is asked about every pair of answers there is, each weighed by how likely the reference is to write it,
so that neither accuracy nor calibration has an error of sampling. No model can be right more often than the judges
are consistent: that is the ceiling.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.closed_form.command import Found, each, parser, world_of, write
from benchmarks.closed_form.ours import TOKENIZER, WorldPairs, make_critic, pair_config
from benchmarks.closed_form.world import PROMPTS, Pairs, World, judged_pairs
from benchmarks.pictures import sheet
from rlhf_kit.evaluation.charts import Guide, Series, line_chart
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import fit
from rlhf_kit.training.stages import RewardModelling
from rlhf_kit.wording import percent

SIZES = (256, 1024, 4096, 16384)
HELD_OUT = 8  # one pair in eight chooses when to stop
BATCH, LEARNING_RATE = 64, 1e-3
EPOCHS, LEAST_STEPS = 3, 100
BINS = 20  # of confidence, from 1/2 to 1


def train(world: World, pairs: Pairs, folder: Path) -> Tensor:
    """(P, S) scores, 0 on average under the reference, of a reward model that learned from `pairs`.

    Its first head and the order of the pairs are of the world's seed.
    """
    count = len(pairs.prompts) // HELD_OUT
    held_out, rest = pairs.rows(slice(0, count)), pairs.rows(slice(count, None))
    model = make_critic(world).requires_grad_(True)
    torch.nn.init.normal_(model.score.weight, std=0.02, generator=torch.Generator().manual_seed(world.seed))
    batches = WorldPairs(world, rest, BATCH)
    steps = max(LEAST_STEPS, EPOCHS * batches.steps_per_epoch)
    config = pair_config(
        world, folder, batch_size=BATCH, learning_rate=LEARNING_RATE, max_steps=steps, eval_every=steps // 20, keep_best=True
    )
    fit(
        RewardModelling(model),
        batches,
        config,
        make_accelerator(),
        tokenizer=TOKENIZER,
        eval_batches=WorldPairs(world, held_out, count),
    )
    scores = score_all(world, model)
    return scores - (world.ref_logprobs.exp() * scores).sum(1).mean()


@torch.no_grad()
def score_all(world: World, model: Any) -> Tensor:
    """(P, S) the scores of every answer to every prompt."""
    rows = []
    for prompt in PROMPTS:
        ids = torch.cat([torch.tensor(prompt).expand(len(world.answers), -1), world.answers], 1)
        rows.append(torch.cat([scalar_scores(model, part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(512)]))
    return torch.stack(rows)


def exact(world: World, scores: Tensor, bins: int = BINS) -> dict[str, float]:
    """Accuracy, its ceiling and the calibration of (P, S) scores over all pairs that the reference may write, in float64.

    A pair is two answers drawn independently, the model's confidence in its favourite is `sigmoid(|gap|)`, and the chance
    that people agree is Bradley and Terry's. `ece` is the mean over `bins` bins of equal width, weighed by their mass, of the
    gap between the two; a tie counts half.
    """
    weights, rewards = torch.softmax(world.ref_logprobs.double(), 1), world.rewards.double()
    confident, agreed = (torch.zeros(bins, dtype=torch.double) for _ in range(2))
    best = 0.0
    for weight, score in zip(weights, scores.double()):
        for part in torch.arange(len(rewards)).split(128):
            mass = weight[part, None] * weight
            gap = score[part, None] - score
            truth = rewards[part, None] - rewards
            best += float((mass * torch.sigmoid(truth.abs())).sum())
            confidence = torch.sigmoid(gap.abs())
            place = ((2 * bins) * (confidence - 0.5)).long().clamp_(max=bins - 1).flatten()
            agreed += torch.bincount(place, (mass * torch.sigmoid(truth * gap.sign())).flatten(), bins)
            confident += torch.bincount(place, (mass * confidence).flatten(), bins)
    agreed, confident = agreed / len(weights), confident / len(weights)
    return {
        "accuracy": float(agreed.sum()),
        "ceiling": best / len(weights),
        "ece": float((agreed - confident).abs().sum()),
    }


def one(seed: int, size: int) -> Found:
    """`accuracy, ceiling, ece` of a reward model that saw `size` pairs of world `seed`."""
    world = world_of(seed)
    with TemporaryDirectory() as folder:
        return exact(world, train(world, judged_pairs(world, size, seed), Path(folder)))


def table(sizes: dict[int, list[Found]]) -> str:
    """Means and deviations over the worlds."""
    ceilings = [run["ceiling"] for run in next(iter(sizes.values()))]
    lines = [f"no model can be right more often than {statistics.mean(ceilings):.4f} ({len(ceilings)} worlds)"]
    lines.append(f"{'pairs':>7} {'accuracy':>18} {'of what can be known':>21} {'ECE':>18}")
    for size, runs in sizes.items():
        share = statistics.mean((run["accuracy"] - 0.5) / (run["ceiling"] - 0.5) for run in runs)
        lines.append(f"{size:7,} {spread(runs, 'accuracy')} {share:21.1%} {spread(runs, 'ece')}")
    return "\n".join(lines)


def spread(runs: Sequence[Found], key: str) -> str:
    """Mean and deviation."""
    values = [run[key] for run in runs]
    return f"{statistics.mean(values):8.4f} +- {statistics.stdev(values) if len(values) > 1 else 0.0:.4f}"


def picture(sizes: dict[int, list[Found]]) -> str:
    """Accuracy and calibration over the number of pairs, a line a world."""
    doublings = [size.bit_length() - 1 for size in sizes]
    runs = list(zip(*sizes.values()))
    ceiling = statistics.mean(run[0]["ceiling"] for run in runs)
    charts = []
    for key, title, guide in (
        ("accuracy", "Accuracy on all pairs", Guide(ceiling, ceiling, f"ceiling {percent(ceiling)}, mean of the worlds")),
        ("ece", "Expected calibration error", Guide(0.0, 0.0, "")),
    ):
        lines = [Series("a world", doublings, [found[key] for found in run], style="both") for run in runs]
        charts.append((title, line_chart(lines, name=title, x_label="pairs, as a power of 2", guide=guide)))
    return sheet(charts, ["a world each"], columns=2)


def main(words: Sequence[str]) -> None:
    """Train at every size in every world."""
    arguments = parser("reward_model", (__doc__ or "").splitlines()[0]).parse_args(words)
    sizes: dict[int, list[Found]] = {size: [] for size in SIZES}
    plan = [(seed, size) for seed in range(arguments.seeds) for size in SIZES]
    told = each(one, plan, arguments.jobs, lambda found: f"accuracy {found['accuracy']:.4f}, ECE {found['ece']:.4f}")
    for (_, size), found in told:
        sizes[size].append(found)
    print("\n" + table(sizes))
    write(arguments, {"sizes": sizes}, lambda _: picture(sizes))
