"""A model as somebody to talk to: messages in, text out as it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_kit.data.tokenizer import encode_prompt, load_tokenizer
from rlhf_kit.models.loading import check_fits, load_causal_lm
from rlhf_kit.rollout.generate import generate


@dataclass
class Speaker:
    """A causal LM in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int,
        temperature: float = 0.7,
        top_p: float = 0.95,
        generator: torch.Generator | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> str:
        """The answer to a conversation.

        Args:
            temperature: 0 is greedy.
            on_text: called with each piece of text as it comes.
        Raises:
            InputError: the conversation and `max_new_tokens` are more than the model's positions.
        """
        ids = torch.tensor([encode_prompt(self.tokenizer, [dict(message) for message in messages])], device=self.model.device)
        stream = Stream(self.tokenizer, on_text or (lambda text: None))
        generate(
            self.model,
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            max_new_tokens=max_new_tokens,
            eos_ids=stop_tokens(self.model, self.tokenizer),
            pad_id=self.tokenizer.pad_token_id,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
            on_token=stream,
        )
        return stream.shown


class Stream:
    """Text out of tokens as they arrive, holding back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, token: int) -> None:
        """Take one token."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.write(text[len(self.shown) :])
            self.shown = text


def load_speaker(path: str) -> Speaker:
    """From a stage's output_dir or a hub name, on the GPU where there is one.

    Raises:
        InputError: no such model, or a tokenizer that does not fit it.
    """
    model, tokenizer = load_causal_lm(path).eval(), load_tokenizer(path)
    check_fits(model, tokenizer)
    return Speaker(model.to(torch.accelerator.current_accelerator() or torch.device("cpu")), tokenizer)


def stop_tokens(policy: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's, and those the model's generation config adds."""
    named = policy.generation_config.eos_token_id
    more = [] if named is None else named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *map(int, more)]))
