"""What do the best of n answers cost in KL, exactly, and what does PPO get for the same price?

`log n - (n - 1) / n` is the KL of best-of-n where no two answers score the same. Here they are enumerated, ties and all, and
ties make it less. The reward of best-of-n stands beside that of a PPO run when it has gone as far, and beside the most that
any policy can have at that distance: the tilted family `ref exp(r / t) / Z`.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.closed_form.command import Found, each, parser, world_of, write
from benchmarks.closed_form.ours import SETTINGS, learn
from benchmarks.closed_form.world import World, divergence, enumerate_logprobs
from benchmarks.pictures import sheet
from rlhf_kit.batches import Rollout
from rlhf_kit.evaluation.charts import Series, line_chart

DRAWS = (2, 4, 8, 16)
# PPO in steps small enough to see its path, by rollouts large enough to show what is rare.
SLOW: dict[str, Any] = SETTINGS["ppo"] | {
    "learning_rate": 3e-4,
    "schedule": "constant",
    "batch_size": 256,
    "micro_batch_size": 256,
}
PPO: dict[str, Any] = {"kl_coef": 0.15, "total_steps": 24}  # so that the run passes the distance of best of 16


def best_of(logprobs: Tensor, scores: Tensor, n: int) -> Tensor:
    """(S,) log-probabilities of the best of `n` independent answers; among equal scores each is as likely as it was drawn.

    `p(y) (F(r)^n - F(r-)^n) / (F(r) - F(r-))`, where F is the chance of a score of at most r, and F(r-) of a lower one.

    Args:
        logprobs, scores: (S,) of every answer. n: draws.
    """
    levels, place = scores.unique(return_inverse=True)
    masses = logprobs.new_zeros(len(levels)).index_add(0, place, logprobs.exp())
    below = masses.cumsum(0) - masses
    # (F^n - G^n) / (F - G) as the sum that it is: no difference of near numbers where a level is rare
    gain = torch.stack([(below + masses) ** k * below ** (n - 1 - k) for k in range(n)]).sum(0).log()
    return logprobs + gain[place]


def tilted(world: World, temperature: float, rewards: Tensor | None = None) -> Tensor:
    """(P, S) log-probabilities, float64, of `ref exp(r / temperature) / Z`: the best policy for its distance."""
    rewards = world.rewards if rewards is None else rewards
    return torch.log_softmax(world.ref_logprobs.double() + rewards.double() / temperature, 1)


def mean_reward(logprobs: Tensor, rewards: Tensor) -> float:
    """E[r] of (P, S) log-probabilities, mean over the prompts."""
    return float((logprobs.double().exp() * rewards.double()).sum(1).mean())


def best_at(world: World, kl: float) -> float:
    """The most reward at a distance of `kl` nats, by bisection of the temperature."""
    reference = torch.log_softmax(world.ref_logprobs.double(), 1)
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if divergence(tilted(world, middle), reference) > kl else (low, middle)
    return mean_reward(tilted(world, low), world.rewards)


def path(world: World, folder: Path) -> list[tuple[float, float]]:
    """`(KL from the reference, reward)` of PPO at a small price of distance as it learns, exactly."""
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    points = [(0.0, mean_reward(world.ref_logprobs, world.rewards))]

    def score(rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        return world.reward_of(rollout.response_ids)

    def look(*_: Any) -> None:
        logprobs = enumerate_logprobs(policy)
        points.append((divergence(logprobs, world.ref_logprobs), mean_reward(logprobs, world.rewards)))

    learn("ppo", world, policy, score, folder, on_step=look, **(SLOW | PPO))
    return points


def at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The reward where a path first reaches `kl`, between its points by a straight line; None where it does not."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if before <= kl <= after:
            return low + (high - low) * (kl - before) / max(after - before, 1e-12)
    return None


def one(seed: int) -> Found:
    """All figures of one world."""
    world = world_of(seed)
    reference = torch.log_softmax(world.ref_logprobs.double(), 1)
    with TemporaryDirectory() as folder:
        points = path(world, Path(folder))
    rows = []
    for n in DRAWS:
        chosen = torch.stack([best_of(row, world.rewards.double(), n) for row in reference])
        kl = divergence(chosen, reference)
        row = {"n": n, "kl": kl, "reward": mean_reward(chosen, world.rewards), "best": best_at(world, kl), "ppo": at(points, kl)}
        rows.append(row)
    frontier = [tilted(world, 0.15 * 1.2**k) for k in range(24)]
    curve = [(divergence(logprobs, reference), mean_reward(logprobs, world.rewards)) for logprobs in frontier]
    return {"rows": rows, "path": points, "frontier": sorted(curve)}


def table(runs: Sequence[Found]) -> str:
    """Means over the worlds."""
    lines = [f"mean of {len(runs)} worlds; the reward is 0 under the reference, with a deviation of 1"]
    lines.append(f"{'n':>3} {'KL, nats':>10} {'log n - (n-1)/n':>16} {'best of n':>10} {'PPO as far':>11} {'any policy':>11}")
    for i, n in enumerate(DRAWS):
        found = [run["rows"][i] for run in runs]
        mean = {key: statistics.mean(row[key] for row in found) for key in ("kl", "reward", "best")}
        reached = [row["ppo"] for row in found if row["ppo"] is not None]
        ppo = f"{statistics.mean(reached):11.3f}" if len(reached) == len(found) else f"{'':>11}"
        formula = math.log(n) - (n - 1) / n
        lines.append(f"{n:3} {mean['kl']:10.6f} {formula:16.6f} {mean['reward']:10.3f} {ppo} {mean['best']:11.3f}")
    return "\n".join(lines)


def picture(runs: Sequence[Found]) -> str:
    """Reward over the root of the distance, a chart a world."""
    charts = []
    for seed, run in enumerate(runs):
        rows = run["rows"]
        far = 1.15 * math.sqrt(rows[-1]["kl"])
        best_of_n = [(row["kl"], row["reward"]) for row in rows]
        lines = ((run["frontier"], 3, True, "line"), (run["path"], 1, False, "line"), (best_of_n, 2, False, "both"))
        series = []
        for points, colour, dashed, style in lines:
            shown = [(math.sqrt(max(kl, 0.0)), reward) for kl, reward in points if kl <= far**2]
            x, y = [x for x, _ in shown], [y for _, y in shown]
            series.append(Series("reward", x, y, colour=colour, dashed=dashed, style=style))
        charts.append(
            (f"World {seed}: reward", line_chart(series, name=f"reward in world {seed}", x_label="root of KL(pi, ref)"))
        )
    return sheet(charts, ["PPO", "best of 2, 4, 8, 16", "dashed: any policy"])


def main(words: Sequence[str]) -> None:
    """Every world."""
    arguments = parser("best_of_n", (__doc__ or "").splitlines()[0]).parse_args(words)
    plan = [(seed,) for seed in range(arguments.seeds)]
    told = each(one, plan, arguments.jobs, lambda found: f"best of {DRAWS[-1]} is {found['rows'][-1]['kl']:.4f} nats away")
    runs = [found for _, found in told]
    print("\n" + table(runs))
    write(arguments, {"worlds": runs}, lambda _: picture(runs))
