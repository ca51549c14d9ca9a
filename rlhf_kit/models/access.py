"""What the trainers need from any causal LM or scalar head: hidden states, the output head, scores.

Trainers never call `model(...).logits`: that builds a (B, T, V) tensor. They take the hidden states from the
backbone and hand the head's weight to an objective that works in chunks. The helpers here do so for every
`transformers` model, plain or inside peft, and refuse by name what this would get wrong.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlhf_kit.errors import InputError

_PLAIN: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose logits were found to be the head on the hidden states


def unwrap(model: nn.Module) -> Any:
    """The `PreTrainedModel` inside a PeftModel (adapters stay active), or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def positions_of(mask: Tensor) -> Tensor:
    """Positions that count valid tokens only, so that padding does not move a token.

    Args:
        mask: (B, T) bool, True = valid.
    Returns:
        (B, T) long, 0 on padding.
    """
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
) -> Tensor:
    """The final hidden states, (B, T, D): what the output head is applied to.

    Args:
        model: causal LM or scalar-head model.
        input_ids: (B, T) long.
        attention_mask: (B, T) bool for padded batches; positions then count valid tokens.
        position_ids: (B, T) long for packed batches (restarting at 0 with each document), without a mask.
    """
    if attention_mask is not None and position_ids is None:
        position_ids = positions_of(attention_mask)
        # A right-padded causal batch needs no mask at all, and unmasked attention is the fast path.
        if bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
            attention_mask = None
            position_ids = None
        else:
            attention_mask = attention_mask.long()
    extra = {} if position_ids is None else {"position_ids": position_ids}
    backbone = unwrap(model).get_decoder()
    return backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)[0]


def output_head(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The language-model head as `(weight (V, D), bias (V,) or None)`.

    Raises:
        InputError: the model's logits are more than the head on the hidden states, or the head is not a plain linear map.
    """
    base = unwrap(model)
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError("model.lm_head", type(head).__name__, "expected a plain Linear: do not put an adapter on the head")
    if base not in _PLAIN:
        _check_logits(base, head)
        _PLAIN.add(base)
    return head.weight, head.bias


@torch.no_grad()
def _check_logits(model: Any, head: nn.Linear) -> None:
    """Refuse a model that scales or caps its logits, or the head's input: what it does is in its code, under any name.

    Two forwards of four tokens. The head's output is enlarged on its way, so that a cap shows on small logits, too.
    """
    ids = torch.arange(4, device=head.weight.device)[None] % len(head.weight)
    factor, training = 1.0, [module for module in model.modules() if module.training]

    def enlarge(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        nonlocal factor
        factor = 1e3
        return factor * output

    hook = head.register_forward_hook(enlarge)
    try:
        model.eval()
        logits = model(input_ids=ids, use_cache=False).logits
        hook.remove()
        expected = factor * head(hidden_states(model, ids))
    finally:
        hook.remove()
        for module in training:
            module.training = True
    # Far above what bf16 rounds, far below what any scale or cap changes; weights that are not finite are another's to find.
    wrong = logits.shape != expected.shape or bool((logits - expected).abs().max() > 0.02 * expected.abs().max())
    if wrong:
        mend = "expected logits that are its head on its hidden states: models that scale or cap them are not supported"
        raise InputError("model.architecture", type(model).__name__, mend)


def scalar_head(model: nn.Module) -> Any:
    """The `score` Linear of a scalar-head model (the trained copy, where peft keeps one).

    Raises:
        InputError: no such head, or more than one output.
    """
    base = unwrap(model)
    head = getattr(base, "score", None)
    if head is None:
        raise InputError(
            "reward_model.architecture", type(base).__name__, "expected a sequence-classification model with `score`"
        )
    if base.config.num_labels != 1:
        raise InputError("reward_model.num_labels", base.config.num_labels, "expected 1: pass a model with a single scalar head")
    return head


def step_head(model: nn.Module) -> Any:
    """The Linear of a process reward model, whose outputs are the logits of (wrong, correct).

    Raises:
        InputError: no such head, or another number of outputs.
    """
    base = unwrap(model)
    head = getattr(base, "score", None) or getattr(base, "classifier", None)  # GPT-2 and a few others say `classifier`
    if head is None or "TokenClassification" not in type(base).__name__:
        mend = "expected a token-classification model with `score` or `classifier`"
        raise InputError("process_reward_model.architecture", type(base).__name__, mend)
    if base.config.num_labels != 2:
        raise InputError("process_reward_model.num_labels", base.config.num_labels, "expected 2, wrong and correct")
    return head


def step_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, ends: Tensor) -> Tensor:
    """Logits of (wrong, correct) where steps end, (N, 2) in the order of `ends.nonzero()`.

    What dropout a `transformers` model has before its head is left out, as in TRL, which switches it off.

    Args:
        input_ids: (B, T) long. attention_mask, ends: (B, T) bool.
    """
    return step_head(model)(hidden_states(model, input_ids, attention_mask)[ends])


def scalar_values(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The scalar head at every position, (B, T) fp32."""
    states = hidden_states(model, input_ids, attention_mask)
    values = scalar_head(model)(states)
    return values.squeeze(-1).float() + getattr(unwrap(model).config, "score_bias", 0.0)


def scalar_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The scalar head at the last valid token of each row, (B,) fp32, wherever the padding stands.

    Raises:
        InputError: a row has no valid token.
    """
    if not bool(attention_mask.any(1).all()):
        row = int((~attention_mask.any(1)).nonzero()[0])
        raise InputError("attention_mask row", row, "expected at least one valid token: remove empty texts")
    last = (attention_mask.long() * torch.arange(1, attention_mask.shape[1] + 1, device=input_ids.device)).argmax(1)
    states = hidden_states(model, input_ids, attention_mask)[torch.arange(len(last), device=last.device), last]
    values = scalar_head(model)(states.unsqueeze(1)).reshape(-1)
    return values.float() + getattr(unwrap(model).config, "score_bias", 0.0)
