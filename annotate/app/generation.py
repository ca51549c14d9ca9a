"""Live answers for the chat page: the only part of `annotate` that knows models.

One answer is made at a time, whoever asked: on a small machine two at once would take as long, and a model's caches are its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from rlhf_kit.rollout.chat import Speaker, load_speaker

Message = Mapping[str, str]


@dataclass
class Speakers:
    """The two models of the chat page.

    Args:
        names: how each is stored with its answers, never shown while judging.
    """

    names: tuple[str, str]
    voices: tuple[Speaker, Speaker]
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sampling(self) -> dict[str, Any]:
        """What is stored beside an answer."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.max_new_tokens}

    def answer(self, which: int, messages: Sequence[Message]) -> Iterator[str]:
        """The answer so far, again and again as it grows; the last one is whole.

        Raises:
            InputError: the conversation is too long for the model.
        """
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

        def speak() -> None:
            generator = torch.Generator()
            generator.seed()
            try:
                with self._turn:
                    self.voices[which].reply(
                        messages,
                        max_new_tokens=self.max_new_tokens,
                        temperature=self.temperature,
                        top_p=self.top_p,
                        generator=generator,
                        on_text=pieces.put,
                    )
                pieces.put(None)
            except BaseException as error:  # handed to whoever waits
                pieces.put(error)

        threading.Thread(target=speak, daemon=True).start()
        text = ""
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            text += piece
            while not pieces.empty():  # a slow reader gets fewer, larger steps
                following = pieces.get()
                if not isinstance(following, str):
                    pieces.put(following)
                    break
                text += following
            yield text
        yield text


def load_speakers(first: str, second: str, **options: Any) -> Speakers:
    """Two model directories or hub names; the same one twice is loaded once."""
    one = load_speaker(first)
    return Speakers((first, second), (one, one if second == first else load_speaker(second)), **options)
