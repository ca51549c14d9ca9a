"""Every public objective with tensors that do not fit, and with answers that have no token."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_kit.objectives import advantages, kl, language_model, logprobs, policy, preference, reward_model
from rlhf_kit.objectives.preference import LOSSES, Answers

B, R, D, V = 4, 3, 5, 7
MASK = torch.ones(B, R, dtype=torch.bool)
GROUPS = torch.tensor([0, 0, 1, 1])
IDS = torch.arange(B * R).reshape(B, R) % V


def table() -> Tensor:
    return torch.randn(B, R, generator=torch.Generator().manual_seed(0))


def head(*rows: int) -> dict[str, Tensor]:
    return {"hidden": torch.ones(*rows, D), "weight": torch.ones(V, D), "bias": torch.ones(V)}


SURROGATE = {"logprobs": table(), "old_logprobs": table(), "advantages": table(), "mask": MASK, "weights": MASK.float()}
SCORES = {"scores": table()[:, 0], "group_ids": GROUPS}
VALUES = {"values": table(), "old_values": table(), "returns": table(), "mask": MASK, "weights": MASK.float()}
CASES: dict[Callable[..., Any], dict[str, Any]] = {
    advantages.masked_mean: {"x": table(), "mask": MASK},
    advantages.masked_var: {"x": table(), "mask": MASK},
    advantages.masked_whiten: {"x": table(), "mask": MASK},
    advantages.gae: {"rewards": table(), "values": table(), "mask": MASK},
    advantages.discounted_returns: {"rewards": table(), "mask": MASK},
    advantages.reinforce_plus_plus: {"rewards": table(), "mask": MASK},
    advantages.leave_one_out: SCORES,
    advantages.group_normalise: SCORES,
    advantages.best_of_group: SCORES,
    advantages.explained_variance: {"values": table(), "returns": table(), "mask": MASK},
    kl.kl_estimate: {"logprobs": table(), "ref_logprobs": table()},
    kl.exact_kl: {"log_p": table(), "log_q": table()},
    kl.kl_loss: {"logprobs": table(), "ref_logprobs": table(), "mask": MASK, "weights": MASK.float()},
    kl.shape_rewards: {
        "scores": table()[:, 0], "logprobs": table(), "ref_logprobs": table(), "mask": MASK, "kl_coef": 0.1,
    },
    policy.truncated_importance_weights: {"old_logprobs": table(), "sampler_logprobs": table(), "mask": MASK},
    policy.clipped_surrogate: SURROGATE,
    policy.cispo_surrogate: SURROGATE,
    policy.weighted_likelihood: SURROGATE,
    policy.value_loss: VALUES,
    reward_model.pairwise_loss: {"chosen_scores": table()[:, 0], "rejected_scores": table()[:, 1], "margin": table()[:, 2]},
    logprobs.linear_logprobs: head(B) | {"targets": IDS[:, 0]},
    logprobs.padded_logprobs: head(B, R) | {"response_ids": IDS, "response_mask": MASK},
    language_model.linear_cross_entropy: head(B) | {"labels": IDS[:, 0]},
    language_model.language_model_loss: head(B, R) | {"labels": IDS, "position_ids": torch.arange(R).expand(B, R)},
    language_model.shift_labels: {"labels": IDS, "position_ids": IDS},
}  # fmt: skip
ONE_TENSOR = {policy.token_weights, policy.aggregate_units}  # nothing to differ from; their mask is checked for its type and rank


def wrong(tensor: Tensor) -> list[Tensor]:
    """A row too many, one row that would broadcast, a dimension too many, and a column too many."""
    found = [torch.cat([tensor, tensor[:1]]), tensor[:1], tensor.unsqueeze(-1)]
    return found + ([torch.cat([tensor, tensor[:, :1]], 1)] if tensor.ndim > 1 else [])


def test_no_public_objective_is_left_out() -> None:
    modules = (advantages, kl, language_model, logprobs, policy, preference, reward_model)
    public = {
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == CASES.keys() | ONE_TENSOR | {line.function for line in LOSSES.values()}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_a_tensor_of_another_shape_is_refused_and_never_broadcast(function: Callable[..., Any]) -> None:
    fitting = CASES[function]
    function(**fitting)
    for name, tensor in fitting.items():
        for bad in wrong(tensor) if isinstance(tensor, Tensor) else []:
            with pytest.raises(ValueError, match="shape"):
                function(**{**fitting, name: bad})


@pytest.mark.parametrize("name", LOSSES)
def test_a_preference_loss_refuses_answers_that_do_not_fit_each_other(name: str) -> None:
    line = LOSSES[name]
    good = Answers(table()[:, 0], torch.ones(B, dtype=torch.long), table()[:, 1])
    fields = [field for field in Answers._fields if line.reference or field != "ref_logps"]
    broken = [good._replace(**{field: bad}) for field in fields for bad in wrong(getattr(good, field))]
    if line.paired:
        pairs = [pair for bad in broken for pair in ((bad, good), (good, bad))]
    else:
        desirable, baseline = torch.tensor([True, False, True, False]), torch.zeros(())
        pairs = [(bad, desirable, baseline) for bad in broken] + [(good, bad, baseline) for bad in wrong(desirable)]
        pairs.append((good, desirable, torch.zeros(B)))
    for arguments in pairs:
        with pytest.raises(ValueError, match="shape"):
            line.function(*arguments)


@pytest.mark.parametrize("algorithm", [advantages.leave_one_out, advantages.group_normalise, advantages.best_of_group])
@pytest.mark.parametrize("groups", [[5, 5, 5, 8], [8, 5, 5, 5], [8]])
def test_a_group_of_one_is_named_wherever_it_stands_the_last_one_included(algorithm: Any, groups: list[int]) -> None:
    with pytest.raises(ValueError, match="group 8 has 1 answer, expected at least 2: sample more answers to each prompt"):
        algorithm(torch.arange(float(len(groups))), torch.tensor(groups))


# ---- answers without a token ------------------------------------------------------------------------------------------

SUMS = {
    "clipped": lambda x, mask: policy.clipped_surrogate(x, table(), table(), mask)[0],
    "sequence": lambda x, mask: policy.clipped_surrogate(x, table(), table(), mask, level="sequence")[0],
    "sequence_mean": lambda x, mask: policy.clipped_surrogate(x, table(), table(), mask, level="sequence_mean")[0],
    "cispo": lambda x, mask: policy.cispo_surrogate(x, table(), table(), mask)[0],
    "likelihood": lambda x, mask: policy.weighted_likelihood(x, table(), table(), mask)[0],
    "value": lambda x, mask: policy.value_loss(x, table(), table(), mask)[0],
    "kl": lambda x, mask: kl.kl_loss(x, table(), mask)[0],
}
Sum = Callable[[Tensor, Tensor], Tensor]


@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_an_answer_without_a_token_adds_nothing_to_a_loss_and_gets_no_gradient(loss: Sum) -> None:
    empty = MASK.clone()
    empty[1] = False
    x = (table() + 0.1).masked_fill(~empty, torch.nan).requires_grad_()
    loss(x, empty).backward()
    whole = (table() + 0.1).requires_grad_()
    loss(whole, empty).backward()
    assert x.grad is not None and whole.grad is not None
    assert torch.equal(x.grad, whole.grad)
    assert not x.grad[1].any()
    assert x.grad[0].any()


@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_a_batch_without_a_token_has_loss_0_and_a_gradient_of_zeros(loss: Sum) -> None:
    x = torch.full((B, R), torch.nan, requires_grad=True)
    found = loss(x, ~MASK)
    found.backward()
    assert float(found.detach()) == 0.0
    assert x.grad is not None
    assert not x.grad.any()


def test_rewards_and_credit_of_an_answer_without_a_token_are_0_and_leave_the_others_alone() -> None:
    mask = MASK.clone()
    mask[1] = False
    rewards, _ = kl.shape_rewards(table()[:, 0], table(), table(), mask, 0.1)
    found, returns = advantages.gae(rewards, table(), mask)
    assert not rewards[1].any() and not found[1].any() and not returns[1].any()
    kept = [0, 2, 3]
    alone, _ = advantages.gae(rewards[kept], table()[kept], mask[kept])
    assert torch.equal(found[kept], alone)


def test_moments_of_nothing_are_refused_by_name() -> None:
    for function in (advantages.masked_mean, advantages.masked_var, advantages.masked_whiten, advantages.reinforce_plus_plus):
        with pytest.raises(ValueError, match="mask has 0 valid elements over all ranks, expected at least"):
            function(table(), ~MASK)
    with pytest.raises(ValueError, match="mask has 0 valid elements"):
        advantages.explained_variance(table(), table(), ~MASK)


def test_a_preference_without_an_answer_is_refused_by_its_row() -> None:
    lengths = torch.tensor([3, 0, 2, 1])
    empty, good = Answers(table()[:, 0], lengths, table()[:, 1]), Answers(table()[:, 0], lengths.clamp_min(1), table()[:, 1])
    for line in LOSSES.values():
        arguments = (good, empty) if line.paired else (empty, lengths > 0, torch.zeros(()))
        with pytest.raises(ValueError, match="lengths of row 1 is 0, expected at least 1: leave the row out"):
            line.function(*arguments)
