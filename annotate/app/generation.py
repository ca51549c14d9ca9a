"""Live answers for the chat page: the only part of `annotate` that knows models.

Two answers are made at a time, one by each model, whoever asked: more at once would take as long on a small machine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from rlhf_kit.models.loading import fingerprint
from rlhf_kit.rollout.chat import Speaker, load_speaker

Message = Mapping[str, str]


@dataclass
class Speakers:
    """The two models of the chat page.

    Args:
        names, checkpoints: what is stored with their answers, never shown while judging.
    """

    names: tuple[str, str]
    voices: tuple[Speaker, Speaker]
    checkpoints: tuple[str, str] = ("", "")
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sampling(self) -> dict[str, Any]:
        """What is stored beside an answer."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.max_new_tokens}

    def answers(self, order: Sequence[int], messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
        """Both answers so far, in `order`, again and again as they grow; the last ones are whole.

        Neither is shown further than the one that is still being written, so that the pace does not tell the models apart.

        Raises:
            InputError: the conversation is too long for a model.
        """
        pieces: SimpleQueue[tuple[int, str | BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._write, args=(order, messages, pieces), daemon=True).start()
        texts, writing, shown = ["", ""], {0, 1}, ("", "")
        while writing:
            place, piece = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                writing.remove(place)
            else:
                texts[place] += piece
            far = min((len(texts[i]) for i in writing), default=None)
            if pieces.empty() and (texts[0][:far], texts[1][:far]) != shown:  # a slow reader gets fewer, larger steps
                shown = texts[0][:far], texts[1][:far]
                yield shown
        yield texts[0], texts[1]

    def _write(self, order: Sequence[int], messages: Sequence[Message], pieces: SimpleQueue[Any]) -> None:
        with self._turn:
            writers = [
                threading.Thread(target=self._speak, args=(place, which, messages, pieces), daemon=True)
                for place, which in enumerate(order)
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()

    def _speak(self, place: int, which: int, messages: Sequence[Message], pieces: SimpleQueue[Any]) -> None:
        generator = torch.Generator()
        generator.seed()
        try:
            self.voices[which].reply(
                messages,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                generator=generator,
                on_text=lambda text: pieces.put((place, text)),
            )
            pieces.put((place, None))
        except BaseException as error:  # handed to whoever waits
            pieces.put((place, error))


def load_speakers(first: str, second: str, **options: Any) -> Speakers:
    """Two model directories or hub names; the same one twice shares its weights."""
    one, mark = load_speaker(first), fingerprint(first)
    if second == first:
        return Speakers((first, first), (one, second_body(one)), (mark, mark), **options)
    return Speakers((first, second), (one, load_speaker(second)), (mark, fingerprint(second)), **options)


def second_body(speaker: Speaker) -> Speaker:
    """A speaker with modules of its own, so that both can write at a time, on the weights of `speaker`."""
    shared = {id(tensor): tensor for tensor in (*speaker.model.parameters(), *speaker.model.buffers())}
    return Speaker(copy.deepcopy(speaker.model, shared), speaker.tokenizer)
