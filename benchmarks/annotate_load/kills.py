"""The server is killed again and again while people vote. Whoever was not answered says it again, until they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from benchmarks.annotate_load.check import check
from benchmarks.annotate_load.people import Person, crowd
from benchmarks.annotate_load.server import Server
from benchmarks.annotate_load.world import World

PEOPLE = 16
UNDO_SHARE = 0.05
LOAD_SECONDS = (0.2, 1.5)  # between a start and the next kill


async def kills(server: Server, world: World, count: int, tell: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Kill a running server `count` times under load, start it anew each time, and check what the database holds.

    Args:
        tell: called with the number of kills after each.
    """
    rng = random.Random(0)
    people = await crowd(server.port, world.tokens[:PEOPLE], undo_share=UNDO_SHARE)
    over = asyncio.Event()

    async def work(person: Person) -> None:
        while not over.is_set():
            if not await person.act():
                raise RuntimeError("the pairs ran out before the kills did: give it more")

    async def kill() -> None:
        try:
            for number in range(count):
                await asyncio.sleep(rng.uniform(*LOAD_SECONDS))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                tell(number + 1)
            await asyncio.sleep(LOAD_SECONDS[1])
        finally:
            over.set()

    await asyncio.gather(kill(), *map(work, people))
    for person in people:
        person.connection.close()
    ledger = {token: vote for person in people for token, vote in person.ledger.items()}
    found = check(world.url, ledger)
    retries = sum(person.retries for person in people)
    return {**vars(found), "kills": count, "retries": retries}
