"""Stages that learn from preferences directly: a policy, the reference it is compared with, and a loss by name.

The reference is no part of the module: no optimizer sees it, no checkpoint holds it, DDP does not wrap it; it only moves
and changes precision with the policy. Its log-probabilities come from the same rows in the same forward, without
gradients. Dropout is off everywhere, so that at the first step policy and reference agree exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from rlhf_kit.batches import FeedbackBatch, PreferenceBatch
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import hidden_states, output_head
from rlhf_kit.models.loading import disable_dropout
from rlhf_kit.objectives.logprobs import padded_logprobs
from rlhf_kit.objectives.preference import LOSSES, Answers, PreferenceLoss
from rlhf_kit.rollout.experience import reference_of
from rlhf_kit.training.distributed import reduce_sum
from rlhf_kit.training.stages import Stage, Stats


class PreferenceOptimisation(Stage):
    """DPO and its relatives on pairs (`objectives.preference.LOSSES`). The unit is a pair with an answer on both sides.

    Args:
        model: the policy, whole or a LoRA adapter on a model that is not trained.
        loss: a name in `LOSSES`.
        reference: what the policy is compared with, frozen here; None for the policy as it is now: a copy of it, or its
            base where it is a fresh LoRA adapter. A loss without a reference takes none.
        options: the loss's own settings, such as `beta`; those left out have its defaults.
    Raises:
        InputError: a loss or a setting that there is not, an adapter that cannot learn or whose base would move.
    """

    unit_name = "pairs"
    paired = True

    def __init__(self, model: nn.Module, loss: str = "dpo", *, reference: nn.Module | None = None, **options: float) -> None:
        super().__init__(model)
        self.line = _line(loss, self.paired)
        self.options = _checked_options(loss, self.line, options)
        disable_dropout(model)
        if isinstance(model, PeftModel):
            _check_adapter(model, base_is_reference=self.line.reference and reference is None)
        if not self.line.reference:
            if reference is not None:
                raise InputError("reference", type(reference).__name__, f"expected none: {loss} compares with no reference")
        elif reference is None and not isinstance(model, PeftModel):
            reference = copy.deepcopy(model)
        self._reference = () if reference is None else (reference.eval().requires_grad_(False),)  # a tuple, so no submodule
        for frozen in self._reference:
            disable_dropout(frozen)

    @property
    def reference(self) -> nn.Module | None:
        """The frozen reference; None where it is the policy's base, or where there is none."""
        return self._reference[0] if self._reference else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for frozen in self._reference:
            frozen._apply(fn)
        return super()._apply(fn, recurse)

    def units(self, batch: PreferenceBatch) -> Tensor:
        """Pairs with an answer on both sides."""
        return _kept(batch).sum()

    def forward(self, batch: PreferenceBatch) -> tuple[Tensor, Stats]:
        """Summed loss and the sums of its statistics, under TRL's names."""
        keep = _kept(batch)
        # Both sides in one forward: one pass over the weights, and one synchronisation under DDP.
        ids = _stacked(batch.chosen_ids, batch.rejected_ids)
        mask = _stacked(batch.chosen_mask, batch.rejected_mask)
        answer = _stacked(batch.chosen_answer, batch.rejected_answer)
        answers = self._answers(ids, mask, answer)
        chosen, rejected = (_rows(answers, rows[keep]) for rows in torch.arange(len(ids), device=ids.device).chunk(2))
        return self.line.function(chosen, rejected, **self.options)

    def _answers(self, ids: Tensor, mask: Tensor, answer: Tensor) -> Answers:
        """(B,) each; a row without an answer has length 0."""
        # The policy comes first: what autocast casts under no_grad stays cached, and would carry no gradient.
        logps = answer_logps(self.model, ids, mask, answer)
        ref_logps = None
        if self.line.reference:
            with torch.no_grad(), reference_of(self.model, self.reference) as reference:
                ref_logps = answer_logps(reference, ids, mask, answer)
        return Answers(logps, answer[:, 1:].sum(1), ref_logps)


class FeedbackOptimisation(PreferenceOptimisation):
    """KTO on single answers that people liked or did not. The unit is an answer.

    The baseline is estimated once a step, from all its micro-batches on all ranks, so that neither accumulation nor the
    number of ranks changes the gradient; TRL takes that of each micro-batch. Arguments and errors as `PreferenceOptimisation`.
    """

    unit_name = "answers"
    paired = False

    def __init__(self, model: nn.Module, loss: str = "kto", *, reference: nn.Module | None = None, **options: float) -> None:
        super().__init__(model, loss, reference=reference, **options)
        self._kl: Tensor | None = None

    @torch.no_grad()
    def begin_step(self, micro_batches: list[FeedbackBatch], accelerator: Accelerator) -> None:
        """Estimate how far the policy has moved on answers to other prompts; 0 where the step has none."""
        found = [self._answers(batch.kl_ids, batch.kl_mask, batch.kl_answer) for batch in micro_batches]
        moved = torch.stack([answers.log_ratio.sum() for answers in found]).sum()  # a row without an answer moves by 0
        count = torch.stack([(answers.lengths > 0).sum() for answers in found]).sum()
        totals = reduce_sum(accelerator, {"moved": moved, "count": count})
        self._kl = torch.full_like(moved, totals["moved"] / max(totals["count"], 1.0))

    def units(self, batch: FeedbackBatch) -> Tensor:  # type: ignore[override]
        """Rows with an answer."""
        return batch.answer[:, 1:].any(1).sum()

    def forward(self, batch: FeedbackBatch) -> tuple[Tensor, Stats]:  # type: ignore[override]
        """Summed loss and statistics; the sums of a class come with its count."""
        if self._kl is None:
            raise RuntimeError("begin_step was not called: the loss needs the baseline of the whole step")
        keep = batch.answer[:, 1:].any(1)
        answers = self._answers(batch.input_ids, batch.attention_mask, batch.answer)
        return self.line.function(_rows(answers, keep), batch.desirable[keep], self._kl, **self.options)

    def means(self, totals: dict[str, float]) -> dict[str, float]:
        """Each class by its own count; a class that did not occur is left out, as in TRL."""
        found = {name: totals[name] / max(totals["units"], 1.0) for name in ("loss", "kl")}
        for side in ("chosen", "rejected"):
            if count := totals[f"count/{side}"]:
                found |= {f"{what}/{side}": totals[f"{what}/{side}"] / count for what in ("rewards", "logps")}
        if {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found


def answer_logps(model: nn.Module, ids: Tensor, mask: Tensor, answer: Tensor) -> Tensor:
    """Summed log-probability of each row's answer, (B,) fp32, 0 where there is none.

    Args:
        ids: (B, T) long, padded on the right. mask, answer: (B, T) bool. A token at position 0 has nothing that predicts it.
    """
    states = hidden_states(model, ids, mask)
    weight, bias = output_head(model)
    targets, mask = ids[:, 1:], answer[:, 1:]
    logprobs, _ = padded_logprobs(states[:, :-1], weight, targets, mask, bias, temperature=None, with_entropy=False)
    return logprobs.sum(1)


def _kept(batch: PreferenceBatch) -> Tensor:
    """(B,) bool: the pairs with an answer on both sides."""
    if batch.chosen_answer is None or batch.rejected_answer is None:
        raise ValueError("chosen_answer is None, expected (B, T): say which tokens of a pair are the answers")
    return batch.chosen_answer[:, 1:].any(1) & batch.rejected_answer[:, 1:].any(1)


def _rows(answers: Answers, index: Tensor) -> Answers:
    ref_logps = None if answers.ref_logps is None else answers.ref_logps[index]
    return Answers(answers.logps[index], answers.lengths[index], ref_logps)


def _stacked(first: Any, second: Any) -> Tensor:
    """(2B, T) from (B, T) and (B, U), the narrower one padded with 0 on the right."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(x, (0, width - x.shape[1])) for x in (first, second)])


def _line(loss: str, paired: bool) -> PreferenceLoss:
    names = [name for name, line in LOSSES.items() if line.paired == paired]
    if loss not in names:
        raise InputError("--loss", loss, f"expected one of {', '.join(names)}")
    return LOSSES[loss]


def _checked_options(loss: str, line: PreferenceLoss, options: dict[str, float]) -> dict[str, float]:
    """The loss's settings, complete; checked by the loss itself, on no pair at all."""
    for name, value in options.items():
        if name not in line.options:
            raise InputError(f"--{name}", value, f"but {loss} has no such setting: leave it out ({', '.join(line.options)})")
    nothing = Answers(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    inputs = (nothing, nothing) if line.paired else (nothing, torch.zeros(0, dtype=torch.bool), torch.zeros(()))
    try:
        line.function(*inputs, **options)
    except ValueError as error:
        raise InputError("--loss", loss, f"whose {error}") from error
    return line.options | options


def _check_adapter(model: PeftModel, *, base_is_reference: bool) -> None:
    """Refuse an adapter that cannot learn, and trained weights outside of it where the reference would share them."""
    adapters = set(model.active_adapters)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    outside = [name for name in trained if not adapters & set(name.split("."))]
    if outside and base_is_reference:
        mend = "but the reference is the policy without its adapter, and would move with it: freeze it, or pass a reference"
        raise InputError("trained weight outside the adapter", outside[0], mend)
    if not trained:
        mend = "whose weights are all frozen: load it with is_trainable=True, or put a fresh one on"
        raise InputError("adapter", ", ".join(sorted(adapters)), mend)
