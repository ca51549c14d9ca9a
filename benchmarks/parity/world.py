"""The weights and the batches of both sides: by formula, so that every version of everything has the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification

VOCAB, PAD, EOS = 31, 0, 1
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32, "pad_token_id": PAD}


@torch.no_grad()
def filled(model: Any, phase: float) -> Any:
    """Weights from a formula; vectors (norms) stay as they are."""
    for i, p in enumerate(model.parameters()):
        if p.ndim > 1:
            p.copy_((0.4 * torch.sin(torch.arange(p.numel()).double() * (1.7 + 0.1 * i) + phase)).view_as(p))
    return model


def language_model(phase: float = 0.0, precision: str = "fp64", **fields: Any) -> Any:
    """A small GPT; another phase is another model."""
    model: Any = GPTForCausalLM(GPTConfig(**(SHAPE | fields)))
    return filled(model.to(DTYPES[precision]), phase)


def scalar_model(phase: float = 2.0, precision: str = "fp32") -> Any:
    """The same with a scalar head."""
    model: Any = GPTForSequenceClassification(GPTConfig(**(SHAPE | {"num_labels": 1})))
    return filled(model.to(DTYPES[precision]), phase)


def tokens(length: int, seed: int) -> list[int]:
    """`length` ids, neither padding nor EOS among them."""
    return [2 + (5 * seed + 3 * t + seed * t * t) % (VOCAB - 2) for t in range(length)]


PROMPTS, CHOSEN, REJECTED = (2, 4, 1, 3, 1), (3, 7, 1, 5, 2), (6, 2, 4, 5, 1)


def pairs(
    prompts: Sequence[int] = PROMPTS, chosen: Sequence[int] = CHOSEN, rejected: Sequence[int] = REJECTED
) -> list[dict[str, list[int]]]:
    """Prompts and two answers to each, in TRL's words, of the lengths given."""
    return [
        {
            "prompt_ids": tokens(p, 3 * i),
            "chosen_ids": tokens(c, 3 * i + 1),
            "rejected_ids": tokens(r, 3 * i + 2),
        }
        for i, (p, c, r) in enumerate(zip(prompts, chosen, rejected))
    ]
