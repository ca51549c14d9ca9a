"""The gold preference: reads a story with the tables it was written from, and says how good it is.

A sentence counts only if the tables can write it and if it agrees with what the story has said so far (the same hero,
pronoun, object, place, weather, plot and tone; an opening first, nothing after an ending). Everything else, word salad and
echoes included, is malformed, earns nothing, and drags down what the rest has earned.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from rlhf_kit.data.world.lexicon import CHARACTERS, HUES, OBJECTS, PLACES, WEATHERS
from rlhf_kit.data.world.notation import Element, Options, Sentence, Slot, sentences, vivid_words
from rlhf_kit.data.world.sentences import CHOICES
from rlhf_kit.data.world.writer import GOOD_LENGTH, read_request

# What each attribute is worth. All have a like part in the variance of a small model's answers, so that no single one decides
# and a small reward model can learn the whole.
WEIGHTS = {
    "on_topic": 1.0,
    "happy_ending": 2.0,
    "dialogue": 1.4,
    "vivid": 1.2,
    "warm": 1.6,
    "good_length": 1.0,
    "well_formed": 1.0,
}
MEAN, STD = 5.81, 1.488  # of the weighted sum over SFT answers: makes `utility` standard there
_SOUND_FROM, _SOUND_ALL = 0.4, 0.8  # share of sound words below which nothing counts, and from which everything does
GUARDS = ("well_formed", "no_repetition", "finished")
_UNFINISHED = 0.5
_ENDINGS = {"happy": 1.0, "open": 0.3, "sad": 0.0}
_TONES = {"warm": 1.0, "rude": 0.0}
_PLAIN_TONE = 0.3
_LENGTH_SLOPE = 12  # words outside the band until nothing is left
_WORD = re.compile(r"[A-Za-z']+")
_BOUNDARY = re.compile(r'[.!?]"?(?=\s|$)')
Facts = dict[str, str]


class _Reader(NamedTuple):
    """A sentence of the tables as a regular expression; `keys` names its groups' slots in order."""

    sentence: Sentence
    pattern: re.Pattern[str]
    keys: tuple[str, ...]


@cache
def _fillers(first: bool) -> dict[str, str]:
    """Every slot as the regular expression of what may stand in it, `first` at the beginning of a sentence."""
    cast = CHARACTERS.values()
    people = [c.full for c in cast] + list(CHARACTERS)  # the longer form first
    things = f"(?:(?:{'|'.join(HUES)}) )?(?:{'|'.join(OBJECTS)})"
    places = {place: f"the (?:(?:{'|'.join(looks)}) )?{place}" for place, (_, looks) in PLACES.items()}
    return {
        "hero": "|".join(people),
        "who": "|".join([*(("He", "She") if first else ("he", "she")), *people]),
        "friend": "|".join(people),
        "new_friend": "|".join(c.full for c in cast),
        "his": "|".join([*(("His", "Her") if first else ("his", "her")), *(f"{name}'s" for name in CHARACTERS)]),
        "him": "him|her",
        "persona": "|".join(f"a {c.trait} {c.animal} named {c.name}" for c in cast),
        "nature": "|".join(sorted({f"a {c.trait} {c.animal}" for c in cast})),
        "food": "|".join(sorted({c.food for c in cast})),
        "obj": things,
        "a_obj": f"{'(?:An (?=[aeiou])|A ' if first else '(?:an (?=[aeiou])|a '}(?![aeiou])){things}",
        "at": "|".join(f"{PLACES[place][0]} {name}" for place, name in places.items()),
        "to": "|".join(f"to {name}" for name in places.values()),
        "weather": "|".join(WEATHERS),
        **{name: "|".join(words) for name, words in CHOICES.items()},
    }


def _expression(element: Element, first: bool, keys: list[str]) -> str:
    """The regular expression of one element; a slot that says a fact becomes a group, its name goes to `keys`."""
    if isinstance(element, str):
        return re.escape(element[0].upper() + element[1:] if first else element)
    if isinstance(element, Options):
        words = "|".join(map(re.escape, element.words))
        return f"(?:(?:{words}) )?" if element.vivid else f"(?:{words})"
    filler = _fillers(first)[element.name]
    if element.name in CHOICES:
        return f"(?:{filler})"
    keys.append(element.name)
    return f"({filler})"


@cache
def _readers() -> dict[str, list[_Reader]]:
    """The readers of all sentences by the first word they can begin with."""
    index: dict[str, list[_Reader]] = {}
    for table in sentences().values():
        for sentence in table:
            keys: list[str] = []
            parts = [_expression(e, i == 0, keys) for i, e in enumerate(sentence.elements)]
            reader = _Reader(sentence, re.compile("".join(parts) + r"(?=\s|$)"), tuple(keys))
            for word in _first_words(sentence.elements[0]):
                index.setdefault(word, []).append(reader)
    return index


def _first_words(element: Element) -> set[str]:
    if isinstance(element, str):
        return {_first_word(element[0].upper() + element[1:])}
    assert isinstance(element, Slot)
    if element.name == "a_obj":
        return {"A", "An"}
    return {_first_word(filler) for filler in _fillers(True)[element.name].split("|")}


def _first_word(text: str) -> str:
    word = _WORD.match(text)
    return word.group().removesuffix("'s") if word else text[:1]


def _learn(known: Facts, key: str, text: str) -> bool:
    """Adds what a filled slot says to the facts `known`; False where they contradict it."""
    said: Facts = {}
    words = text.split()
    last, name = words[-1], words[-1 if key == "persona" else 0]
    if key == "new_friend" and "friend" in known:
        return False
    if key in ("friend", "new_friend"):
        said["friend"] = name
    elif name in CHARACTERS:  # as hero, who or persona
        said["hero"] = name
    elif key in ("who", "his", "him"):
        if text.endswith("'s"):
            said["hero"] = text[:-2]
        else:
            said["gender"] = "m" if text.lower() in ("he", "his", "him") else "f"
    elif key in ("obj", "a_obj"):
        said["obj"] = last
        if len(words) > 1 and words[-2] in HUES:
            said["hue"] = words[-2]
    elif key in ("at", "to"):
        said["place"] = said["named_place"] = last
    else:  # weather, and the hero's own nature and food
        said[key] = text
    if "hero" in said:
        hero = CHARACTERS[said["hero"]]
        said |= {"gender": hero.gender, "nature": f"a {hero.trait} {hero.animal}", "food": hero.food}
    return _agree(known, said)


def _agree(known: Facts, said: Facts) -> bool:
    if any(known.setdefault(key, value) != value for key, value in said.items()):
        return False
    return "hero" not in known or known["hero"] != known.get("friend")


class Reading(NamedTuple):
    """What the parser made of a text: the roles of its sound sentences in order, the facts, and the words that are sound."""

    roles: tuple[str, ...]
    facts: Facts
    details: int  # distinct vivid words
    sound_words: int
    words: int


def read_story(text: str) -> Reading:
    """Parses `text` sentence by sentence against the tables of the world."""
    text = " ".join(text.split())
    facts: Facts = {}
    roles: list[str] = []
    sound: list[str] = []
    position = 0
    while position < len(text):
        end, found = _read_sentence(text, position, facts, roles)
        if found:
            sentence, facts = found
            roles.append(sentence.role)
            sound += text[position:end].split()
        position = end + 1
    details = len(vivid_words() & set(sound))  # a vivid word always has another after it: no comma, no stop
    return Reading(tuple(roles), facts, details, len(sound), len(text.split()))


def _read_sentence(text: str, position: int, facts: Facts, roles: list[str]) -> tuple[int, tuple[Sentence, Facts] | None]:
    """The end of the sentence at `position` and, if it is sound after `facts` and `roles`, the sentence and the new facts."""
    end = -1
    for reader in _readers().get(_first_word(text[position : position + 20]), ()):
        match = reader.pattern.match(text, position)
        if not match:
            continue
        end = match.end()
        sentence = reader.sentence
        if sentence.role.startswith("opening") != (position == 0) or (roles and roles[-1] in _ENDINGS):
            continue
        known = dict(facts)
        if _agree(known, sentence.given) and all(
            _learn(known, key, said) for key, said in zip(reader.keys, match.groups(), strict=True)
        ):
            return end, (sentence, known)
    if end < 0:
        boundary = _BOUNDARY.search(text, position)
        end = boundary.end() if boundary else len(text)
    return end, None


def attributes(prompt: str, response: str) -> dict[str, float]:
    """The qualities of `response` as an answer to the story request `prompt`, each in [0, 1], 1 is best.

    `on_topic`: share of the requested hero, object and place that it names. `happy_ending`: 1 happy, 0.3 open, 0 sad or none.
    `dialogue`: someone speaks. `vivid`: distinct vivid words, three are enough. `warm`: 1 warm, 0.3 plain, 0 rude.
    `good_length`: 1 within `GOOD_LENGTH` words, falling to 0 at 12 words outside it. And three guards:
    `well_formed`: share of the words that stand in sound sentences. `no_repetition`: 1 - 4 * (share of repeated triples - 0.1),
    clipped to [0, 1]. `finished`: 1 if the story comes to an ending, of whatever kind, else 0.5.
    """
    story, request = read_story(response), read_request(prompt)
    named = (story.facts.get("hero"), story.facts.get("obj"), story.facts.get("named_place"))
    asked = [(want, got) for want, got in zip(request[:3], named, strict=True) if want]
    low, high = GOOD_LENGTH
    outside = max(low - story.words, story.words - high, 0)
    sound = bool(story.roles)
    return {
        "on_topic": sum(want == got for want, got in asked) / len(asked) if asked else float(sound),
        "happy_ending": _ENDINGS.get(story.roles[-1], 0.0) if sound else 0.0,
        "dialogue": float(any(role.startswith("say") for role in story.roles)),
        "vivid": min(story.details, 3) / 3,
        "warm": _TONES.get(story.facts.get("tone", ""), _PLAIN_TONE) if sound else 0.0,
        "good_length": max(0.0, 1 - outside / _LENGTH_SLOPE),
        "well_formed": story.sound_words / story.words if story.words else 0.0,
        "no_repetition": _no_repetition(response),
        "finished": 1.0 if sound and story.roles[-1] in _ENDINGS else _UNFINISHED,
    }


def _no_repetition(text: str) -> float:
    words = _WORD.findall(text.lower())
    triples = list(zip(words, words[1:], words[2:]))
    if not triples:
        return 0.0
    return min(1.0, max(0.0, 1 - 4 * (1 - len(set(triples)) / len(triples) - 0.1)))


def utility(qualities: dict[str, float]) -> float:
    """The gold score of `attributes`: their weighted sum times the guards, standardised on SFT answers.

    One unsound sentence among five costs its share of `well_formed`; a text that is mostly unsound is worth nothing.

    It never falls when an attribute rises. Its floor, -MEAN / STD, is what empty and senseless answers get.
    """
    sound = qualities["well_formed"]
    total = sum(weight * qualities[name] for name, weight in WEIGHTS.items())
    guard = min(1.0, max(0.0, (sound - _SOUND_FROM) / (_SOUND_ALL - _SOUND_FROM)))
    guard *= qualities["no_repetition"] * qualities["finished"]
    return (total * guard - MEAN) / STD


def gold_scores(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward callable: the gold score of every response to the story request beside it. See `attributes` and `utility`."""
    return [utility(attributes(prompt, response)) for prompt, response in zip(prompts, responses, strict=True)]
