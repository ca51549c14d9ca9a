"""How many votes a second the server takes when it is never idle: everybody votes again as soon as they are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.annotate_load.http import Connection
from benchmarks.annotate_load.people import crowd
from benchmarks.annotate_load.server import Server
from benchmarks.annotate_load.world import PROJECT, World

PEOPLE = 24
WARM_SECONDS = 3.0


async def ui(server: Server, world: World, seconds: float) -> dict[str, float]:
    """Votes a second by the page's calls: each answer is the next pair, laid out."""
    people = await crowd(server.port, world.tokens[:PEOPLE])
    found = await _saturated([person.act for person in people], server, seconds)
    for person in people:
        person.connection.close()
    return {f"ui_{name}": value for name, value in found.items()}


async def rest(server: Server, world: World, seconds: float) -> dict[str, float]:
    """Votes a second by `/api/submit`: each answer is the next pair as text."""
    clients = [_RestPerson(Connection(server.port, token)) for token in world.tokens[:PEOPLE]]
    await asyncio.gather(*(client.open() for client in clients))
    found = await _saturated([client.act for client in clients], server, seconds)
    for client in clients:
        client.connection.close()
    return {f"rest_{name}": value for name, value in found.items()}


class _RestPerson:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.task: dict[str, Any] | None = None

    async def open(self) -> None:
        self.task = (await self.connection.get(f"/api/claim?project={PROJECT}"))["task"]

    async def act(self) -> bool:
        if self.task is None:
            return False
        verdict = {"revision": self.task["revision"], "kind": "preference", "strength": 1, "visible_ms": 900}
        body = {"project": PROJECT, "assignment": self.task["assignment"], "verdict": verdict}
        answer = await self.connection.post("/api/submit", body)
        if answer["status"] != "accepted":
            raise RuntimeError(f"a vote was not taken: {answer}")
        self.task = answer["task"]
        return True


async def _saturated(acts: list[Callable[[], Awaitable[bool]]], server: Server, seconds: float) -> dict[str, float]:
    """`cpu_ms` a vote of the server and of this driver say which of the two was the limit."""
    begun = time.perf_counter() + WARM_SECONDS
    counted = 0
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((server.cpu_seconds(), time.process_time()))

    async def work(act: Callable[[], Awaitable[bool]]) -> None:
        nonlocal counted
        while (now := time.perf_counter()) < begun + seconds:
            if now >= begun and not marks:
                mark()
            if not await act():
                raise RuntimeError("the pairs ran out before the time did: give it more")
            counted += begun <= time.perf_counter() < begun + seconds

    await asyncio.gather(*map(work, acts))
    mark()
    (server_from, driver_from), (server_to, driver_to) = marks
    return {
        "votes_per_s": counted / seconds,
        "server_cpu_ms": 1000 * (server_to - server_from) / counted,
        "driver_cpu_ms": 1000 * (driver_to - driver_from) / counted,
    }
