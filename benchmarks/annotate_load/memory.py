"""How much memory the server holds before anybody came, and after a crowd has worked as fast as it could."""

from __future__ import annotations

import asyncio
import time

from benchmarks.annotate_load.people import Person, crowd
from benchmarks.annotate_load.server import Server
from benchmarks.annotate_load.world import World

SETTLE_SECONDS = 2.0


async def memory(server: Server, world: World, seconds: float) -> dict[str, float]:
    """Resident megabytes; everybody in `world` has a page of their own, because each page has its state in the server."""
    await asyncio.sleep(SETTLE_SECONDS)
    idle = server.memory_mb()
    people = await crowd(server.port, world.tokens)
    until = time.perf_counter() + seconds

    async def work(person: Person) -> None:
        while time.perf_counter() < until:
            await person.act()

    await asyncio.gather(*map(work, people))
    for person in people:
        person.connection.close()
    await asyncio.sleep(SETTLE_SECONDS)
    return {"rss_idle_mb": idle, "rss_loaded_mb": server.memory_mb()}
