"""What a stage adds to `fit`: which loss a batch has, and how many units it counts.

A stage is a module round the model, so that `accelerate` wraps model and loss as one (DDP must see the forward that
makes the loss). It returns sums over its units (trained tokens, pairs); `fit` divides by the count of the whole
optimizer step, over all ranks and micro-batches, which is what makes 1x8 and 2x4 the same gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_kit.batches import IGNORE, LabelledBatch, LMBatch, PreferenceBatch
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import hidden_states, output_head, scalar_scores, step_logits
from rlhf_kit.objectives.classification import binary_cross_entropy
from rlhf_kit.objectives.language_model import language_model_loss
from rlhf_kit.objectives.process_reward import first_error, step_cross_entropy
from rlhf_kit.objectives.reward_model import pairwise_loss

Stats = dict[str, Tensor]


class Stage(nn.Module):
    """A model and its objective. Subclasses say what a unit is and what the loss over a batch sums to."""

    unit_name = "tokens"  # what is counted, for the rate a second

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def begin_step(self, micro_batches: list[Any], accelerator: Accelerator) -> None:
        """Called before the forwards of a step, on all ranks: for what the loss must know of the step as a whole (KTO)."""

    def units(self, batch: Any) -> Tensor:
        """() long: how many terms the batch's loss is a sum of; 0 for a batch that only keeps the ranks in step."""
        raise TypeError("a stage defines units(batch)")

    def forward(self, batch: Any) -> tuple[Tensor, Stats]:
        """`(loss summed over units, statistics summed over units)`."""
        raise TypeError("a stage defines forward(batch)")

    def means(self, totals: dict[str, float]) -> dict[str, float]:
        """What is reported of the sums of `forward`, `loss` and `units` over all ranks: each a unit."""
        return {name: value / max(totals["units"], 1.0) for name, value in totals.items() if name != "units"}


class LanguageModelling(Stage):
    """Next-token prediction on the labels that are not IGNORE: pretraining and SFT. The unit is a trained token."""

    def units(self, batch: LMBatch) -> Tensor:
        """Trained tokens: the first label of a row has no position that predicts it."""
        return (batch.labels[:, 1:] != IGNORE).sum()

    def forward(self, batch: LMBatch) -> tuple[Tensor, Stats]:
        """Summed cross-entropy in nats."""
        states = hidden_states(self.model, batch.input_ids, batch.attention_mask, batch.position_ids)
        weight, bias = output_head(self.model)
        loss, _ = language_model_loss(states, weight, batch.labels, bias)
        return loss, {}


class RewardModelling(Stage):
    """Bradley-Terry on pairs (`objectives.reward_model`). The unit is a pair."""

    unit_name = "pairs"

    def __init__(self, model: nn.Module, *, center_coef: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        if not 0 <= label_smoothing < 0.5:
            raise InputError("--label_smoothing", label_smoothing, "expected at least 0 and less than 0.5")
        self.center_coef, self.label_smoothing = center_coef, label_smoothing

    def units(self, batch: PreferenceBatch) -> Tensor:
        """Pairs that hold any token."""
        return batch.chosen_mask.any(1).sum()

    def forward(self, batch: PreferenceBatch) -> tuple[Tensor, Stats]:
        """Summed pairwise loss; statistics `accuracy` (ties count half), `margin`, `chosen`, `rejected`."""
        # Both sides in one forward: one pass over the weights, and one synchronisation under DDP.
        width = max(batch.chosen_ids.shape[1], batch.rejected_ids.shape[1])
        ids = torch.cat([F.pad(x, (0, width - x.shape[1])) for x in (batch.chosen_ids, batch.rejected_ids)])
        mask = torch.cat([F.pad(x, (0, width - x.shape[1])) for x in (batch.chosen_mask, batch.rejected_mask)])
        real = mask.any(1)
        mask[:, 0] |= ~real  # an empty row reads its first pad, and is dropped from the loss below
        chosen, rejected = scalar_scores(self.model, ids, mask).chunk(2)
        keep = real.chunk(2)[0]
        margin = None if batch.margin is None else batch.margin[keep]
        loss, _ = pairwise_loss(
            chosen[keep], rejected[keep], margin, center_coef=self.center_coef, label_smoothing=self.label_smoothing
        )
        loss = loss + 0.0 * chosen.sum()  # so that an all-empty micro-batch still reaches every parameter
        wins, losses = chosen[keep], rejected[keep]
        stats = {
            "accuracy": (wins > losses).float().sum() + 0.5 * (wins == losses).float().sum(),
            "margin": (wins - losses).sum(),
            "chosen": wins.sum(),
            "rejected": losses.sum(),
        }
        return loss, {name: value.detach() for name, value in stats.items()}


class Classification(Stage):
    """Yes or no, read at the last token (`objectives.classification`): the score is the log-odds of yes. The unit is a row."""

    unit_name = "rows"

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        if not 0 <= label_smoothing < 0.5:
            raise InputError("--label_smoothing", label_smoothing, "expected at least 0 and less than 0.5")
        self.label_smoothing = label_smoothing

    def units(self, batch: LabelledBatch) -> Tensor:
        """Rows that hold any token."""
        return batch.attention_mask.any(1).sum()

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, Stats]:
        """Summed cross-entropy in nats; statistics `accuracy` (a logit of 0 counts half), `logit`, `positive`."""
        real = batch.attention_mask.any(1)
        mask = batch.attention_mask.clone()
        mask[:, 0] |= ~real  # an empty row reads its first pad, and is dropped from the loss below
        logits = scalar_scores(self.model, batch.input_ids, mask)
        loss, stats = binary_cross_entropy(logits[real], batch.labels[real], label_smoothing=self.label_smoothing)
        stats.pop("rows")  # the units
        return loss + 0.0 * logits.sum(), stats  # so that an all-empty micro-batch still reaches every parameter


class ProcessRewardModelling(Stage):
    """Correct or wrong, read where each step of an answer ends (`objectives.process_reward`). The unit is a step.

    Labels of its `LMBatch` are 1, 0 or IGNORE and belong to the token they stand at: nothing is shifted.
    """

    unit_name = "steps"

    def units(self, batch: LMBatch) -> Tensor:
        """Steps with a label."""
        return (batch.labels != IGNORE).sum()

    def forward(self, batch: LMBatch) -> tuple[Tensor, Stats]:
        """Summed cross-entropy in nats; statistics `accuracy`, `positive`, and of answers what `means` needs."""
        ends = batch.labels != IGNORE
        logits = step_logits(self.model, batch.input_ids, batch.attention_mask, ends)
        loss, stats = step_cross_entropy(logits, batch.labels[ends] == 1)
        stats.pop("steps")  # the units
        called_wrong = torch.zeros_like(ends).index_put((ends,), logits[:, 1] < logits[:, 0])
        first = first_error(ends & (batch.labels == 0))
        sound, found = first == ends.shape[1], first_error(called_wrong) == first
        judged = ends.any(1)  # a row that counts for nothing has no step
        stats |= {"flawed": (judged & ~sound).sum(), "flawed_found": (judged & ~sound & found).sum()}
        return loss, stats | {"sound": (judged & sound).sum(), "sound_found": (judged & sound & found).sum()}

    def means(self, totals: dict[str, float]) -> dict[str, float]:
        """Loss, `accuracy` and `positive` a step; of answers, as ProcessBench has it (Zheng et al. 2024), where there are such.

        `first_error_accuracy`: answers with an error whose first one is found, exactly. `sound_accuracy`: answers without one in
        which none is found. `f1`: the harmonic mean of the two. A step is called wrong where that is likelier.
        """
        counts = {name: totals[name] for name in ("flawed", "flawed_found", "sound", "sound_found")}
        means = super().means({name: value for name, value in totals.items() if name not in counts})
        if counts["flawed"]:
            means["first_error_accuracy"] = counts["flawed_found"] / counts["flawed"]
        if counts["sound"]:
            means["sound_accuracy"] = counts["sound_found"] / counts["sound"]
        if counts["flawed"] and counts["sound"]:
            a, b = means["first_error_accuracy"], means["sound_accuracy"]
            means["f1"] = 2 * a * b / max(a + b, 1e-9)
        return means
