"""What a practitioner would check first in the curves of a run, as notes in plain words.

Thresholds are those of a healthy PPO run (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", and Gao
et al. 2022 for over-optimisation). A note is a reason to look, not a verdict.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rlhf_kit.evaluation.charts import THIN, count, number, percent
from rlhf_kit.evaluation.runs import Run, StageRun, is_number


class Note(NamedTuple):
    """One check: whether it passed, what it looked at, and what was seen."""

    ok: bool
    title: str
    text: str


def health_notes(run: Run) -> list[Note]:
    """The checks that the run's metrics allow, the failed ones first."""
    notes = []
    for stage in run.stages:
        notes += _finite(stage)
        notes += _online(stage) if stage.kind == "online" else _fit(stage)
    notes += _ceiling(run)
    return sorted(notes, key=lambda note: note.ok)


def _late(values: list[float]) -> float:
    """The mean of the last fifth."""
    tail = values[-max(1, len(values) // 5) :]
    return sum(tail) / len(tail)


def _finite(stage: StageRun) -> list[Note]:
    """Numbers that are not finite, as they are or as the metrics file writes them (null, with a count `nonfinite`)."""
    for row in stage.metrics:
        for key, value in row.items():
            if (isinstance(value, float) and not math.isfinite(value)) or (value is None and row.get("nonfinite")):
                text = f"{key} is {value or 'not a number'} at step {count(row['step'])}: everything after it is suspect."
                return [Note(False, f"{stage.title}: a number is not finite", text)]
    return []


def _fit(stage: StageRun) -> list[Note]:
    steps, losses = stage.curve("eval/loss")
    if len(losses) < 3:
        return []
    best = min(losses)
    at = steps[losses.index(best)]
    if losses[-1] > 1.02 * best:
        text = f"Held-out loss was {number(best)} at step {count(at)} and ended at {number(losses[-1])}: "
        text += "train shorter, or on more data."
        return [Note(False, f"{stage.title} overfits", text)]
    return [
        Note(True, f"{stage.title} does not overfit", f"Held-out loss ended at {number(losses[-1])}, its best is {number(best)}.")
    ]


def _ceiling(run: Run) -> list[Note]:
    accuracy, ceiling = run.find("accuracy"), run.find("bayes_accuracy")
    if (
        not is_number(ceiling)
        or not isinstance(accuracy, dict)
        or not all(is_number(accuracy.get(k)) for k in ("estimate", "low"))
    ):
        return []
    if accuracy["low"] > ceiling:
        text = f"{percent(accuracy['estimate'])} against {percent(ceiling)}: test pairs may have leaked into training."
        return [Note(False, "Reward model beats the best possible accuracy", text)]
    return []


def _online(stage: StageRun) -> list[Note]:
    notes = []
    _, eos = stage.curve("response/eos_rate")
    if eos:
        ok = _late(eos) >= 0.95
        advice = "" if ok else " Allow more tokens, or raise the penalty for not stopping."
        title = "Answers end by themselves" if ok else "Answers are cut off"
        notes.append(Note(ok, title, f"{percent(_late(eos))} stop with an end token; below 95{THIN}% is an alarm.{advice}"))
    steps, kl = stage.curve("objective/kl")
    if kl:
        tail = kl[-max(1, len(kl) // 3) :]
        negative = sum(value < 0 for value in tail) / len(tail)
        ok = negative <= 2 / 3
        text = f"{number(_late(kl))} nats at the end." if ok else f"It is negative in {percent(negative)} of the last steps. "
        text += "" if ok else "KL cannot be: sampling and training do not score the same distribution."
        notes.append(Note(ok, "KL is a distance" if ok else "KL is persistently negative", text))
        if steps[0] <= 1 and abs(kl[0]) > 0.1:
            notes.append(
                Note(False, "KL does not start at zero", f"{number(kl[0])} at step {count(steps[0])}: is it the same model?")
            )
    notes += _within(
        stage, "val/ratio", 0.98, 1.02, "The ratio stays near 1", "The ratio is far from 1", "lower the learning rate"
    )
    notes += _within(
        stage, "policy/approxkl_avg", -math.inf, 0.02, "Updates are small", "Updates are large", "lower the learning rate"
    )
    notes += _within(stage, "policy/clipfrac_avg", -math.inf, 0.25, "Clipping is rare", "Clipping is common", "make fewer passes")
    _, explained = stage.curve("val/explained_variance")
    if explained:
        ok = _late(explained) >= 0.5
        title = "The critic explains the returns" if ok else "The critic explains little"
        notes.append(Note(ok, title, f"Explained variance {number(_late(explained))} at the end; above 0.5 is healthy."))
    return notes + _overoptimised(stage)


def _within(stage: StageRun, key: str, low: float, high: float, good: str, bad: str, mend: str) -> list[Note]:
    _, values = stage.curve(key)
    if not values:
        return []
    outside = [value for value in values if not low <= value <= high]
    share = len(outside) / len(values)
    if share <= 0.05:
        return [Note(True, good, f"{key} ends at {number(_late(values))}.")]
    worst = max(outside, key=lambda value: abs(value - 1) if key == "val/ratio" else value)
    return [Note(False, bad, f"{key} leaves its healthy range in {percent(share)} of the steps, up to {number(worst)}: {mend}.")]


def _overoptimised(stage: StageRun) -> list[Note]:
    """The proxy goes on rising while the gold score has passed its peak (Gao et al. 2022)."""
    steps, gold = stage.curve("eval/gold_score")
    _, proxy = stage.curve("objective/scores")
    if len(gold) < 10 or len(proxy) < 10:
        return []
    width = max(1, len(gold) // 10)
    means = [sum(gold[i : i + width]) / width for i in range(0, len(gold) - width + 1)]
    peak = max(range(len(means)), key=means.__getitem__)
    rise, fall = means[peak] - means[0], means[peak] - means[-1]
    if rise > 0 and fall > 0.25 * rise and _late(proxy) >= proxy[min(len(proxy) - 1, peak)]:
        text = (
            f"The gold score peaked near step {count(steps[peak + width // 2])} and has lost {percent(fall / rise)} of its gain "
        )
        text += "since, while the reward model\u2019s score kept rising: stop earlier, or raise kl_coef."
        return [Note(False, "The reward model is over-optimised", text)]
    if rise > 0:
        return [Note(True, "The gold score rises with the proxy", f"From {number(means[0])} to {number(means[-1])}.")]
    return [
        Note(
            False,
            "The gold score does not rise",
            f"From {number(means[0])} to {number(means[-1])}: the proxy does not measure it.",
        )
    ]
