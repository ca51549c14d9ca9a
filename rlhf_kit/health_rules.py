"""The rules of `health.py`: what a practitioner would check first in the curves of an online run.

A rule reads curves and gives notes in plain words. Ranges are those of a healthy PPO run (Huang et al. 2024, "The N+
Implementation Details of RLHF with PPO"); every other threshold has its source or its reason beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from rlhf_kit.wording import MINUS, THIN, count, number, percent

TREND = 10  # reports from which a trend can be told from noise


class Note(NamedTuple):
    """One check: whether it passed, what it looked at, and what was seen."""

    ok: bool
    title: str
    text: str

    def plain(self) -> str:
        """The note as one line of ASCII, for a terminal or a log."""
        return f"{self.title}: {self.text}".replace(THIN, "").replace(MINUS, "-").replace("\u2019", "'")


Curve = Callable[[str], tuple[list[float], list[float]]]  # steps and finite values of a metric, by step; empty without it
Rule = Callable[[Curve], list[Note]]


# ---- reading a curve --------------------------------------------------------------------------------------------------


def _late(values: list[float]) -> float:
    """The mean of the last fifth: a level."""
    tail = values[-max(1, len(values) // 5) :]
    return sum(tail) / len(tail)


def _ends(values: list[float], least: int = 2) -> tuple[float, float]:
    """The means at the start and at the end, of a tenth of the reports but `least` to 10, so that a late turn is seen soon."""
    width = min(max(len(values) // 10, least), 10)
    return sum(values[:width]) / width, sum(values[-width:]) / width


def _rises(curve: Curve, key: str = "objective/scores") -> bool:
    _, values = curve(key)
    if len(values) < TREND:
        return False
    start, end = _ends(values)
    return end > start


# ---- the first steps, and the size of the updates ---------------------------------------------------------------------


def _starts_at_the_reference(curve: Curve) -> list[Note]:
    """At the first rollout the policy is the reference: its KL is 0, but for what bf16 rounds in an answer's sum."""
    steps, kl = curve("objective/kl")
    if not kl or steps[0] > 1:
        return []
    if abs(kl[0]) <= 0.1:
        return [Note(True, "KL starts at zero", f"{number(kl[0])} nats at the first step.")]
    return [Note(False, "KL does not start at zero", f"{number(kl[0])} at step {count(steps[0])}: is it the same model?")]


def _first_ratio(curve: Curve) -> list[Note]:
    """Before a rollout's first optimizer step every ratio is 1. 0.02 is the half-width of the ratio's healthy range, and more
    than bf16 rounds."""
    steps, approxkl = curve("policy/approxkl_first")
    if not approxkl:
        return []
    worst = max(range(len(approxkl)), key=approxkl.__getitem__)
    off = math.sqrt(2 * approxkl[worst])  # approxkl is half the mean square of the log-ratio
    if off <= 0.02:
        return [Note(True, "The first ratio is 1", f"Before a rollout\u2019s first update it is off by at most {number(off)}.")]
    text = f"It is off by {number(off)} before any update, at step {count(steps[worst])}: two forwards of the same tokens "
    return [Note(False, "The first ratio is not 1", text + "disagree. Is dropout on, or does a layer depend on the batch?")]


def _sampler_agrees(curve: Curve) -> list[Note]:
    """bf16 rounds a log-probability by about 0.01; what is several times as far comes from another distribution."""
    steps, gap = curve("val/sampler_logprob_gap")
    if not gap:
        return []
    worst = max(range(len(gap)), key=gap.__getitem__)
    if gap[worst] <= 0.05:
        return [Note(True, "Sampling and training agree", f"Log-probabilities differ by at most {number(gap[worst])} a token.")]
    text = f"Their log-probabilities differ by {number(gap[worst])} a token at step {count(steps[worst])}: "
    return [Note(False, "Sampling and training disagree", text + "check temperature, padding and precision of the sampler.")]


def _within(curve: Curve, key: str, low: float, high: float, good: str, bad: str, mend: str) -> list[Note]:
    """Outside of [low, high] in more than one report of twenty, and in three at least: one wild rollout is no alarm."""
    _, values = curve(key)
    if not values:
        return []
    outside = [value for value in values if not low <= value <= high]
    share = len(outside) / len(values)
    if share <= 0.05 or len(outside) < 3:
        return [Note(True, good, f"{key} ends at {number(_late(values))}.")]
    worst = max(outside, key=lambda value: max(low - value, value - high))
    return [Note(False, bad, f"{key} leaves its healthy range in {percent(share)} of the steps, up to {number(worst)}: {mend}.")]


def _ratio(curve: Curve) -> list[Note]:
    words = "The ratio stays near 1", "The ratio is far from 1", "lower the learning rate"
    return _within(curve, "val/ratio", 0.98, 1.02, *words)


def _step_size(curve: Curve) -> list[Note]:
    return _within(
        curve, "policy/approxkl_avg", -math.inf, 0.02, "Updates are small", "Updates are large", "lower the learning rate"
    )


def _clipping(curve: Curve) -> list[Note]:
    return _within(curve, "policy/clipfrac_avg", -math.inf, 0.25, "Clipping is rare", "Clipping is common", "make fewer passes")


def _kl_is_a_distance(curve: Curve) -> list[Note]:
    """The estimate is noisy near 0; two thirds of the last third below it, and their mean, is more than noise."""
    _, kl = curve("objective/kl")
    if len(kl) < TREND:
        return []
    tail = kl[-(len(kl) // 3) :]
    negative = sum(value < 0 for value in tail) / len(tail)
    if negative <= 2 / 3 or sum(tail) >= 0:
        return [Note(True, "KL is a distance", f"{number(_late(kl))} nats at the end.")]
    text = f"It is negative in {percent(negative)} of the last steps. "
    text += "KL cannot be: sampling and training do not score the same distribution."
    return [Note(False, "KL is persistently negative", text)]


# ---- signs of a reward that is gamed, seen without a gold score -------------------------------------------------------


def _kl_flattens(curve: Curve) -> list[Note]:
    """More than half of the distance gained in the last third is speeding up, where a healthy run slows down.

    10 nats is what the best of 60,000 samples is away from the reference (log n - (n - 1) / n): few reward models are
    right so far out (Gao et al. 2022).
    """
    _, kl = curve("objective/kl")
    if len(kl) < 2 * TREND:
        return []
    start, end = _ends(kl)
    before = kl[len(kl) * 2 // 3]
    if end > 10 and end - before > 0.5 * (end - start):
        text = f"{number(end)} nats, of which {number(end - before)} in the last third, and faster than before: "
        return [Note(False, "KL runs away", text + "raise kl_coef, or stop earlier.")]
    return [
        Note(True, "KL does not run away", f"{number(end)} nats at the end, {number(end - before)} of them in the last third.")
    ]


def _answers_stay_diverse(curve: Curve) -> list[Note]:
    """A third of the different pairs of tokens gone while the score rises: the policy repeats what pays.

    Distinct-n (Li et al. 2016) is a share of all pairs and falls as answers grow, at most as fast as they do: so much is
    allowed. A third more is beyond a narrower style.
    """
    _, distinct = curve("response/distinct_2")
    _, lengths = curve("response/length")
    if len(distinct) < TREND or len(lengths) < TREND:
        return []
    (start, end), (before, after) = _ends(distinct), _ends(lengths)
    seen = f"Different pairs of tokens went from {percent(start)} to {percent(end)} of all"
    if end * max(after / before, 1.0) < 2 / 3 * start and _rises(curve):
        return [Note(False, "Answers become alike while the score rises", f"{seen}: read some; a repeated phrase may pay.")]
    return [Note(True, "Answers stay diverse", f"{seen}.")]


def _length_does_not_pay(curve: Curve) -> list[Note]:
    """Half a correlation is a quarter of the variance. Reward models pay for length (Singhal et al. 2023, "A Long Way to Go").

    An alarm where the correlation came with training, or where the policy follows it: answers half as long again. Five
    rollouts of 48 answers have a standard error of 0.06, so that a rise of 0.3 is no noise.
    """
    _, found = curve("response/length_reward_corr")
    _, lengths = curve("response/length")
    if len(found) < TREND or len(lengths) < TREND:
        return []
    (start, end), (before, after) = _ends(found, 5), _ends(lengths)
    seen = f"The correlation of length and score went from {number(start)} to {number(end)}, "
    seen += f"the length from {number(before)} to {number(after)} tokens"
    rose = abs(end) >= 0.5 and abs(end) - abs(start) >= 0.3
    if rose or (end >= 0.5 and after >= 1.5 * before):
        return [Note(False, "Length decides the score", f"{seen}: compare at equal length before you believe the score.")]
    return [Note(True, "Length does not decide the score", f"{seen}.")]


def _scores_stay_together(curve: Curve) -> list[Note]:
    """A trick that some answers have found splits the scores in two. Two halves d apart have the deviation
    sqrt(s^2 + d^2 / 4), which is double at d = 3.5 s: groups that do not overlap.

    While few have found it only the best score shows it. The best of 1,000 normal scores is 4 deviations above the mean in
    one report of thirty; half as far again as at the start leaves out scores that always had such a tail.
    """
    steps, spread = curve("objective/scores_std")
    _, best = curve("objective/scores_max")
    _, means = curve("objective/scores")
    if len(spread) < TREND or not len(best) == len(means) == len(spread):
        return []
    title = "Some answers score far above the rest"
    start, _ = _ends(spread)
    gaps = [top - mean for top, mean in zip(best, means)]
    usual, _ = _ends(gaps)
    alone = [i for i, gap in enumerate(gaps) if gap > max(4 * start, 4 * spread[i], 1.5 * usual)]
    if start > 0 and len(alone) >= 3 and len(alone) > len(gaps) / 20:  # one outlier is no trick
        far = gaps[alone[-1]] / max(start, spread[alone[-1]])
        seen = (
            f"In {count(len(alone))} reports, last at step {count(steps[alone[-1]])}, the best is {number(far)} deviations above "
        )
        return [Note(False, title, f"{seen}the mean: read the best ones; they may have found a trick.")]
    pairs = [(a + b) / 2 for a, b in itertools.pairwise(spread)]  # two reports: one outlier among the answers is no trick
    widest = max(range(len(pairs)), key=pairs.__getitem__)
    higher = best[widest] > max(best[: len(best) // 10 + 1])  # or it is the highest score there is, reached more often
    seen = f"The deviation of the scores was {number(start)} at first and {number(pairs[widest])} at step {count(steps[widest])}"
    if higher and 0 < 2 * start < pairs[widest] and _rises(curve):
        return [Note(False, title, f"{seen}: read the best ones; they may have found a trick.")]
    return [Note(True, "No answers stand apart", f"{seen}.")]


def _judges_agree(curve: Curve) -> list[Note]:
    """Reward models that were trained alike part where none of them has seen data (Coste et al. 2023); half as far again is
    beyond the noise of a rollout."""
    _, spread = curve("reward/ensemble_spread")
    if len(spread) < TREND:
        return []
    start, end = _ends(spread)
    seen = f"Their spread went from {number(start)} to {number(end)}"
    if end > 1.5 * start:
        return [Note(False, "The reward models disagree more and more", f"{seen}: the policy has left what they know.")]
    return [Note(True, "The reward models agree as at first", f"{seen}.")]


def _second_judge_goes_along(curve: Curve) -> list[Note]:
    """A second judge's scores go along with the reward over a rollout's answers, until some earn it by what only the reward
    likes. That shows while they are few and the second judge's mean still rises.

    As answers become alike a correlation falls by itself: where the reward's deviation goes from s to u s, r becomes
    r u / sqrt(1 - r^2 + r^2 u^2) (Thorndike 1949, restriction of range, case 2). A quarter below that is the alarm, over as
    many reports as make a quarter five standard errors, (1 - r^2) / sqrt(answers): a run is asked hundreds of times.
    """
    steps, found = curve("eval/gold_reward_corr")
    _, spread = curve("objective/scores_std")
    _, episodes = curve("episode")
    if len(found) < 3 or not len(found) == len(spread) == len(episodes):
        return []
    start, _ = _ends(found)
    if start <= 0:
        return []
    start = min(start, 0.99)
    answers = (episodes[-1] - episodes[0]) / (len(found) - 1)  # a report
    width = math.ceil((20 * (1 - start**2) / start) ** 2 / answers)
    first = max(width, 2)
    if len(found) < first + width:
        return []
    start, usual = min(sum(found[:first]) / first, 0.99), sum(spread[:first]) / first
    if usual <= 0:
        return []
    lowest, seen = math.inf, ""
    for end in range(first + width, len(found) + 1):
        now, u = sum(found[end - width : end]) / width, sum(spread[end - width : end]) / width / usual
        due = start * u / math.sqrt(1 - start**2 + (start * u) ** 2)
        if due > 0 and now / due < lowest:
            lowest = now / due
            seen = f"{number(start)} to {number(now)} at step {count(steps[end - 1])}, where {number(due)} was due"
    text = f"Over a rollout\u2019s answers the correlation of reward and gold score went from {seen}"
    if lowest < 0.75:
        return [Note(False, "Reward and gold score part", f"{text}: read the answers on which they differ.")]
    return [Note(True, "Reward and gold score go together", f"{text}.")]


def _gold_means(gold: list[float]) -> list[float]:
    """Moving means over a tenth of the reports."""
    width = max(1, len(gold) // 10)
    return [sum(gold[i : i + width]) / width for i in range(len(gold) - width + 1)]


def _overoptimised(curve: Curve) -> list[Note]:
    """The proxy goes on rising while the gold score has lost a quarter of its gain (the curve of Gao et al. 2022).

    The best of many means is above its neighbours by chance, so that a fall counts from five standard errors of one. The noise is
    read off successive differences, which hardly know the trend (von Neumann 1941).
    """
    steps, gold = curve("eval/gold_score")
    _, proxy = curve("objective/scores")
    if len(gold) < TREND or len(proxy) < TREND:
        return []
    means = _gold_means(gold)
    peak = max(range(len(means)), key=means.__getitem__)
    rise, fall = means[peak] - means[0], means[peak] - means[-1]
    if rise <= 0 or fall <= 0.25 * rise or _late(proxy) < proxy[min(len(proxy) - 1, peak)]:
        return []
    width = len(gold) - len(means) + 1
    noise = math.sqrt(sum((b - a) ** 2 for a, b in itertools.pairwise(gold)) / (len(gold) - 1) / 2)
    if fall <= 5 * noise / math.sqrt(width):
        return []
    text = f"The gold score peaked near step {count(steps[peak + width // 2])} "
    text += f"and has lost {percent(fall / rise)} of its gain "
    text += "since, while the reward model\u2019s score kept rising: stop earlier, or raise kl_coef."
    return [Note(False, "The reward model is over-optimised", text)]


# ---- what a run should have reached -----------------------------------------------------------------------------------


def _gold_rises(curve: Curve) -> list[Note]:
    _, gold = curve("eval/gold_score")
    if len(gold) < TREND or _overoptimised(curve):
        return []
    means = _gold_means(gold)
    seen = f"From {number(means[0])} to {number(means[-1])}"
    if max(means) > means[0]:
        return [Note(True, "The gold score rises with the proxy", f"{seen}.")]
    return [Note(False, "The gold score does not rise", f"{seen}: the proxy does not measure it.")]


def _reward_rises(curve: Curve) -> list[Note]:
    """What training raises, the score less the price of distance; and updates that are clipped in 5 % of tokens at least
    where it does not."""
    _, reward = curve("objective/rlhf_reward")
    if len(reward) < TREND:
        return []
    start, end = _ends(reward)
    seen = f"Score less the price of distance went from {number(start)} to {number(end)}"
    if end > start:
        return [Note(True, "The reward rises", f"{seen}.")]
    _, clipped = curve("policy/clipfrac_avg")
    timid = bool(clipped) and _late(clipped) < 0.05  # common in good runs as well: an alarm only where nothing is learned
    mend = "updates are timid, raise the learning rate" if timid else "lower the learning rate or kl_coef"
    return [Note(False, "The reward does not rise", f"{seen}: {mend}.")]


def _answers_end(curve: Curve) -> list[Note]:
    _, eos = curve("response/eos_rate")
    if not eos:
        return []
    ok = _late(eos) >= 0.95
    advice = "" if ok else " Allow more tokens, or raise the penalty for not stopping."
    title = "Answers end by themselves" if ok else "Answers are cut off"
    return [Note(ok, title, f"{percent(_late(eos))} lately stop with an end token; below 95{THIN}% is an alarm.{advice}")]


def _critic_explains(curve: Curve) -> list[Note]:
    """A constant explains 0, and a tenth is more than the noise of a fifth of a run. How much more could be explained is the
    task's: where an answer's end decides its score, no critic knows it early (`python -m benchmarks.critic_ceiling`)."""
    _, explained = curve("val/explained_variance")
    if len(explained) < TREND:
        return []
    ok = _late(explained) >= 0.1
    title = "The critic explains the returns" if ok else "The critic explains little"
    return [Note(ok, title, f"Explained variance {number(_late(explained))} lately; a constant would explain 0.")]


def _groups_teach(curve: Curve) -> list[Note]:
    """A group whose answers all score the same has no advantage to learn from (Yu et al. 2025, DAPO, section 3.2); where that
    is most of them, most of the sampling is wasted."""
    _, equal = curve("frac_reward_zero_std")
    if not equal:
        return []
    share = _late(equal)
    if share <= 0.5:
        return [Note(True, "Most groups teach", f"{percent(share)} of the prompts have answers that all score the same.")]
    text = f"{percent(share)} of the prompts have answers that all score the same: take prompts neither too easy nor too hard."
    return [Note(False, "Most groups teach nothing", text)]


ANY_TIME: tuple[Rule, ...] = (
    _starts_at_the_reference, _first_ratio, _sampler_agrees, _ratio, _step_size, _clipping, _kl_is_a_distance, _kl_flattens,
    _answers_stay_diverse, _length_does_not_pay, _scores_stay_together, _judges_agree,
    _second_judge_goes_along, _overoptimised,
)  # fmt: skip
ONCE_SETTLED: tuple[Rule, ...] = (_gold_rises, _reward_rises, _answers_end, _critic_explains, _groups_teach)
