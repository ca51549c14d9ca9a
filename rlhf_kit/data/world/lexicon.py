"""The words, the facts and the sentences of the micro-world: data only.

One table of sentences serves twice: `writer` fills it to tell stories, `gold` compiles it to regular expressions to read
them. So whatever can be written can be judged, and nothing else counts as well-formed.

The notation of a sentence: `{slot}` is filled from the story (its hero, its object) or from `CHOICES`; `[a|b]` is one of
several wordings; `[a|b]?` is a vivid detail that may be left out. A sentence never begins with a bracket.
"""

from __future__ import annotations

from typing import NamedTuple


class Character(NamedTuple):
    """One of the animals; every story and every fact agrees with this row."""

    name: str
    animal: str
    gender: str  # "f" or "m"
    trait: str
    home: str  # a key of PLACES
    food: str
    best_friend: str  # a name

    @property
    def full(self) -> str:
        """The name with the animal: `Mia the fox`."""
        return f"{self.name} the {self.animal}"


_ROWS = """
    Mia fox f clever forest berries Tom        | Tom bear m gentle forest honey Mia
    Ella rabbit f shy meadow carrots Hugo      | Hugo hedgehog m careful garden pears Ella
    Luna owl f patient orchard nuts Max        | Max dog m playful farm bread Luna
    Rosa hen f lively farm corn Felix          | Felix pig m cheerful farm plums Rosa
    Nina mouse f curious mill cheese Leo       | Leo lion m brave hill soup Nina
    Ruby squirrel f quick park nuts Milo       | Milo mole m sleepy garden beans Ruby
    Daisy duck f cheerful lake bread Finn      | Finn frog m jolly lake plums Daisy
    Hazel deer f gentle forest apples Ben      | Ben badger m strong hill honey Hazel
    Poppy sheep f sleepy meadow carrots Gus    | Gus goose m proud village corn Poppy
    Tilda turtle f patient beach berries Oscar | Oscar otter m playful river soup Tilda
    Ivy cat f proud village cheese Otto        | Otto donkey m strong mill apples Ivy
    Greta goat f brave bridge beans Sam        | Sam horse m quick market carrots Greta
"""
_CAST = [Character(*row.split()) for line in _ROWS.strip().splitlines() for row in line.split("|")]
CHARACTERS: dict[str, Character] = {who.name: who for who in _CAST}

# place: (preposition, vivid adjectives)
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "forest": ("in", ("green", "dark", "shady")),
    "river": ("by", ("wide", "blue", "winding")),
    "garden": ("in", ("green", "sunlit", "leafy")),
    "hill": ("on", ("green", "steep", "grassy")),
    "beach": ("on", ("sandy", "wide", "golden")),
    "market": ("at", ("noisy", "crowded", "colorful")),
    "farm": ("at", ("dusty", "quiet", "colorful")),
    "meadow": ("in", ("green", "wide", "grassy")),
    "lake": ("by", ("blue", "silver", "quiet")),
    "village": ("in", ("quiet", "tiny", "colorful")),
    "bridge": ("near", ("mossy", "wooden", "narrow")),
    "park": ("in", ("green", "leafy", "shady")),
    "orchard": ("in", ("green", "shady", "leafy")),
    "mill": ("at", ("dusty", "wooden", "mossy")),
}

OBJECTS: dict[str, str] = {  # object: what you can do with it
    "lantern": "see in the dark", "kite": "play in the wind", "drum": "make music", "bell": "call your friends",
    "key": "open a door", "map": "find the way", "ball": "play a game", "boat": "cross the water",
    "hat": "keep your head dry", "scarf": "keep your neck warm", "basket": "carry apples", "book": "learn new things",
    "cup": "drink water", "spoon": "eat soup", "coin": "buy some bread", "flute": "play a song",
    "umbrella": "stay dry in the rain", "rope": "climb a wall", "blanket": "sleep well at night", "wagon": "carry heavy things",
    "clock": "tell the time", "mirror": "see your face", "whistle": "call for help", "bucket": "carry water",
}  # fmt: skip
BREAKABLE = frozenset(OBJECTS) - {"key", "map", "ball", "hat", "scarf", "book", "coin", "rope", "blanket"}
HUES = ("red", "blue", "golden", "silver", "yellow", "purple", "shiny", "tiny")
WEATHERS = ("sunny", "rainy", "windy", "foggy", "cloudy")
PLOTS = {"lost": "lost", "broken": "broken", "stuck": "stuck", "found": "strange"}  # plot: its word in a request
