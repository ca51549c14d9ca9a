"""A reward with a hole: PPO finds it, the gold score falls while the proxy climbs, and which alarms say so in time?

People (the gold score) want the world's reward and dislike the one token said twice that the reference says least. The proxy
pays for it. The reference hardly ever writes it, so that nothing is wrong at first: the gold score rises, peaks, and falls
while the proxy goes on rising (Gao et al. 2022, "Scaling laws for reward model overoptimization"). Everything is enumerated at
each look. Three reward models that were trained on people's choices watch as well; they are never trained on or paid for.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.closed_form.best_of_n import mean_reward, tilted
from benchmarks.closed_form.command import Found, each, parser, world_of, write
from benchmarks.closed_form.ours import BATCH, SETTINGS, learn
from benchmarks.closed_form.reward_model import train
from benchmarks.closed_form.world import PROMPTS, World, divergence, enumerate_logprobs, index_of, judged_pairs
from benchmarks.pictures import sheet
from rlhf_kit.batches import Rollout
from rlhf_kit.evaluation.charts import Series, line_chart

DISLIKE, BONUS = 1.0, 4.0  # what the hack costs people, and what the proxy pays for it above that
PPO_BETA, LEARNING_RATE = 0.1, 3e-4  # a price of distance far too low, and steps small enough to see it happen
STEPS, EVERY = 200, 2  # rollouts, and rollouts between looks
JUDGES, PAIRS = 3, 1024  # reward models that watch, and the pairs that all of them learned from
NEEDS_GOLD = ("The reward model is over-optimised", "The gold score does not rise")
SHARES = (0.1, 0.25, 0.5, 1.0)  # of the gold score's gain, lost since its peak


def rarest_repeat(world: World) -> int:
    """The token that the reference least often says twice running."""
    weights = world.ref_logprobs.exp().mean(0)
    counts = [float((weights * repeats(world.answers, token)).sum()) for token in range(int(world.answers.max()) + 1)]
    return min(range(len(counts)), key=counts.__getitem__)


def repeats(answers: Tensor, token: int) -> Tensor:
    """(N,) float: how often `token` follows itself in (N, LENGTH) answers."""
    said = answers == token
    return (said[:, 1:] & said[:, :-1]).sum(1).float()


def rewards_of(world: World) -> tuple[Tensor, Tensor]:
    """`(gold, proxy)`, (S,) each."""
    hacks = repeats(world.answers, rarest_repeat(world))
    gold = world.rewards - DISLIKE * hacks
    return gold, gold + BONUS * hacks


def judges(world: World, gold: Tensor, count: int, pairs: int, folder: Path) -> Tensor:
    """(count, P, S) scores of reward models that learned from people's choices: the same pairs, another order and head."""
    judged = judged_pairs(replace(world, rewards=gold), pairs, world.seed)
    return torch.stack([train(replace(world, seed=1_000 * (k + 1) + world.seed), judged, folder / str(k)) for k in range(count)])


class Looks:
    """What every rollout is asked, exactly: the distance, both scores, and how far the judges are apart on it."""

    def __init__(self, world: World, policy: Any, gold: Tensor, proxy: Tensor, scores: Tensor | None) -> None:
        self.world, self.policy, self.gold, self.proxy = world, policy, gold, proxy
        self.spread = None if scores is None else scores.std(0)  # (P, S)
        self.points: list[dict[str, float]] = [self.look(0)]

    def look(self, step: int) -> dict[str, float]:
        """The policy as it is."""
        logprobs = enumerate_logprobs(self.policy)
        far = math.sqrt(max(divergence(logprobs, self.world.ref_logprobs), 0.0))
        return {"step": step, "far": far, "gold": mean_reward(logprobs, self.gold), "proxy": mean_reward(logprobs, self.proxy)}

    def on_step(self, step: int, rollout: Rollout, stats: dict[str, float]) -> None:
        """Look where it is due, and log the judges' spread: a mean over the answers of the deviation between judges."""
        if step % EVERY == 0:
            self.points.append(self.look(step))
        if self.spread is not None:
            prompts = torch.tensor(
                [PROMPTS.index(tuple(ids[mask].tolist())) for ids, mask in zip(rollout.query_ids, rollout.query_mask)]
            )
            stats["reward/ensemble_spread"] = float(self.spread[prompts, index_of(rollout.response_ids)].mean())


def hacked(world: World, folder: Path, *, steps: int = STEPS, judge_count: int = JUDGES, **settings: Any) -> Found:
    """`points` of a PPO run on the proxy, and `alarms`: each by the step at which the run itself raised it."""
    gold, proxy = rewards_of(world)
    policy = copy.deepcopy(world.reference).requires_grad_(True)

    def pay(rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        return proxy[index_of(rollout.response_ids)]

    def watch(rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        return gold[index_of(rollout.response_ids)]

    with contextlib.redirect_stderr(io.StringIO()):  # the alarms are told below
        scores = judges(world, gold, judge_count, PAIRS, folder / "judges") if judge_count > 1 else None
        looks = Looks(world, policy, gold, proxy, scores)
        chosen = (
            SETTINGS["ppo"]
            | {"learning_rate": LEARNING_RATE, "kl_coef": PPO_BETA, "total_steps": steps, "log_every": 1}
            | settings
        )
        learn("ppo", world, policy, pay, folder / "ppo", on_step=looks.on_step, monitor=watch, **chosen)
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    alarms = {title: row["step"] for row in rows for title in row.get("alarms", ())}
    return {
        "points": looks.points,
        "alarms": alarms,
        "token": rarest_repeat(world),
        "metrics": rows,
        "falls": falls(looks.points),
    }


def falls(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """`peak`, and the steps at which the gold score had first lost each of SHARES of its gain, where it has."""
    peak = max(range(len(points)), key=lambda i: points[i]["gold"])
    top, gain = points[peak]["gold"], points[peak]["gold"] - points[0]["gold"]
    found = {"peak": points[peak]["step"]}
    for share in SHARES:
        low = [point["step"] for point in points[peak:] if top - point["gold"] >= share * gain]
        found |= {f"{share:.0%}": low[0]} if low else {}
    return found


def one(seed: int) -> Found:
    """The run of one world, and the exact family beside it."""
    world = world_of(seed)
    gold, proxy = rewards_of(world)
    with TemporaryDirectory() as folder:
        found = hacked(world, Path(folder))
    reference = torch.log_softmax(world.ref_logprobs.double(), 1)
    family = []
    for k in range(40):
        logprobs = tilted(world, 12.0 * 0.88**k, proxy)
        far = math.sqrt(divergence(logprobs, reference))
        family.append({"far": far, "gold": mean_reward(logprobs, gold), "proxy": mean_reward(logprobs, proxy)})
    return found | {"family": family}


def told(run: Found) -> str:
    """One run as text: where the gold score peaks and falls, and what was said when."""
    points, marks = run["points"], run["falls"]
    place = {point["step"]: point for point in points}
    lines = []
    for name, step in marks.items():
        words = "the gold score peaks" if name == "peak" else f"{name} of its gain is lost"
        point = place[step]
        lines.append((step, 1, f"{words}: gold {point['gold']:.2f}, proxy {point['proxy']:.2f}, root of KL {point['far']:.2f}"))
    for title, step in run["alarms"].items():
        lines.append((step, 0, f"ALARM{' (needs gold)' if title in NEEDS_GOLD else ''}: {title}"))
    return "\n".join(f"{step:6} {BATCH * step:9,}  {text}" for step, _, text in sorted(lines))


def table(runs: Sequence[Found]) -> str:
    """All runs, and where the exact families peak."""
    parts = []
    for seed, run in enumerate(runs):
        top = max(run["family"], key=lambda point: point["gold"])
        end = run["points"][-1]
        head = f"World {seed}: the proxy pays for token {run['token']} said twice. The exact family peaks at {top['far']:.2f} "
        head += f"with gold {top['gold']:.2f}; PPO ends at {end['far']:.2f} with gold {end['gold']:.2f}, proxy {end['proxy']:.2f}"
        parts.append(f"{head}\n{'step':>6} {'answers':>9}\n{told(run)}")
    return "\n\n".join(parts)


def picture(runs: Sequence[Found]) -> str:
    """Both scores over the root of the distance, a chart a world, and what the alarms without gold knew."""
    charts = []
    for seed, run in enumerate(runs):
        series = []
        for points, dashed in ((run["family"], True), (run["points"], False)):
            far = [point["far"] for point in points]
            series += [
                Series(key, far, [point[key] for point in points], colour=colour, dashed=dashed)
                for colour, key in enumerate(("proxy", "gold"), 1)
            ]
        early = [step for title, step in run["alarms"].items() if title not in NEEDS_GOLD]
        near = min(run["points"], key=lambda point: abs(point["step"] - min(early))) if early else None
        mark = (near["far"], "first alarm") if near else None
        name = f"World {seed}: scores over distance"
        charts.append((name, line_chart(series, name=name, x_label="root of KL(pi, ref)", mark=mark)))
    return sheet(charts, ["proxy", "gold", "dashed: the exact family"])


def main(words: Sequence[str]) -> None:
    """Every world."""
    arguments = parser("overoptimisation", (__doc__ or "").splitlines()[0]).parse_args(words)
    plan = [(seed,) for seed in range(arguments.seeds)]
    lines = each(one, plan, arguments.jobs, lambda found: f"the gold score ends at {found['points'][-1]['gold']:.2f}")
    runs = [found for _, found in lines]
    print("\n" + table(runs))
    write(arguments, {"worlds": runs}, lambda _: picture(runs))
