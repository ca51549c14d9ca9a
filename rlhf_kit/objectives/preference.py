"""Learning from preferences without a reward model or a sampler: DPO and its relatives, each one function.

With `h = log pi(y|x) - log pi_ref(y|x)` summed over the answer's tokens, `D = h_chosen - h_rejected`, and `m` the mean
log-probability of a token. Every loss is a sum over pairs (KTO: over answers); whoever owns the optimizer step divides
by the count of the whole step. Statistics are sums as well, under TRL's names; a tie counts half an accuracy, where TRL
counts it as wrong (at the first step all rewards are 0).

To add a loss, write its function and its line in `LOSSES`: its keyword arguments become settings of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, real

Stats = dict[str, Tensor]


class Answers(NamedTuple):
    """Log-probabilities of one answer a row, in nats; gradients flow to `logps` only."""

    logps: Tensor  # (B,) summed over the answer's tokens
    lengths: Tensor  # (B,) long, tokens of the answer
    ref_logps: Tensor | None = None  # (B,) as `logps`, under the reference

    @property
    def mean(self) -> Tensor:
        """(B,) log-probability of a token."""
        return real(self.logps) / self.lengths

    @property
    def log_ratio(self) -> Tensor:
        """(B,) h, the distance that the reference sees."""
        assert self.ref_logps is not None
        return real(self.logps) - real(self.ref_logps.detach())


def dpo(chosen: Answers, rejected: Answers, *, beta: float = 0.1, label_smoothing: float = 0.0) -> tuple[Tensor, Stats]:
    """`-(1 - e) logsigmoid(beta D) - e logsigmoid(-beta D)`.

    Source: Rafailov et al. 2023, eq. 7; with e = `label_smoothing` > 0, the chance that a choice is the wrong way round,
    conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"), whose minimum lies at finite D.

    Args:
        chosen, rejected: B pairs with `ref_logps`. beta: the price of distance from the reference.
    Returns:
        loss sum, and sums over pairs: `rewards/chosen` (beta h), `rewards/rejected`, `rewards/margins`,
        `rewards/accuracies`, `logps/chosen`, `logps/rejected`.
    Raises:
        ValueError: shapes that differ, no reference, an answer without tokens, an option out of range.
    """
    _check_noise(label_smoothing)
    logits = beta * _difference(chosen, rejected, beta)
    loss = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return loss.sum(), _against_reference(chosen, rejected, beta)


def robust_dpo(chosen: Answers, rejected: Answers, *, beta: float = 0.1, label_smoothing: float = 0.1) -> tuple[Tensor, Stats]:
    """`(-(1 - e) logsigmoid(beta D) + e logsigmoid(-beta D)) / (1 - 2e)`: DPO's loss on clean labels, seen through noisy ones.

    Source: Chowdhury et al. 2024 (rDPO): unbiased where a share e = `label_smoothing` of the choices is flipped at random,
    and not bounded below. Arguments, result and errors as `dpo`.
    """
    _check_noise(label_smoothing)
    logits = beta * _difference(chosen, rejected, beta)
    loss = -(1 - label_smoothing) * logsigmoid(logits) + label_smoothing * logsigmoid(-logits)
    return loss.sum() / (1 - 2 * label_smoothing), _against_reference(chosen, rejected, beta)


def hinge(chosen: Answers, rejected: Answers, *, beta: float = 0.1) -> tuple[Tensor, Stats]:
    """`max(0, 1 - beta D)`: pairs that are far enough apart are left alone.

    Source: Zhao et al. 2023 (SLiC), against a reference as in Liu et al. 2024 (RSO). Arguments, result and errors as `dpo`.
    """
    loss = torch.relu(1 - beta * _difference(chosen, rejected, beta))
    return loss.sum(), _against_reference(chosen, rejected, beta)


def ipo(chosen: Answers, rejected: Answers, *, beta: float = 0.1) -> tuple[Tensor, Stats]:
    """`(h_chosen / length - h_rejected / length - 1 / (2 beta))^2`: the distance between the answers has a target, not a drift.

    Source: Azar et al. 2023, eq. 17, where beta is called tau. The equation sums over tokens; we average, as TRL does: its
    authors confirm that their figures are of the averaged form, and one beta then serves answers of all lengths. The
    rewards that are reported stay sums. Arguments, result and errors as `dpo`.
    """
    _check_pair(chosen, rejected, beta, reference=True)
    difference = chosen.log_ratio / chosen.lengths - rejected.log_ratio / rejected.lengths
    loss = (difference - 1 / (2 * beta)).square()
    return loss.sum(), _against_reference(chosen, rejected, beta)


def simpo(chosen: Answers, rejected: Answers, *, beta: float = 2.0, gamma: float = 1.0) -> tuple[Tensor, Stats]:
    """`-logsigmoid(beta (m_chosen - m_rejected) - gamma)`: no reference, and no reward for length.

    Source: Meng et al. 2024 (SimPO), eq. 6.

    Args:
        chosen, rejected: B pairs. gamma: the margin that the better answer should have, in units of the reward.
    Returns:
        as `dpo`, with rewards beta m and logps m, means over tokens.
    Raises:
        ValueError: as `dpo`; it needs no reference.
    """
    _check_pair(chosen, rejected, beta, reference=False)
    loss = -logsigmoid(beta * (chosen.mean - rejected.mean) - gamma)
    return loss.sum(), _pair_stats(beta * chosen.mean, beta * rejected.mean, chosen.mean, rejected.mean)


def orpo(chosen: Answers, rejected: Answers, *, beta: float = 0.1) -> tuple[Tensor, Stats]:
    """`-m_chosen - beta logsigmoid(log odds_chosen - log odds_rejected)`, odds = p / (1 - p), p = exp(m).

    SFT and preference in one.
    Source: Hong et al. 2024 (ORPO), eqs. 3 to 7, where beta is called lambda. As there, the likelihood is that of the
    answer, a mean over its tokens, then over pairs. TRL's is a mean over all tokens of the batch, the prompt's too.

    Args:
        chosen, rejected: B pairs.
    Returns:
        as `simpo`, and the sums `nll_loss`, `log_odds_ratio` (its logsigmoid) and `log_odds_chosen`.
    Raises:
        ValueError: as `dpo`; it needs no reference.
    """
    _check_pair(chosen, rejected, beta, reference=False)
    log_odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    ratio = logsigmoid(log_odds)
    stats = _pair_stats(beta * chosen.mean, beta * rejected.mean, chosen.mean, rejected.mean)
    more = {"nll_loss": -chosen.mean, "log_odds_ratio": ratio, "log_odds_chosen": log_odds}
    return (-chosen.mean - beta * ratio).sum(), stats | {name: x.detach().sum() for name, x in more.items()}


def kto(
    answers: Answers,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Stats]:
    """`w (1 - sigmoid(beta (h - z)))` for a desirable answer, `w (1 - sigmoid(beta (z - h)))` for an undesirable one.

    Source: Ethayarajh et al. 2024 (KTO), eqs. 7 and 8. z = max(0, kl) is the point from which gains and losses are felt.

    Args:
        answers: B answers with `ref_logps`, not pairs. desirable: (B,) bool, whether people liked the answer.
        kl: () the mean h of answers to other prompts; no gradient flows to it.
        desirable_weight, undesirable_weight: for classes of unequal size; the paper wants the ratio of
            weight * count, desirable to undesirable, between 1 and 4/3.
    Returns:
        loss sum; `rewards/chosen` (beta h) and `logps/chosen` summed over the desirable answers, `count/chosen` of which
        there are, the same of the undesirable as `.../rejected`, and `kl` (z) summed over all answers.
    Raises:
        ValueError: as `dpo`, a mask that is not bool, a kl that is not one number.
    """
    _check_answers("answers", answers, reference=True)
    check_mask(desirable, "desirable")
    check_shapes(logps=answers.logps, desirable=desirable)
    check_rank(0, kl=kl)
    _check_positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    baseline = real(kl.detach()).clamp_min(0)
    gain = beta * (answers.log_ratio - baseline)
    # 1 - sigmoid(x) = sigmoid(-x), which stays exact where sigmoid(x) rounds to 1.
    loss = torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
    with torch.no_grad():
        stats = {"kl": baseline * len(desirable)}
        for side, mask in (("chosen", desirable), ("rejected", ~desirable)):
            stats[f"rewards/{side}"] = beta * answers.log_ratio[mask].sum()
            stats[f"logps/{side}"] = real(answers.logps)[mask].sum()
            stats[f"count/{side}"] = mask.sum()
    return loss.sum(), stats


@dataclass(frozen=True)
class PreferenceLoss:
    """One line of the table.

    `function` takes `(chosen, rejected)`, or `(answers, desirable, kl)` where not `paired`; `reference` says whether it
    reads `ref_logps`.
    """

    function: Callable[..., tuple[Tensor, Stats]]
    reference: bool
    paired: bool = True

    @property
    def options(self) -> dict[str, float]:
        """Its settings and their defaults: the function's keyword arguments."""
        return dict(self.function.__kwdefaults__ or {})


LOSSES = {
    "dpo": PreferenceLoss(dpo, reference=True),
    "robust": PreferenceLoss(robust_dpo, reference=True),
    "hinge": PreferenceLoss(hinge, reference=True),
    "ipo": PreferenceLoss(ipo, reference=True),
    "simpo": PreferenceLoss(simpo, reference=False),
    "orpo": PreferenceLoss(orpo, reference=False),
    "kto": PreferenceLoss(kto, reference=True, paired=False),
}


def _difference(chosen: Answers, rejected: Answers, beta: float) -> Tensor:
    """(B,) D, once the pairs are checked."""
    _check_pair(chosen, rejected, beta, reference=True)
    return chosen.log_ratio - rejected.log_ratio


def _log_odds(logp: Tensor) -> Tensor:
    """`log(p / (1 - p))` of p = exp(logp); at p = 1, where it is infinite, that of the next number below."""
    logp = logp.clamp_max(-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def _against_reference(chosen: Answers, rejected: Answers, beta: float) -> Stats:
    return _pair_stats(beta * chosen.log_ratio, beta * rejected.log_ratio, chosen.logps, rejected.logps)


@torch.no_grad()
def _pair_stats(chosen_rewards: Tensor, rejected_rewards: Tensor, chosen_logps: Tensor, rejected_logps: Tensor) -> Stats:
    margin = chosen_rewards - rejected_rewards
    return {
        "rewards/chosen": chosen_rewards.sum(),
        "rewards/rejected": rejected_rewards.sum(),
        "rewards/margins": margin.sum(),
        "rewards/accuracies": torch.where(margin == 0, 0.5, (margin > 0).to(margin.dtype)).sum(),
        "logps/chosen": real(chosen_logps).sum(),
        "logps/rejected": real(rejected_logps).sum(),
    }


def _check_pair(chosen: Answers, rejected: Answers, beta: float, *, reference: bool) -> None:
    _check_answers("chosen", chosen, reference)
    _check_answers("rejected", rejected, reference)
    check_shapes(chosen_logps=chosen.logps, rejected_logps=rejected.logps)
    _check_positive(beta=beta)


def _check_answers(name: str, answers: Answers, reference: bool) -> None:
    check_rank(1, **{f"{name}_logps": answers.logps})
    check_shapes(**{f"{name}_logps": answers.logps, f"{name}_lengths": answers.lengths})
    if bool((answers.lengths < 1).any()):
        row = int((answers.lengths < 1).nonzero()[0])
        raise ValueError(f"{name}_lengths of row {row} is {int(answers.lengths[row])}, expected at least 1: leave the row out")
    if not reference:
        return
    if answers.ref_logps is None:
        raise ValueError(f"{name}_ref_logps is None, expected (B,): this loss compares with a reference")
    check_shapes(**{f"{name}_logps": answers.logps, f"{name}_ref_logps": answers.ref_logps})


def _check_noise(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 0.5")


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}, expected a number above 0")
