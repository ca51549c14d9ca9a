"""A reward with a hole: PPO finds it, the gold score falls while the proxy climbs, and which alarms say so in time?

People (the gold score) want the world's reward and dislike the one token said twice that the reference says least. The proxy
pays for it. The reference hardly ever writes it, so that nothing is wrong at first: the gold score rises, peaks, and falls
while the proxy goes on rising (Gao et al. 2022, "Scaling laws for reward model overoptimization"). Everything is enumerated at
each look. Three reward models that were trained on people's choices watch as well; nobody is paid for what they say. A second
run is paid for the gold score itself: an alarm that it raises too says nothing about the hole.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.closed_form.best_of_n import SLOW, mean_reward, tilted
from benchmarks.closed_form.command import Found, each, parser, world_of, write
from benchmarks.closed_form.ours import learn
from benchmarks.closed_form.reward_model import train
from benchmarks.closed_form.world import PROMPTS, World, divergence, enumerate_logprobs, index_of, judged_pairs
from benchmarks.pictures import sheet
from rlhf_kit.batches import Rollout
from rlhf_kit.evaluation.charts import Series, line_chart
from rlhf_kit.health import Watch
from rlhf_kit.training.rollout_stats import correlation

DISLIKE, BONUS = 1.0, 5.0  # what the hack costs people, and what the proxy pays for it above that
# A price of distance that keeps enough of a spread for the hack to be tried.
SETTINGS: dict[str, Any] = SLOW | {"kl_coef": 0.4, "learning_rate": 1.5e-4, "total_steps": 100, "log_every": 1}
JUDGES, PAIRS = 3, 1024  # reward models that watch, and the pairs that all of them learned from
PAID = ("proxy", "gold")
NO_SENSE = ("Answers are cut off",)  # answers of this world have four tokens and no end token
PART = "Reward and gold score part"
PART_LEARNED = "Reward and the mean of the three reward models part"  # the same rule, of a judge that people can have
NEEDS_JUDGE = (PART, PART_LEARNED, "The reward model is over-optimised", "The gold score does not rise")
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
        self.judged = None if scores is None else (scores.mean(0), scores.std(0))  # (P, S) each
        self.points: list[dict[str, float]] = [self.look(0)]

    def look(self, step: int) -> dict[str, float]:
        """The policy as it is."""
        logprobs = enumerate_logprobs(self.policy)
        far = math.sqrt(max(divergence(logprobs, self.world.ref_logprobs), 0.0))
        return {"step": step, "far": far, "gold": mean_reward(logprobs, self.gold), "proxy": mean_reward(logprobs, self.proxy)}

    def on_step(self, step: int, rollout: Rollout, stats: dict[str, float]) -> None:
        """Look; log how far the judges are apart on an answer, and how their mean goes along with the reward."""
        self.points.append(self.look(step))
        if self.judged is not None:
            prompts = torch.tensor(
                [PROMPTS.index(tuple(ids[mask].tolist())) for ids, mask in zip(rollout.query_ids, rollout.query_mask)]
            )
            mean, spread = (scores[prompts, index_of(rollout.response_ids)] for scores in self.judged)
            stats["reward/ensemble_spread"] = float(spread.mean())
            assert rollout.scores is not None
            stats["judges/reward_corr"] = correlation(mean.double(), rollout.scores.double())


def watched(world: World, paid: str, folder: Path, *, judge_count: int = JUDGES, **settings: Any) -> Found:
    """`points` of a PPO run that is paid for `paid` (one of PAID), and `alarms`: each by the step at which the run raised it."""
    gold, proxy = rewards_of(world)
    pays = proxy if paid == "proxy" else gold
    policy = copy.deepcopy(world.reference).requires_grad_(True)

    def pay(rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        return pays[index_of(rollout.response_ids)]

    def watch(rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        return gold[index_of(rollout.response_ids)]

    scores = judges(world, gold, judge_count, PAIRS, folder / "judges") if judge_count > 1 else None
    looks = Looks(world, policy, gold, proxy, scores)
    learn("ppo", world, policy, pay, folder / "ppo", on_step=looks.on_step, monitor=watch, **(SETTINGS | settings))
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    alarms = {title: row["step"] for row in rows for title in row.get("alarms", ()) if title not in NO_SENSE}
    if scores is not None and (step := parted([row | {"eval/gold_reward_corr": row["judges/reward_corr"]} for row in rows])):
        alarms[PART_LEARNED] = step
    return {"points": looks.points, "alarms": alarms, "metrics": rows, "falls": falls(looks.points)}


def parted(rows: list[dict[str, Any]]) -> int | None:
    """The step at which a run with these reports is first told that its two judges part, if ever."""
    watch = Watch(len(rows))
    return next((row["step"] for row in rows if any(note.title == PART for note in watch.add(row))), None)


def falls(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """`peak`, and the steps at which the gold score had first lost each of SHARES of its gain, where it has."""
    peak = max(range(len(points)), key=lambda i: points[i]["gold"])
    top, gain = points[peak]["gold"], points[peak]["gold"] - points[0]["gold"]
    found = {"peak": points[peak]["step"]}
    for share in SHARES:
        low = [point["step"] for point in points[peak:] if top - point["gold"] >= share * gain]
        found |= {f"{share:.0%}": low[0]} if low else {}
    return found


def one(seed: int, paid: str) -> Found:
    """The run of one world that is paid for `paid`, and the exact family beside it."""
    world = world_of(seed)
    with TemporaryDirectory() as folder:
        found = watched(world, paid, Path(folder))
    del found["metrics"]
    return found | {"token": rarest_repeat(world), "family": family(world)}


def family(world: World) -> list[dict[str, float]]:
    """What the best policies for the proxy at every distance are worth, from near to far."""
    gold, proxy = rewards_of(world)
    reference = torch.log_softmax(world.ref_logprobs.double(), 1)
    points = []
    for k in range(48):
        logprobs = tilted(world, 12.0 * 0.9**k, proxy)
        far = math.sqrt(divergence(logprobs, reference))
        points.append({"far": far, "gold": mean_reward(logprobs, gold), "proxy": mean_reward(logprobs, proxy)})
    return points


def told(run: Found) -> str:
    """One run as text: where the gold score peaks and falls, and what was said when."""
    place = {point["step"]: point for point in run["points"]}
    lines = []
    for name, step in run["falls"].items():
        words = "the gold score peaks" if name == "peak" else f"the gold score has lost {name} of its gain"
        point = place[step]
        lines.append((step, 1, f"{words}: gold {point['gold']:.2f}, proxy {point['proxy']:.2f}, root of KL {point['far']:.2f}"))
    for title, step in run["alarms"].items():
        lines.append((step, 0, f"ALARM{' (needs a second judge)' if title in NEEDS_JUDGE else ''}: {title}"))
    return "\n".join(f"{step:6} {text}" for step, _, text in sorted(lines))


def table(runs: dict[str, list[Found]]) -> str:
    """All runs, and where the exact families peak."""
    parts = []
    for seed, pair in enumerate(zip(*(runs[paid] for paid in PAID))):
        top = max(pair[0]["family"], key=lambda point: point["gold"])
        parts.append(
            f"World {seed}: the proxy pays for token {pair[0]['token']} said twice. The best policies for it have their peak "
            f"at root of KL {top['far']:.2f}, gold {top['gold']:.2f}"
        )
        for paid, run in zip(PAID, pair):
            end = run["points"][-1]
            head = (
                f"PPO paid for the {paid} score, to root of KL {end['far']:.2f}, gold {end['gold']:.2f}, proxy {end['proxy']:.2f}"
            )
            parts.append(f"{head}\n  step\n{told(run)}")
    return "\n\n".join(parts)


def picture(runs: dict[str, list[Found]]) -> str:
    """Both scores over the root of the distance and over rollouts, two charts a world, with the first alarm."""
    charts = []
    for seed, (run, honest) in enumerate(zip(*(runs[paid] for paid in PAID))):
        early = run["alarms"].values()
        marks = {key: (run["points"][min(early)][key], "first alarm") for key in ("far", "step")} if early else {}
        for key, other, label, name in (
            ("far", run["family"], "root of KL(pi, ref)", f"World {seed}; dashed: the best for the proxy"),
            ("step", honest["points"], "rollouts", f"World {seed}; dashed: paid for the gold score"),
        ):
            series = [
                Series(score, [p[key] for p in points], [p[score] for p in points], colour=colour, dashed=points is other)
                for points in (other, run["points"])
                for colour, score in enumerate(PAID, 1)
            ]
            charts.append((name, line_chart(series, name=name, x_label=label, mark=marks.get(key))))
    return sheet(charts, PAID, columns=2)


def main(words: Sequence[str]) -> None:
    """Both runs in every world."""
    arguments = parser("overoptimisation", (__doc__ or "").splitlines()[0]).parse_args(words)
    runs: dict[str, list[Found]] = {paid: [] for paid in PAID}
    plan = [(seed, paid) for seed in range(arguments.seeds) for paid in PAID]
    for (_, paid), found in each(one, plan, arguments.jobs, lambda found: f"gold {found['points'][-1]['gold']:.2f} at the end"):
        runs[paid].append(found)
    print("\n" + table(runs))
    write(arguments, {"runs": runs}, lambda _: picture(runs))
