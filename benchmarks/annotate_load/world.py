"""A project with pairs, people who are logged in already, and what a reader finds better.

Which answer is better is decided by its text alone, so that a vote's side can be checked without trusting any order that the app
stored: the answer whose text has the greater hash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import insert

from annotate.store.database import open_database
from annotate.store.items import add_comparisons
from annotate.store.projects import Settings, create_project
from annotate.store.records import NewComparison, NewResponse
from annotate.store.schema import user
from annotate.store.sessions import open_session
from annotate.store.users import create_user

PROJECT = "load"
LOGIN = ("somebody", "correct horse battery")  # of the one who comes with a password
GUIDELINES = "Which answer helps more?\n\n- Right first, then *clear*, then short.\n- Length alone is no merit."
VOCABULARY = (
    "river stone answer because reason follows often seldom carries model reward policy step gradient loss value sample prompt "
    "token reader writer garden winter summer number measure table window letter question example simple careful result"
)
WORDS = VOCABULARY.split()


@dataclass(frozen=True)
class World:
    """`tokens`: a session's each, one a person."""

    url: str
    tokens: tuple[str, ...]
    overlap: int


def make_world(url: str, *, people: int, pairs: int, overlap: int = 1) -> World:
    """Fill an empty database. Sessions are put in directly: a login costs a password hash, which is made to be slow."""
    database = open_database(url)
    project = create_project(database, PROJECT, Settings(guidelines=GUIDELINES, overlap=overlap, gold_share=0.0))
    add_comparisons(database, project.id, _pairs(pairs))
    row = {"password": "none", "active": True, "created": 0.0}
    rows = [{**row, "name": "admin", "role": "admin"}]
    rows += [{**row, "name": f"person {number}", "role": "annotator"} for number in range(people)]
    with database.write() as connection:
        keys = connection.execute(insert(user).returning(user.c.id, user.c.role), rows).all()
    create_user(database, *LOGIN)
    tokens = tuple(open_session(database, key.id) for key in keys if key.role == "annotator")
    database.close()
    return World(url, tokens, overlap)


def reading(text: str) -> int:
    """How good the reader finds an answer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def preference(left: str, right: str) -> int:
    """What the reader says of two answers: 1 to 3 where the left one is better, negative where the right one."""
    size = 1 + (reading(left) ^ reading(right)) % 3
    return size if reading(left) > reading(right) else -size


def _pairs(count: int) -> Iterator[NewComparison]:
    rng = random.Random(0)
    for number in range(count):
        question = {"role": "user", "content": f"Question {number}: {_sentence(rng)}"}
        yield NewComparison([question], [NewResponse(_answer(rng, number), model=model) for model in ("first", "second")])


def _answer(rng: random.Random, number: int) -> str:
    """About 120 words with the markup that language models like."""
    points = "\n".join(f"{place}. **{rng.choice(WORDS)}**: {_sentence(rng)}" for place in (1, 2, 3))
    return f"{_sentence(rng)} {_sentence(rng)}\n\n{points}\n\nSee `{rng.choice(WORDS)}_{number}`. {_sentence(rng)}"


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=18)).capitalize() + "."
