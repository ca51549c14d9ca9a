"""The notation of the sentence tables, compiled once to elements that the writer fills and the reader matches."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from rlhf_kit.data.world.lexicon import HUES, PLACES
from rlhf_kit.data.world.sentences import SENTENCES

_MARKS = re.compile(r"\{(\w+)\}|\[([^\]]*)\](\? ?)?")


class Slot(NamedTuple):
    """`{name}`: filled from the story or from `CHOICES`."""

    name: str


class Options(NamedTuple):
    """`[a|b]`; vivid ones (`[a|b]?`) may be left out and carry the space that follows them."""

    words: tuple[str, ...]
    vivid: bool


Element = str | Slot | Options


class Sentence(NamedTuple):
    """One row of the tables: its number, its role, what it presupposes (`{"plot": "lost"}`), its elements."""

    number: int
    role: str
    given: dict[str, str]
    elements: tuple[Element, ...]
    introduces: bool  # whether it brings a new character in


def _elements(text: str) -> tuple[Element, ...]:
    found: list[Element] = []
    end = 0
    for mark in _MARKS.finditer(text):
        if mark.start() > end:
            found.append(text[end : mark.start()])
        slot, words, vivid = mark.groups()
        found.append(Slot(slot) if slot else Options(tuple(words.split("|")), bool(vivid)))
        end = mark.end()
    return (*found, text[end:])


@cache
def sentences() -> dict[str, tuple[Sentence, ...]]:
    """Every sentence of the tables, compiled, by table key (`scene:weather=rainy`)."""
    tables: dict[str, tuple[Sentence, ...]] = {}
    number = 0
    for key, texts in SENTENCES.items():
        role, _, given = key.partition(":")
        fact = dict([given.split("=")]) if given else {}
        tables[key] = tuple(
            Sentence(number + i, role, fact, _elements(text), "{new_friend}" in text) for i, text in enumerate(texts)
        )
        number += len(texts)
    return tables


@cache
def vivid_words() -> frozenset[str]:
    """The words that count as vivid detail: colours, the looks of places, and all that stands in `[...]?`."""
    words = {word for _, looks in PLACES.values() for word in looks} | set(HUES)
    for table in sentences().values():
        for sentence in table:
            words |= {w for e in sentence.elements if isinstance(e, Options) and e.vivid for w in e.words}
    return frozenset(words)
