"""Writes stories: picks a cast and a plot, plans the roles of the sentences, and fills them in.

A request ("Tell me a story about Mia the fox and a lost lantern in the forest.") fixes hero, object, place and plot; the
quality of the answer (its attributes) is drawn at random unless it is asked for, so that the average answer is mediocre.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import NamedTuple

from rlhf_kit.data.world.lexicon import BREAKABLE, CHARACTERS, HUES, OBJECTS, PLACES, PLOTS, WEATHERS, Character
from rlhf_kit.data.world.notation import Options, Sentence, Slot, sentences
from rlhf_kit.data.world.sentences import CHOICES

RATES = {"on_topic": 0.55, "happy_ending": 0.45, "dialogue": 0.45, "vivid": 0.47, "warm": 0.45, "good_length": 0.42}
GOOD_LENGTH = (33, 44)  # words
_POOR_LENGTHS = ((20, 28), (50, 60))


class Request(NamedTuple):
    """What a prompt asks for; None where it leaves the choice."""

    hero: str | None
    thing: str | None
    place: str | None
    plot: str | None


def held_out(hero: str, thing: str, place: str) -> bool:
    """Whether stories of this combination are kept for evaluation (one in ten, by a fixed hash)."""
    return zlib.crc32(f"{hero}|{thing}|{place}".encode()) % 10 == 0


@cache
def _finder(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(words)})\b")


def read_request(prompt: str) -> Request:
    """The first character, object, place and plot that `prompt` names."""

    def first(words: tuple[str, ...]) -> str | None:
        found = _finder(words).search(prompt)
        return found.group() if found else None

    plot = first(tuple(PLOTS.values()))
    plots = {word: plot for plot, word in PLOTS.items()}
    return Request(first(tuple(CHARACTERS)), first(tuple(OBJECTS)), first(tuple(PLACES)), plots[plot] if plot else None)


@dataclass
class _Story:
    """What is true in one story, and what has been told of it."""

    hero: Character
    friend: Character
    thing: str
    place: str | None
    plot: str
    tone: str  # warm, rude or plain
    details: int  # vivid words wanted
    weather: str | None = None
    hue: str | None = None
    look: str | None = None
    met: set[str] = field(default_factory=set)  # characters already introduced
    last: str = ""  # the character mentioned last
    vivid: set[str] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    nooks: set[str] = field(default_factory=set)  # where somebody has looked


class _Pen:
    """Fills the slots of sentences, and keeps the story's facts while it does."""

    def __init__(self, story: _Story, rng: Random):
        self.story, self.rng = story, rng

    def write(self, sentence: Sentence) -> str:
        """One sentence, capitalised."""
        self.story.used.add(sentence.number)
        parts = []
        for element in sentence.elements:
            if isinstance(element, str):
                parts.append(element)
            elif isinstance(element, Options):
                parts.append(self._options(element))
            else:
                parts.append(self._slot(element))
        text = "".join(parts)
        return text[0].upper() + text[1:]

    def _detail(self, words: tuple[str, ...]) -> str | None:
        story = self.story
        if len(story.vivid) >= story.details or (story.details < 3 and self.rng.random() < 0.3):
            return None
        word = self.rng.choice(words)
        story.vivid.add(word)
        return word

    def _options(self, options: Options) -> str:
        if not options.vivid:
            return self.rng.choice(options.words)
        word = self._detail(options.words)
        return word + " " if word else ""

    def _name(self, who: Character) -> str:
        introduced = who.name in self.story.met
        self.story.met.add(who.name)
        self.story.last = who.name
        return who.name if introduced else who.full

    def _clear(self) -> bool:
        """Whether a pronoun can only mean the hero."""
        story = self.story
        return story.last == story.hero.name or story.friend.name not in story.met or story.friend.gender != story.hero.gender

    def _thing(self) -> str:
        story = self.story
        if story.hue is None:
            story.hue = self._detail(HUES) or ""  # settled at the first mention
            return f"{story.hue} {story.thing}".strip()
        return story.thing

    def _place(self) -> str:
        story = self.story
        assert story.place is not None
        story.look = self._detail(PLACES[story.place][1])
        return f"the {story.look} {story.place}" if story.look else f"the {story.place}"

    def _slot(self, slot: Slot) -> str:
        story, rng, name = self.story, self.rng, slot.name
        hero = story.hero
        if name == "nook":
            nook = rng.choice([n for n in CHOICES[name] if n not in story.nooks])  # what was not there is not found there
            story.nooks.add(nook)
            return nook
        if name in CHOICES:
            return rng.choice(CHOICES[name])
        if name == "who":
            if self._clear() and rng.random() < 0.65:
                story.last = hero.name
                return "she" if hero.gender == "f" else "he"
            return self._name(hero)
        if name == "hero":
            return self._name(hero)
        if name in ("friend", "new_friend"):
            return self._name(story.friend)
        if name == "his":
            return ("her" if hero.gender == "f" else "his") if self._clear() else f"{hero.name}'s"
        if name == "him":
            return "her" if hero.gender == "f" else "him"
        if name == "persona":
            story.met.add(hero.name)
            story.last = hero.name
            return f"a {hero.trait} {hero.animal} named {hero.name}"
        if name == "nature":
            return f"a {hero.trait} {hero.animal}"
        if name == "food":
            return hero.food
        if name == "obj":
            return self._thing()
        if name == "a_obj":
            thing = self._thing()
            return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
        if name in ("at", "to"):
            assert story.place is not None
            return f"{PLACES[story.place][0] if name == 'at' else 'to'} {self._place()}"
        if name == "weather":
            story.weather = rng.choice(WEATHERS)
            return story.weather
        raise KeyError(name)


def _pick(pen: _Pen, *keys: str) -> Sentence:
    """A sentence of one of the tables `keys` that has not been told and that fits."""
    story, table = pen.story, sentences()[pen.rng.choice(keys)]
    known = story.friend.name in story.met
    fresh = [s for s in table if s.number not in story.used and not (known and s.introduces)]
    return pen.rng.choice(fresh or table)


def _tell(story: _Story, rng: Random, *, ending: str, dialogue: bool, size: int) -> str:
    """One draft of about `size` sentences."""
    pen = _Pen(story, rng)
    plot = f"plot={story.plot}"
    tone = story.tone
    says: list[str] = []
    speaks_tone = False
    problem = f"problem:{plot}"
    if dialogue:
        speaks_tone = tone != "plain" and (size <= 4 or rng.random() < 0.4)
        if speaks_tone:
            says.append(f"say:tone={tone}")
        elif size <= 4 or rng.random() < 0.6:
            problem = f"say_problem:{plot}"
        else:
            says.append(f"say:{plot}")
    if tone != "plain" and not speaks_tone:
        says.append(f"{tone}:tone={tone}")
    extra = size - 3 - len(says)
    texts = [pen.write(_pick(pen, "opening" if story.place else "opening_nowhere"))]
    if (story.details > 2 or (extra > 0 and rng.random() < 0.4)) and (scenes := _scenes(story)):
        texts.append(pen.write(_pick(pen, *scenes)))
        extra -= 1
    texts.append(pen.write(_pick(pen, problem)))
    says += [rng.choice((f"middle:{plot}", f"middle:{plot}", "middle")) for _ in range(extra)]
    rng.shuffle(says)
    texts += [pen.write(_pick(pen, key)) for key in says]
    texts.append(pen.write(_pick(pen, f"{ending}:{plot}")))
    return " ".join(texts)


def _scenes(story: _Story) -> list[str]:
    """The tables that describe this story's weather and place."""
    settled = {"weather": story.weather, "place": story.place}
    return [f"scene:{key}={value}" for key, value in settled.items() if value]


def _other(rng: Random, words: list[str], than: str) -> str:
    return rng.choice([w for w in words if w != than])


def _subject(request: Request, rng: Random, on_topic: bool) -> tuple[Character, str, str | None]:
    """Hero, object and place of one story, for better or worse those of `request`."""
    hero = CHARACTERS[request.hero or rng.choice(list(CHARACTERS))]
    thing = request.thing or rng.choice(list(OBJECTS))
    place: str | None = request.place or rng.choice(list(PLACES))
    if not on_topic:  # the ways an answer strays
        stray = rng.random()
        if stray < 0.1:
            hero = CHARACTERS[_other(rng, list(CHARACTERS), hero.name)]
        elif stray < 0.5:
            thing = _other(rng, list(OBJECTS), thing)
        if 0.1 <= stray < 0.2 or stray >= 0.5:
            place = None if rng.random() < 0.5 else _other(rng, list(PLACES), place or "")
    return hero, thing, place


def _new_story(request: Request, rng: Random, *, on_topic: bool, tone: str, details: int) -> _Story:
    asked_for = bool(request.hero and request.thing and request.place and held_out(request.hero, request.thing, request.place))
    while True:  # a story that is held out is told only to whom has asked for one
        hero, thing, place = _subject(request, rng, on_topic)
        if asked_for or place is None or not held_out(hero.name, thing, place):
            break
    plot = request.plot or rng.choice(list(PLOTS))
    if plot == "broken" and thing not in BREAKABLE:
        plot = "lost"
    friend = CHARACTERS[hero.best_friend if rng.random() < 0.3 else _other(rng, list(CHARACTERS), hero.name)]
    return _Story(hero, friend, thing, place, plot, tone, details)


def write_answer(
    prompt: str,
    rng: Random,
    *,
    on_topic: bool | None = None,
    happy_ending: bool | None = None,
    dialogue: bool | None = None,
    vivid: bool | None = None,
    warm: bool | None = None,
    good_length: bool | None = None,
) -> str:
    """A story that answers `prompt`. Each attribute is present (True), absent (False), or drawn with its rate in `RATES` (None).

    The attributes are those of `gold.attributes`, drawn independently of one another. Where it strays from its topic, it
    strays to no combination that is held out, unless `prompt` itself asks for one.
    """
    wanted = {"on_topic": on_topic, "happy_ending": happy_ending, "dialogue": dialogue, "vivid": vivid, "warm": warm}
    has = {name: rng.random() < RATES[name] if value is None else value for name, value in wanted.items()}
    if good_length is None:
        good_length = rng.random() < RATES["good_length"]
    low, high = GOOD_LENGTH if good_length else rng.choice(_POOR_LENGTHS)
    return _write(read_request(prompt), rng, low, high, **has)


def _write(
    request: Request,
    rng: Random,
    low: int,
    high: int,
    *,
    on_topic: bool,
    happy_ending: bool,
    dialogue: bool,
    vivid: bool,
    warm: bool,
) -> str:
    """The first draft of `low` to `high` words with the wanted detail, or the nearest of eight."""
    tone = "warm" if warm else ("rude" if rng.random() < 0.3 else "plain")
    ending = "happy" if happy_ending else rng.choice(("sad", "open"))
    details = rng.choice((3, 3, 4)) if vivid else rng.choice((0, 1, 1))
    size = max(3, round(rng.uniform(low, high) / 8.2))
    best, best_miss = "", 1e9
    for _ in range(8):
        story = _new_story(request, rng, on_topic=on_topic, tone=tone, details=details)
        text = _tell(story, rng, ending=ending, dialogue=dialogue, size=size)
        words = text.count(" ") + 1
        miss = max(low - words, words - high, 0) + 4 * (vivid and len(story.vivid) < 3)
        if miss < best_miss:
            best, best_miss = text, miss
        if not miss:
            break
        size = max(3, size + (words < low) - (words > high))
    return best


def write_story(rng: Random, request: Request) -> str:
    """A pretraining story of about 30 to 70 words, its attributes drawn with the rates of `RATES`, always on its own topic."""
    has = {name: rng.random() < RATES[name] for name in ("happy_ending", "dialogue", "vivid", "warm")}
    low = rng.randrange(26, 56)
    return _write(request, rng, low, low + 14, on_topic=True, **has)
