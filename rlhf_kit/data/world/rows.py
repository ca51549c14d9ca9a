"""The datasets of the world: pretraining text, instructions, preferences and prompts, each an endless stream cut at `n`.

Requests are split by what they combine (character, object, place): one combination in ten is held out of everything that is
trained on, pretraining stories and answers that stray from their topic included, so that held-out prompts ask for stories
nobody has told.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal

from rlhf_kit.data.world.annotators import Annotators
from rlhf_kit.data.world.lexicon import BREAKABLE, CHARACTERS, OBJECTS, PLACES, PLOTS, Character
from rlhf_kit.data.world.writer import Request, held_out, write_answer, write_story

Split = Literal["train", "heldout"]
Messages = list[dict[str, str]]

_NAMES, _THINGS, _PLACE_NAMES = tuple(CHARACTERS), tuple(OBJECTS), tuple(PLACES)
_REQUESTS = (
    "Tell me a story about {hero} and {thing} {at}.",
    "Write a short story about {hero} and {thing} {at}.",
    "Please write a story about {hero} and {thing} {at}.",
    "Can you tell me about {hero} and {thing} {at}?",
    "What happened to {hero} and {thing} {at}?",
    "I want to hear a story about {hero} and {thing} {at}.",
    "Make up a story with {hero} and {thing} {at}.",
    "Tell me about the day when {hero} was {at} with {thing}.",
    "Write a story that takes place {at}, with {hero} and {thing}.",
    "Please tell me a story with {thing}, {at}, about {hero}.",
)
_TITLES = (
    "This is a story about {hero} and {thing} {at}.",
    "Here is what happened to {hero} and {thing} {at}.",
    "This story takes place {at}, with {hero} and {thing}.",
    "A story with {thing}, {at}, about {hero}:",
)
_QUESTIONS = (
    (("Where does {someone} live?", "Where is the home of {someone}?"), "{who.name} lives {home}."),
    (("What does {someone} like to eat?", "What is the favorite food of {someone}?"), "{who.name} likes to eat {who.food}."),
    (("Who is the best friend of {someone}?", "Who often plays with {someone}?"), "The best friend of {who.name} is {friend}."),
    (("What kind of animal is {who.name}?", "Who is {who.name}?"), "{who.name} is a {who.trait} {who.animal}."),
    (("Describe {someone}.", "Tell me about {someone}."), "{about}"),
    (("Describe the {place}.", "What is the {place} like?"), "{scenery}"),
    (("What can you do with {thing}?", "What is {thing} good for?"), "You can use {thing} to {use}."),
)


def _draw(rng: Random, split: Split) -> tuple[str, str, str, str]:
    """Hero, object, place and plot of a story request."""
    while True:
        hero, thing, place = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_PLACE_NAMES)
        if held_out(hero, thing, place) == (split == "heldout"):
            break
    plots = [plot for plot in PLOTS if plot != "broken" or thing in BREAKABLE]
    return hero, thing, place, rng.choice(plots)


def _ask(rng: Random, split: Split) -> str:
    hero, thing, place, plot = _draw(rng, split)
    return rng.choice(_REQUESTS).format(hero=CHARACTERS[hero].full, thing=f"a {PLOTS[plot]} {thing}", at=_at(place))


def _at(place: str) -> str:
    return f"{PLACES[place][0]} the {place}"


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _about(who: Character, rng: Random) -> str:
    """A description of a character, two to four sentences."""
    he, his = ("She", "Her") if who.gender == "f" else ("He", "His")
    friend = CHARACTERS[who.best_friend]
    facts = [
        rng.choice((f"{he} lives {_at(who.home)}.", f"{his} home is {_at(who.home)}.")),
        rng.choice((f"{he} likes to eat {who.food}.", f"{his} favorite food is {who.food}.")),
        rng.choice((f"{his} best friend is {friend.full}.", f"{he} often plays with {friend.full}.")),
    ]
    rng.shuffle(facts)
    opening = rng.choice((f"{who.name} is a {who.trait} {who.animal}.", f"{who.full} is very {who.trait}."))
    return " ".join([opening, *facts[: rng.choice((2, 3, 3))]])


def _place(place: str, rng: Random) -> str:
    """A description of a place and who lives there."""
    first, second = rng.sample(PLACES[place][1], 2)
    living = [c.full for c in CHARACTERS.values() if c.home == place]
    text = rng.choice((f"The {place} is {first} and {second}.", f"The {place} is a {first} place."))
    return f"{text} {' and '.join(living)} {'live' if len(living) > 1 else 'lives'} there." if living else text


def _thing(thing: str, rng: Random) -> str:
    who = CHARACTERS[rng.choice(_NAMES)]
    use = f"You can use {_an(thing)} to {OBJECTS[thing]}."
    story = rng.choice((f"{who.full} has {_an(thing)}.", f"{who.full} would like to have {_an(thing)}."))
    return rng.choice((use, f"{use} {story}", f"{story} {use}"))


def _titled_story(rng: Random) -> str:
    """A story, half of the time after a sentence that says what it is about: so a base model learns to follow a request."""
    hero, thing, place, plot = _draw(rng, "train")
    story = write_story(rng, Request(hero, thing, place, plot))
    if rng.random() < 0.5:
        return story
    title = rng.choice(_TITLES)
    return f"{title.format(hero=CHARACTERS[hero].full, thing=f'a {PLOTS[plot]} {thing}', at=_at(place))} {story}"


def stories(n: int, seed: int = 0) -> Iterator[str]:
    """`n` pretraining documents: four in five a story of 26 to 70 words (every other one
    after a sentence that announces it), the rest facts about characters, places and objects."""
    rng = Random(f"stories-{seed}")
    for _ in range(n):
        kind = rng.random()
        if kind < 0.8:
            yield _titled_story(rng)
        elif kind < 0.92:
            yield _about(CHARACTERS[rng.choice(_NAMES)], rng)
        elif kind < 0.96:
            yield _place(rng.choice(_PLACE_NAMES), rng)
        else:
            yield _thing(rng.choice(_THINGS), rng)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _question(rng: Random) -> tuple[str, str]:
    """A question about the facts of the world and its answer."""
    who, place, thing = CHARACTERS[rng.choice(_NAMES)], rng.choice(_PLACE_NAMES), rng.choice(_THINGS)
    words = {
        "someone": rng.choice((who.name, who.full)),
        "who": who,
        "home": _at(who.home),
        "friend": CHARACTERS[who.best_friend].full,
        "about": _about(who, rng),
        "place": place,
        "scenery": _place(place, rng),
        "thing": _an(thing),
        "use": OBJECTS[thing],
    }
    asked, answer = rng.choice(_QUESTIONS)
    return rng.choice(asked).format(**words), answer.format(**words)


def instructions(n: int, seed: int = 0, split: Split = "train") -> list[dict[str, Messages]]:
    """`n` SFT rows `{"messages": [user, assistant]}`: 80 % story requests with mediocre answers, 20 % questions of fact."""
    rng = Random(f"instructions-{split}-{seed}")
    rows = []
    for _ in range(n):
        if rng.random() < 0.8:
            prompt = _ask(rng, split)
            answer = write_answer(prompt, rng)
        else:
            prompt, answer = _question(rng)
        rows.append({"messages": [_turn("user", prompt), _turn("assistant", answer)]})
    return rows


def prompts(n: int, seed: int = 0, split: Split = "train") -> list[dict[str, Messages]]:
    """`n` rows `{"prompt": [user]}`, story requests all."""
    rng = Random(f"prompts-{split}-{seed}")
    return [{"prompt": [_turn("user", _ask(rng, split))]} for _ in range(n)]


def preferences(
    n: int, seed: int = 0, annotators: Annotators | None = None, split: Split = "train", flaw_rate: float = 0.1
) -> list[dict[str, Messages]]:
    """`n` rows `{"prompt": [user], "chosen": [assistant], "rejected": [assistant]}`, the choice made by `annotators`.

    Both answers are the generator's own, to the same request, in random order. A share `flaw_rate` of the answers is spoiled
    (see `spoil`), because a reward model that never saw nonsense would not know to dislike it.
    """
    rng = Random(f"preferences-{split}-{seed}")
    asked = [_ask(rng, split) for _ in range(n)]
    pairs = []
    for prompt in asked:
        pair = [write_answer(prompt, rng), write_answer(prompt, rng)]
        pairs.append([spoil(prompt, text, rng) if rng.random() < flaw_rate else text for text in pair])
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    choices = (annotators or Annotators(seed=seed)).label(asked, first, second)
    rows = []
    for prompt, a, b, choice in zip(asked, first, second, choices, strict=True):
        chosen, rejected = (a, b) if choice == "a" else (b, a)
        rows.append(
            {
                "prompt": [_turn("user", prompt)],
                "chosen": [_turn("assistant", chosen)],
                "rejected": [_turn("assistant", rejected)],
            }
        )
    return rows


def spoil(prompt: str, text: str, rng: Random) -> str:
    """`text` with a fault that a badly trained model shows: cut off, repeating itself, shuffled, echoing, or running on."""
    words, sentences = text.split(), text.replace(". ", ".|").split("|")
    kind = rng.randrange(6)
    if kind == 0:
        return " ".join(words[: rng.randrange(2, len(words) - 1)])
    if kind == 1:
        at = rng.randrange(len(sentences))
        return " ".join(sentences[: at + 1] + [sentences[at]] * rng.randrange(1, 4) + sentences[at + 1 :])
    if kind == 2:
        return " ".join(rng.sample(words, len(words)))
    if kind == 3:
        return " ".join(rng.sample(sentences, len(sentences)))
    if kind == 4:
        return f"{prompt} {text}"
    return f"{text} {write_answer('', rng)}"
