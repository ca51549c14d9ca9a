"""What is measured: the policy on held-out prompts after every few rollouts, and the seconds of training between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.batches import Rollout
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.evaluation.generation import describe_answers
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.objectives.kl import exact_kl
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import model_scorer

ROWS = 64  # answers a forward


@dataclass
class Point:
    """One evaluation. Seconds are those of training alone."""

    rollout: int
    episodes: int
    wall: float
    cpu: float
    reward: float  # the mean log-odds of "positive", from the classifier that is trained on
    judge: float  # the mean probability of "positive", from the one that is not
    kl: float  # nats an answer: of every token's whole distribution, which is far less noisy than the log-ratio of the one drawn
    length: float
    distinct_2: float


class Evaluation:
    """Samples answers to held-out prompts, always with the same seed, and judges them."""

    def __init__(self, reference: Path, reward: Path, judge: Path, prompts: Tensor, *, answer_tokens: int, seed: int = 0) -> None:
        self.reference = load_causal_lm(reference, dropout=0.0).eval()
        self.tokenizer = load_tokenizer(reference)
        scalar = [load_scalar_model(path, dropout=0.0, trained_as="classifier").eval() for path in (reward, judge)]
        self.reward, self.judge = (model_scorer(m, self.tokenizer, self.tokenizer, micro_batch_size=ROWS) for m in scalar)
        self.prompts, self.answer_tokens, self.seed = prompts, answer_tokens, seed

    @torch.no_grad()
    def sample(self, policy: Any) -> Rollout:
        """An answer to every prompt."""
        mask = torch.ones_like(self.prompts, dtype=torch.bool)
        answer = generate(
            policy,
            self.prompts,
            mask,
            max_new_tokens=self.answer_tokens,
            eos_ids=(),
            pad_id=int(self.tokenizer.pad_token_id),
            generator=torch.Generator().manual_seed(self.seed),
        )
        return Rollout(
            query_ids=self.prompts,
            query_mask=mask,
            response_ids=answer.response_ids,
            response_mask=answer.response_mask,
            ended=answer.ended,
            group_ids=torch.arange(len(self.prompts)),
            sampler_logprobs=answer.logprobs,
        )

    @torch.no_grad()
    def figures(self, policy: Any) -> dict[str, float]:
        """The fields of a `Point` that are not counts or times."""
        rollout = self.sample(policy)
        asked = self.prompts.shape[1]
        kl = 0.0
        for ids in torch.cat([self.prompts, rollout.response_ids], 1).split(ROWS):
            mine, ref = (m(input_ids=ids[:, :-1]).logits[:, asked - 1 :].log_softmax(-1) for m in (policy, self.reference))
            kl += float(exact_kl(mine, ref).double().sum())
        shape = describe_answers(rollout.response_ids.tolist(), rollout.ended.numpy())
        empty: list[dict[str, Any]] = [{}] * len(self.prompts)
        return {
            "reward": float(self.reward(rollout, empty).mean()),
            "judge": float(self.judge(rollout, empty).sigmoid().mean()),
            "kl": kl / len(self.prompts),
            "length": shape["mean_length"],
            "distinct_2": shape["distinct_2"],
        }

    def texts(self, policy: Any, count: int) -> list[str]:
        """Some prompts with their answers, a bar between the two."""
        rollout, decode = self.sample(policy), self.tokenizer.decode
        pairs = zip(rollout.query_ids[:count], rollout.response_ids[:count])
        return [f"{decode(query[1:])}|{decode(response)}" for query, response in pairs]


@dataclass
class Watch:
    """A side's clock, which stands still while its policy is evaluated, and what the evaluations found."""

    evaluation: Evaluation
    batch_size: int
    every: int  # rollouts from one evaluation to the next
    rollouts: int
    points: list[Point] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    episodes: int = 0
    optimizer_steps: int = 0
    _wall: float = 0.0
    _cpu: float = 0.0
    _since: tuple[float, float] = (0.0, 0.0)

    def begin(self, policy: Any) -> None:
        """Evaluate the policy as it starts, and let the clock go."""
        self._evaluate(0, policy)
        self._go()

    def after_rollout(self, done: int, policy: Any) -> None:
        """To be called after each rollout's last optimizer step."""
        self._stop()
        if done % self.every == 0 or done == self.rollouts:
            self._evaluate(done, policy)
        if done == self.rollouts:
            self.texts = self.evaluation.texts(policy, 8)
        self._go()

    def end(self, *, episodes: int, optimizer_steps: int) -> None:
        """What was done in all, by the side's own count."""
        self.episodes, self.optimizer_steps = episodes, optimizer_steps

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "points": [asdict(point) for point in self.points],
            "episodes": self.episodes,
            "optimizer_steps": self.optimizer_steps,
            "texts": self.texts,
        }

    def _go(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        wall, cpu = self._since
        self._wall, self._cpu = self._wall + time.perf_counter() - wall, self._cpu + time.process_time() - cpu

    def _evaluate(self, done: int, policy: Any) -> None:
        figures = self.evaluation.figures(policy)
        self.points.append(Point(done, done * self.batch_size, self._wall, self._cpu, **figures))


def first_reaching(points: Sequence[Point], reward: float) -> Point | None:
    """The first evaluation at or above a reward."""
    return next((point for point in points if point.reward >= reward), None)
