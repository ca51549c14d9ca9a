"""The judges of a run: what `--reward` names, loaded, and several of them made one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_kit.batches import Rollout
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import check_fits, head_of, load_process_model, load_scalar_model
from rlhf_kit.objectives.ensemble import VARIANCE_COEF, Combination, combine, score_spread
from rlhf_kit.objectives.process_reward import StepScore
from rlhf_kit.rollout.scoring import Row, Scorer, function_scorer, load_function, model_scorer, step_scorer


@dataclass(frozen=True)
class Ensemble:
    """Several judges as one `Scorer`, combined as `rlhf_kit.objectives.ensemble.combine` says."""

    members: Sequence[Scorer]
    how: Combination = "mean"
    variance_coef: float = VARIANCE_COEF

    def __call__(self, rollout: Rollout, rows: list[Row]) -> Tensor:
        """(B,) combined scores."""
        return self.with_spread(rollout, rows)[0]

    def with_spread(self, rollout: Rollout, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Combined scores, and how far the members are apart, (B,) each."""
        scores = self.member_scores(rollout, rows)
        return combine(scores, self.how, variance_coef=self.variance_coef), score_spread(scores)

    def member_scores(self, rollout: Rollout, rows: list[Row]) -> Tensor:
        """(M, B): what each member says of each answer. Where they part, people's judgement would teach them most."""
        return torch.stack([score(rollout, rows) for score in self.members])


class Judged(NamedTuple):
    """What a scorer says of a rollout."""

    scores: Tensor  # (B,)
    spread: Tensor | None  # (B,) how far the members of an ensemble are apart
    token_rewards: Tensor | None  # (B, R) of which the scores are the sums


def judged(scorer: Scorer, rollout: Rollout, rows: list[Row]) -> Judged:
    """The scores of a rollout, and what else its scorer knows; a shape that would broadcast is refused."""
    if isinstance(scorer, Ensemble):
        scores, spread = scorer.with_spread(rollout, rows)
        return Judged(_one_each(scores, rollout), spread, None)
    found = scorer(rollout, rows)
    if found.shape == rollout.response_mask.shape:
        return Judged(found.sum(1), None, found)
    return Judged(_one_each(found, rollout), None, None)


def _one_each(scores: Tensor, rollout: Rollout) -> Tensor:
    if scores.shape != rollout.ended.shape:
        mend = f"expected {tuple(rollout.ended.shape)}: one for each answer"
        raise InputError("shape of the scores", tuple(scores.shape), mend)
    return scores


def reward_members(spec: str) -> list[str]:
    """What stands between the commas of `--reward`: directories and callables.

    Raises:
        InputError: an empty name, or the same one twice.
    """
    members = [spec] if Path(spec).is_dir() else [member.strip() for member in spec.split(",")]
    if len(members) > 1 and "" in members:
        raise InputError("--reward", spec, f"expected a name around every comma: number {members.index('') + 1} is empty")
    twice = [member for member in members if members.count(member) > 1]
    if twice:
        raise InputError("--reward", spec, f"expected different ones: {twice[0]} stands there twice, and agrees with itself")
    return members


def load_scorer(
    spec: str,
    policy_tokenizer: Any,
    *,
    micro_batch_size: int,
    device: Any,
    ensemble: Combination = "mean",
    variance_coef: float = VARIANCE_COEF,
    step_score: StepScore = "min",
    token_rewards: bool = False,
) -> tuple[Scorer, nn.Module | None]:
    """`(scorer, the first reward model that a critic may start from or None)` from what `--reward` says.

    Args:
        ensemble, variance_coef: how several judges become one.
        step_score, token_rewards: of a process reward model.
    Raises:
        InputError: a member that is empty, named twice, or neither a reward model nor a callable; token rewards of what scores
            whole answers, or of several judges.
    """

    def load(member: str) -> tuple[Scorer, nn.Module | None]:
        if not Path(member).is_dir():
            return function_scorer(load_function(member), policy_tokenizer, name=member), None
        steps = head_of(member) == "steps"
        if steps:
            model: nn.Module = load_process_model(member, dropout=0.0)
        else:
            model = load_scalar_model(member, dropout=0.0, trained_as="--reward")
        model = model.to(device).eval().requires_grad_(False)
        tokenizer = load_tokenizer(member, "--reward")
        check_fits(model, tokenizer)
        options: Any = {"micro_batch_size": micro_batch_size, "name": f"reward model {member}"}
        if steps:
            return step_scorer(model, policy_tokenizer, tokenizer, how=step_score, each_token=token_rewards, **options), None
        return model_scorer(model, policy_tokenizer, tokenizer, **options), model

    members = reward_members(spec)
    if token_rewards and not (len(members) == 1 and Path(spec).is_dir() and head_of(spec) == "steps"):
        mend = f"expected false: {spec} scores whole answers, and only one process reward model says what a step is worth"
        raise InputError("--token_rewards", True, mend)
    scorers, models = zip(*map(load, members))
    scorer = scorers[0] if len(scorers) == 1 else Ensemble(scorers, ensemble, variance_coef)
    return scorer, next((model for model in models if model is not None), None)
