"""From the order shown to the canonical order and back, and what makes a verdict valid. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from annotate.store.records import Verdict
from rlhf_kit.errors import InputError

KINDS = {"pair": ("preference", "tie", "both_bad"), "rank": ("rank",)}


def turn(strength: int, shown: Sequence[int]) -> int:
    """A pair's strength from the order shown to the canonical one, or back: its sign flips where the sides were swapped."""
    return strength if shown[0] == 0 else -strength


def to_canonical(ranking: Sequence[int], shown: Sequence[int]) -> list[int]:
    """Places by position on the screen -> places by canonical position; `shown[screen] = canonical`."""
    places = dict(zip(shown, ranking, strict=True))
    return [places[position] for position in range(len(shown))]


def to_shown(ranking: Sequence[int], shown: Sequence[int]) -> list[int]:
    """Places by canonical position -> places by position on the screen."""
    return [ranking[position] for position in shown]


def dense(ranking: Sequence[int]) -> list[int]:
    """The same order with places 1, 2, 3, ... and no gap after a tie, so that equal rankings are equal lists."""
    places = {place: rank for rank, place in enumerate(sorted(set(ranking)), start=1)}
    return [places[place] for place in ranking]


def agrees_with_gold(gold: Mapping[str, object], strength: int | None, ranking: Sequence[int] | None) -> bool:
    """Whether a canonical verdict has the gold answer's side (a pair), or the same best answers (a ranking)."""
    if "ranking" in gold:
        return ranking is not None and _best(ranking) == _best(gold["ranking"])  # type: ignore[arg-type]
    return strength is not None and _sign(strength) == _sign(gold["strength"])  # type: ignore[arg-type]


def check_verdict(verdict: Verdict, kind: str, answers: int, scale: int, aspects: Sequence[str]) -> None:
    """Raise `InputError` unless `verdict` answers a comparison of this kind with this many answers."""
    if verdict.kind not in KINDS[kind]:
        raise InputError("verdict.kind", verdict.kind, f"expected one of {', '.join(KINDS[kind])} for a {kind}")
    check_strength("verdict.strength", verdict.strength, scale, preference=verdict.kind == "preference")
    if verdict.kind == "rank":
        check_ranking("verdict.ranking", verdict.ranking, answers)
    elif verdict.ranking is not None:
        raise InputError("verdict.ranking", verdict.ranking, "expected None for a pair: give a strength")
    if kind == "rank" and verdict.aspects:
        raise InputError("verdict.aspects", dict(verdict.aspects), "expected none: aspects are judged on pairs")
    for aspect, strength in verdict.aspects.items():
        if aspect not in aspects:
            raise InputError("verdict.aspects", aspect, f"expected the project's aspects ({', '.join(aspects) or 'it has none'})")
        if not _is_count(strength, -scale, scale):
            raise InputError(f"verdict.aspects[{aspect!r}]", strength, f"expected an integer from -{scale} to {scale}")
    for place, words in verdict.edits.items():
        if not _is_count(place, 0, answers - 1):
            raise InputError("verdict.edits", place, f"expected the place of an answer shown, 0 to {answers - 1}")
        check_text("verdict.edits", words)
    for words in (verdict.justification, *verdict.flags):
        check_text("verdict.justification and flags", words)
    if verdict.visible_ms is not None and not _is_count(verdict.visible_ms, 0, 2**31 - 1):
        raise InputError("verdict.visible_ms", verdict.visible_ms, "expected milliseconds, a whole number from 0")


def check_strength(field: str, strength: object, scale: int, *, preference: bool) -> None:
    """A preference has a side, 1 to `scale` strong; anything else has strength 0."""
    if preference and not (_is_count(strength, -scale, scale) and strength != 0):
        raise InputError(field, strength, f"expected an integer from 1 to {scale} either way for a preference")
    if not preference and not _is_count(strength, 0, 0):
        raise InputError(field, strength, "expected 0 for anything but a preference")


def check_ranking(field: str, ranking: Sequence[int] | None, answers: int) -> None:
    """One place for each answer, from 1 (the best) to the number of answers."""
    if ranking is None or len(ranking) != answers or not all(_is_count(place, 1, answers) for place in ranking):
        raise InputError(field, ranking, f"expected {answers} places from 1 (the best) to {answers}, equal ones for a tie")


def check_text(field: str, words: object) -> None:
    """Text that both databases can hold: no NUL (PostgreSQL has none) and no half of a surrogate pair."""
    if not isinstance(words, str):
        raise InputError(field, words, "expected text")
    if "\0" in words or re.search("[\ud800-\udfff]", words):
        raise InputError(field, words, "expected text without NUL characters and lone surrogates: remove them")


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _best(ranking: Sequence[int]) -> set[int]:
    return {position for position, place in enumerate(ranking) if place == min(ranking)}
