"""The server process, killed under load through the calls of the page; and that the check of its votes would see a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from annotate.store.database import open_database
from annotate.store.schema import judgment
from benchmarks.annotate_load.check import check
from benchmarks.annotate_load.kills import kills
from benchmarks.annotate_load.people import crowd
from benchmarks.annotate_load.report import BARS, table
from benchmarks.annotate_load.server import running
from benchmarks.annotate_load.world import make_world, preference
from tests.annotate.test_faults import LocalPerson


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_thrice_while_people_vote_it_loses_no_vote_doubles_none_and_turns_none(database_url: str) -> None:
    world = make_world(database_url, people=16, pairs=1500, overlap=2)
    with running(database_url) as server:
        found = asyncio.run(kills(server, world, 3))
    assert (found["lost"], found["duplicated"], found["wrong_side"], found["kills"]) == (0, 0, 0, 3)
    assert found["votes"] > 0 and found["retries"] > 0  # else nothing was under way


def test_a_page_that_was_open_while_the_server_was_replaced_votes_on(tmp_path: Path) -> None:
    world = make_world(f"sqlite:///{tmp_path}/votes.db", people=1, pairs=5)

    async def open_and_vote(port: int) -> bool:
        [person] = await crowd(port, world.tokens)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        return await person.act() and person.value["assignment"] is not None

    with running(world.url) as server:
        assert asyncio.run(open_and_vote(server.port))


TAMPERINGS: dict[str, tuple[set[str], Callable[[Connection], object]]] = {
    "a vote vanishes": ({"lost"}, lambda connection: connection.execute(delete(judgment).where(judgment.c.id == 1))),
    "a vote becomes another": (
        {"lost", "wrong_side"},
        lambda connection: connection.execute(update(judgment).where(judgment.c.id == 1).values(kind="skip")),
    ),
    "a vote is doubled": ({"duplicated"}, lambda connection: connection.execute(_copied())),
    "a vote changes sides": (
        {"wrong_side"},
        lambda connection: connection.execute(update(judgment).where(judgment.c.id == 1).values(strength=-judgment.c.strength)),
    ),
    "two answers change places": (
        {"wrong_side"},
        lambda connection: connection.execute(
            text("UPDATE candidate SET position = CASE position WHEN 0 THEN 2 ELSE 1 END WHERE comparison_id = 1")
        ),
    ),
    "one vote too many on a comparison": (
        {"duplicated"},
        lambda connection: connection.execute(text("UPDATE comparison SET overlap = 0 WHERE id = 1")),
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_the_check_sees_it_when(tmp_path: Path, name: str) -> None:
    counted, tamper = TAMPERINGS[name]
    world = make_world(f"sqlite:///{tmp_path}/votes.db", people=1, pairs=4)
    database = open_database(world.url)
    person = LocalPerson.of(database, 0)
    person.work()
    sound = check(world.url, person.ledger)
    assert (sound.lost, sound.duplicated, sound.wrong_side, sound.votes) == (0, 0, 0, 4)
    with database.write() as connection:
        tamper(connection)
    database.close()
    found = vars(check(world.url, person.ledger))
    assert {key: value for key, value in found.items() if value and key != "votes"} == dict.fromkeys(counted, 1)


def _copied():  # type: ignore[no-untyped-def]
    names = [column.name for column in judgment.columns if column.name not in ("id", "revision")]
    row = select(*(judgment.c[name] for name in names), judgment.c.revision + 1).where(judgment.c.id == 1)
    return insert(judgment).from_select([*names, "revision"], row)


def test_a_reader_prefers_the_same_text_on_either_side() -> None:
    assert preference("one", "other") == -preference("other", "one") != 0


def test_the_table_marks_what_misses_its_bar() -> None:
    lines = table({bar.name: bar.bar for bar in BARS} | {"ui_votes_per_s": 99.0, "lost": 1}).splitlines()
    assert sorted(line.split("  ")[0] for line in lines if line.endswith("MISSED")) == [
        "votes lost",
        "votes/s through the page, saturated",
    ]
    assert sum(line.endswith("ok") for line in lines) == len(BARS) - 2
