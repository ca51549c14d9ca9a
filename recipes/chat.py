"""Talk to a model in the terminal.

python recipes/chat.py --model runs/quickstart/ppo
python recipes/chat.py --model runs/quickstart/ppo --prompt "Tell me a story."
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.errors import InputError
from rlhf_kit.rollout.chat import load_speaker
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


def main(config: ChatConfig) -> None:
    """Ask, stream the answer, remember both."""
    check_least(config, max_new_tokens=1, temperature=0, seed=0)
    if config.prompt is not None and not config.prompt.strip():
        raise InputError("--prompt", config.prompt, "expected some text")
    speaker = load_speaker(config.model)
    generator = step_generator(config.seed, 0, 0, "chat")
    opening = [{"role": "system", "content": config.system}] if config.system else []

    def answer(messages: list[dict[str, str]]) -> str:
        text = speaker.reply(
            messages,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=generator,
            on_text=lambda piece: print(piece, end="", flush=True),
        )
        print()
        return text

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
