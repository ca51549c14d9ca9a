"""Simulated people who compare two answers: Bradley-Terry over the gold score, with the faults that real annotators have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from rlhf_kit.data.world.gold import gold_scores
from rlhf_kit.errors import InputError

Choice = Literal["a", "b"]


@dataclass(frozen=True)
class Annotators:
    """A pool of annotators; each pair goes to one of them at random.

    Annotator j prefers `a` with probability
    `reliability_j * sigmoid((u_a - u_b + length_bias * (words_a - words_b) / 10) / temperature + side_bias)
    + (1 - reliability_j) / 2`, with u the gold score (Bradley and Terry 1952). The default agrees with the gold order on about
    87 % of pairs of SFT answers.

    Args:
        temperature: noise of the judgement, in units of the gold score (std 1 over SFT answers), > 0.
        reliability: of every annotator, the share of pairs that are really read; 1 - it is guessed. 0 is a spammer.
        side_bias: log-odds in favour of the answer shown first (`a`).
        length_bias: gold score that ten more words seem to be worth.
        seed: of the choices; `label` is a pure function of it and its arguments.
    """

    temperature: float = 0.5
    reliability: tuple[float, ...] = (1.0,)
    side_bias: float = 0.0
    length_bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError("annotators.temperature", self.temperature, "expected a positive number")
        if not self.reliability or not all(0 <= r <= 1 for r in self.reliability):
            raise InputError(
                "annotators.reliability", self.reliability, "expected one number in [0, 1] for every annotator, at least one"
            )

    def probabilities(
        self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str], annotator: int | None = None
    ) -> list[float]:
        """P(a is preferred to b) when a is shown first: by one annotator, or (None) by one drawn from the pool."""
        reliable = sum(self.reliability) / len(self.reliability) if annotator is None else self.reliability[annotator]
        return [reliable * _sigmoid(z + self.side_bias) + (1 - reliable) / 2 for z in self._logits(prompts, a, b)]

    def label(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Choice]:
        """One sampled choice a pair."""
        rng = Random(f"annotators-{self.seed}")
        return ["a" if rng.random() < p else "b" for p in self.probabilities(prompts, a, b)]

    def bayes_accuracy(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> float:
        """The accuracy on `label`'s choices that no reward model can beat: mean max(p, 1 - p).

        A reward model sees no sides, so p is the mean over both placements (a pair's sides are random in `preferences`).
        """
        ab, ba = self.probabilities(prompts, a, b), self.probabilities(prompts, b, a)
        fair = [(p + 1 - q) / 2 for p, q in zip(ab, ba, strict=True)]
        return sum(max(p, 1 - p) for p in fair) / len(fair)

    def _logits(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        gap = zip(gold_scores(list(prompts), list(a)), gold_scores(list(prompts), list(b)), a, b, strict=True)
        return [(u - v + self.length_bias * (len(x.split()) - len(y.split())) / 10) / self.temperature for u, v, x, y in gap]


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
