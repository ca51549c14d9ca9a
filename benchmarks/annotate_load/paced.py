"""A working day's crowd: many people who read before they judge, each with a page open."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from benchmarks.annotate_load.http import Connection
from benchmarks.annotate_load.people import crowd
from benchmarks.annotate_load.server import Server
from benchmarks.annotate_load.world import World

PEOPLE = 200
THINK_SECONDS = 8.0


async def paced(server: Server, world: World, seconds: float) -> dict[str, float]:
    """The time from a judgement to the next pair, at exponential thinking times; `errors` are attempts that failed."""
    people = await crowd(server.port, world.tokens[:PEOPLE])
    # What a page keeps open all the time.
    held = [
        asyncio.create_task(Connection(server.port, token).hold(f"/app/gradio_api/heartbeat/{token[:10]}"))
        for token in world.tokens[:PEOPLE]
    ]
    rng = random.Random(0)
    until = time.perf_counter() + seconds
    cpu = server.cpu_seconds()

    async def work(number: int) -> None:
        own = random.Random(rng.random())
        while True:
            think = own.expovariate(1 / THINK_SECONDS)
            if time.perf_counter() + think > until:
                return
            await asyncio.sleep(think)
            if not await people[number].act():
                raise RuntimeError("the pairs ran out before the time did: give it more")

    await asyncio.gather(*(work(number) for number in range(len(people))))
    share = (server.cpu_seconds() - cpu) / seconds
    for task in held:
        task.cancel()
    for person in people:
        person.connection.close()
    times = sorted(each for person in people for each in person.seconds)
    return {
        "paced_200_p50_ms": 1000 * statistics.median(times),
        "paced_200_p95_ms": 1000 * times[int(0.95 * len(times))],
        "paced_200_votes": len(times),
        "paced_200_errors": sum(person.retries for person in people),
        "paced_200_server_cpu": share,
    }
