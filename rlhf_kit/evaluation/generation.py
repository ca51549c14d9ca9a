"""How good a policy's answers are: win rates against a baseline, with length held equal, and the shape of the answers.

An outcome is a number from 0 (the baseline's answer is better) to 1 (the policy's is), 1/2 being a tie. A judge that
sees two answers in an order is asked both ways round and averaged, since most judges favour a place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import Floats, Interval, as_floats, bootstrap, check_same_length, mean_interval, share_interval

Judge = Callable[[str, str, str], int]  # (prompt, first answer, second answer) -> 1 first is better, -1 second, 0 tie


class Judgement(NamedTuple):
    """Outcomes of a judge that saw every pair both ways round.

    `outcomes`: (N,) in {0, 1/4, 1/2, 3/4, 1}. `consistency`: the share of pairs judged alike in both orders.
    `first_rate`: how often the first place won (a tie is half); 1/2 for a judge that favours no place.
    """

    outcomes: Floats
    consistency: float
    first_rate: float


def outcomes_from_scores(policy: ArrayLike, baseline: ArrayLike, margin: float = 0.0) -> Floats:
    """(N,) outcomes from scores of two answers to the same prompts; apart by `margin` or less is a tie."""
    ours, theirs = as_floats("policy scores", policy), as_floats("baseline scores", baseline)
    check_same_length(policy=ours, baseline=theirs)
    gap = ours - theirs
    return (np.sign(np.where(np.abs(gap) <= margin, 0.0, gap)) + 1) / 2


def judge_both_orders(judge: Judge, prompts: Sequence[str], policy: Sequence[str], baseline: Sequence[str]) -> Judgement:
    """Ask `judge` about every pair of answers in both orders.

    Raises:
        InputError: lists of different lengths, none at all, or a verdict other than -1, 0, 1.
    """
    check_same_length(prompts=prompts, policy=policy, baseline=baseline)
    if not prompts:
        raise InputError("prompts", "empty", "expected at least one prompt")

    def ask(prompt: str, first: str, second: str) -> int:
        verdict = judge(prompt, first, second)
        if verdict not in (-1, 0, 1):
            raise InputError("judge's verdict", verdict, "expected 1 (first is better), -1 (second is better) or 0 (tie)")
        return int(verdict)

    forward = np.array([ask(*item) for item in zip(prompts, policy, baseline)])
    backward = np.array([ask(*item) for item in zip(prompts, baseline, policy)])
    outcomes = ((forward + 1) / 2 + (1 - backward) / 2) / 2
    first_rate = (float(((forward + 1) / 2).mean()) + float(((backward + 1) / 2).mean())) / 2
    return Judgement(outcomes, float((forward == -backward).mean()), first_rate)


def win_rate(outcomes: ArrayLike, *, clusters: ArrayLike | None = None, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The mean outcome with its 95 % interval, and how it splits into wins, ties and losses.

    Args:
        outcomes: (N,) from 0 to 1.
        clusters: (N,) prompt labels where a prompt was answered more than once.
    Returns:
        `estimate`, `low`, `high`, `n`, and the shares `win` (above 1/2), `tie`, `loss`.
    """
    found = _outcomes(outcomes)
    interval = share_interval(found, clusters=clusters, resamples=resamples, seed=seed)
    shares = {"win": float((found > 0.5).mean()), "tie": float((found == 0.5).mean()), "loss": float((found < 0.5).mean())}
    return {**interval.as_dict(), **shares}


def _outcomes(outcomes: ArrayLike) -> Floats:
    found = as_floats("outcomes", outcomes)
    if found.min() < 0 or found.max() > 1:
        raise InputError("outcomes", (float(found.min()), float(found.max())), "expected numbers from 0 (loss) to 1 (win)")
    return found


def fit_logistic(features: Floats, targets: Floats, weights: Floats, ridge: float = 0.01, steps: int = 100) -> Floats:
    """Weighted logistic regressions by Newton's method, many sets of weights at once.

    Minimises `sum_i w_i * crossentropy(targets_i, sigmoid(features_i @ b)) + ridge/2 * |b|^2`. The ridge keeps `b` finite
    where the classes can be told apart. A step is shortened to at most 1 in each coefficient, which with features of
    about 1 keeps Newton where its quadratic model holds.

    Args:
        features: (N, K). targets: (N,) from 0 to 1. weights: (R, N).
    Returns:
        (R, K) coefficients.
    """
    coefficients = np.zeros((len(weights), features.shape[1]))
    for _ in range(steps):
        probability = 1 / (1 + np.exp(-coefficients @ features.T))  # (R, N)
        gradient = (weights * (probability - targets)) @ features + ridge * coefficients
        curvature = np.einsum("rn,ni,nj->rij", weights * probability * (1 - probability), features, features, optimize=True)
        step = np.linalg.solve(curvature + ridge * np.eye(features.shape[1]), gradient[..., None])[..., 0]
        step /= np.maximum(np.abs(step).max(1, keepdims=True), 1.0)
        coefficients -= step
        if np.abs(step).max() < 1e-10:
            break
    return coefficients


def length_controlled_win_rate(
    outcomes: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """The win rate as it would be between answers of equal length (Dubois et al. 2024, AlpacaEval 2).

    Fits `P(win) = sigmoid(a + b * tanh(d / std(d)))`, d the length of the policy's answer less the baseline's, and reads
    it at d = 0: `sigmoid(a)`. The term for each instruction's difficulty, which AlpacaEval shares over many models, is
    left out: there is one model here. The interval refits every bootstrap resample.

    Args:
        outcomes: (N,) from 0 to 1. lengths, baseline_lengths: (N,) in any one unit.
    """
    found, ours, theirs = _outcomes(outcomes), as_floats("lengths", lengths), as_floats("baseline_lengths", baseline_lengths)
    check_same_length(outcomes=found, lengths=ours, baseline_lengths=theirs)
    gap = ours - theirs
    spread = gap.std()
    # Where every pair has the same gap, length and quality cannot be told apart, and nothing is taken off.
    features = np.stack([np.ones_like(gap), np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)], axis=1)

    def at_equal_length(weights: Floats) -> Floats:
        return 1 / (1 + np.exp(-fit_logistic(features, found, weights)[:, 0]))

    return bootstrap(at_equal_length, len(found), clusters=clusters, resamples=resamples, seed=seed)


def distinct_n(answers: Sequence[str] | Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams, all answers together (Li et al. 2016); strings are split at white space.

    It falls with the amount of text, so compare sets of the same size. 0 where no answer has n tokens.
    """
    if n < 1:
        raise InputError("n", n, "expected at least 1")
    grams: set[tuple[Hashable, ...]] = set()
    total = 0
    for answer in answers:
        tokens = answer.split() if isinstance(answer, str) else list(answer)
        found = list(zip(*(tokens[i:] for i in range(n))))
        grams.update(found)
        total += len(found)
    return len(grams) / total if total else 0.0


def describe_answers(answers: Sequence[Sequence[int]], ended: ArrayLike) -> dict[str, float]:
    """The shape of N answers given as token ids: `mean_length`, `eos_rate`, `distinct_1`, `distinct_2`, `answers`.

    Args:
        ended: (N,) bool, True where the answer ended by itself (a stop token) and was not cut.
    """
    stopped = as_floats("ended", ended)
    check_same_length(answers=answers, ended=stopped)
    return {
        "mean_length": float(np.mean([len(answer) for answer in answers])),
        "eos_rate": float(stopped.mean()),
        "distinct_1": distinct_n(answers, 1),
        "distinct_2": distinct_n(answers, 2),
        "answers": len(answers),
    }


def sequence_kl(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    clusters: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """KL(policy || reference) in nats per answer, from answers sampled from the policy.

    The mean over answers of the summed log-ratio: unbiased, and below 0 only by chance. Sampling at another temperature
    than the log-probabilities were taken at breaks that.

    Args:
        logprobs, ref_logprobs: (B, R) of the sampled tokens. mask: (B, R) bool, the answer with its EOS.
    """
    check_same_length(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    ratio = (logprobs.double() - ref_logprobs.double()).masked_fill(~mask, 0.0).sum(1)
    return mean_interval(ratio.detach().cpu().numpy(), clusters=clusters, resamples=resamples, seed=seed)
