"""Talk to a model in the terminal.

python recipes/chat.py --model runs/quickstart/ppo
python recipes/chat.py --model runs/quickstart/ppo --prompt "Tell me a story."
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recipes.common import load_policy
from recipes.ppo import stop_tokens
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.tokenizer import encode_prompt
from rlhf_kit.errors import InputError
from rlhf_kit.rollout.generate import generate
from rlhf_kit.training.distributed import step_generator

HELP = "/new starts over, /quit leaves (as does Ctrl-D)."


@dataclass
class ChatConfig:
    """A conversation."""

    model: str = "runs/tiny/ppo"  # a stage's output_dir or a hub name
    prompt: str | None = None  # answer this once and leave, instead of asking at the terminal
    system: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.7  # 0: always the likeliest token
    top_p: float = 0.95
    seed: int = 0


class Stream:
    """Prints text as its tokens arrive, holding back bytes that are not yet a whole character."""

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


def main(config: ChatConfig) -> None:
    """Ask, stream the answer, remember both."""
    check_least(config, max_new_tokens=1, temperature=0, seed=0)
    if config.prompt is not None and not config.prompt.strip():
        raise InputError("--prompt", config.prompt, "expected some text")
    model, tokenizer = load_policy(config.model)
    generator = step_generator(config.seed, 0, 0, "chat")
    opening = [{"role": "system", "content": config.system}] if config.system else []

    def answer(messages: list[dict[str, str]]) -> str:
        ids = torch.tensor([encode_prompt(tokenizer, messages)], device=model.device)
        stream = Stream(tokenizer, lambda text: (sys.stdout.write(text), sys.stdout.flush()))
        generate(
            model,
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            max_new_tokens=config.max_new_tokens,
            eos_ids=stop_tokens(model, tokenizer),
            pad_id=tokenizer.pad_token_id,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=generator,
            on_token=stream,
        )
        print()
        return stream.shown

    if config.prompt is not None:
        answer([*opening, {"role": "user", "content": config.prompt}])
        return
    print(f"{config.model}. {HELP}")
    messages = list(opening)
    while True:
        try:
            said = input("\nyou> ").strip()
        except EOFError:
            return
        if said == "/quit":
            return
        if said == "/new":
            messages = list(opening)
        elif said:
            asked = [*messages, {"role": "user", "content": said}]
            sys.stdout.write("model> ")
            try:
                messages = [*asked, {"role": "assistant", "content": answer(asked)}]
            except InputError as error:  # too long a conversation, or a control token: what was said before still stands
                print(f"({error})")


if __name__ == "__main__":
    run_recipe(main, ChatConfig)
