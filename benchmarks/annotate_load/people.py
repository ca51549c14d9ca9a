"""Annotators without a browser: the calls that the panel's page makes, and a ledger of what was acknowledged.

As panel.js does, one sends a judgement again, the same event with `attempt` raised, until a value answers it; only the waits are
shorter, so that a run ends.
"""

from __future__ import annotations

import asyncio
import html
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.annotate_load.http import Connection
from benchmarks.annotate_load.world import PROJECT, preference

PREDICT = "/app/gradio_api/run/predict"
RETRY_SECONDS = 0.2
FAULTS = (OSError, EOFError, TimeoutError)


@dataclass(frozen=True)
class Functions:
    """The numbers of the page's functions: what shows the first pair, and what a judgement goes to."""

    opened: int
    judge: int

    @classmethod
    async def of(cls, connection: Connection) -> Functions:
        """As the page's own configuration has them."""
        config = await connection.get("/app/config")
        panel = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "pair-panel")
        calls = {
            tuple(target)[1]: each["id"]
            for each in config["dependencies"]
            if each["outputs"] == [panel]
            for target in each["targets"]
        }
        return cls(calls["select"], calls["judge"])


@dataclass(frozen=True)
class Vote:
    """What a person chose, of the texts as they were displayed. `strength`: above 0 where `left` is the better one."""

    kind: str
    strength: int
    left: str
    right: str


@dataclass
class Person:
    """Somebody at the pair page.

    Args:
        undo_share: how often they take their last vote back.
    """

    connection: Connection
    functions: Functions
    rng: random.Random
    undo_share: float = 0.0
    ledger: dict[str, Vote] = field(default_factory=dict)  # by assignment; only what the server has acknowledged
    seconds: list[float] = field(default_factory=list)  # that each judgement took to be answered
    retries: int = 0
    value: dict[str, Any] = field(default_factory=dict)

    async def open(self) -> None:
        """Open the page: the first pair."""
        self.value = await self._until_answered(self.functions.opened, None)

    async def act(self) -> bool:
        """Judge the pair shown, or take the last vote back; False where nothing is left."""
        undo = self.value.get("undo")
        if undo in self.ledger and self.rng.random() < self.undo_share:
            await self._say({"kind": "undo", "undo": undo})
            del self.ledger[undo]
            return True
        if self.value["view"] != "task":
            return False
        left, right = (_text(answer["raw"]) for answer in self.value["answers"])
        said = Vote("preference", preference(left, right), left, right)
        if self.rng.random() < 0.1:
            said = Vote(self.rng.choice(["tie", "both_bad"]), 0, left, right)
        assignment = self.value["assignment"]
        # The panel counts from left to right: below 0 the left one is better.
        await self._say({"kind": said.kind, "strength": -said.strength})
        self.ledger[assignment] = said
        return True

    async def _say(self, fields: dict[str, Any]) -> None:
        shown = self.value
        event = {
            "event_id": f"{self.rng.getrandbits(64):x}", "attempt": 1, "assignment": shown["assignment"],
            "revision": shown["revision"], "undo": None, "strength": 0, "ranking": None, "aspects": {}, "flags": [], "edits": {},
            "justification": "", "visible_ms": 900, "guidelines_version": shown["guidelines"]["version"], **fields,
        }  # fmt: skip
        begun = time.perf_counter()
        value = await self._until_answered(self.functions.judge, event)
        self.seconds.append(time.perf_counter() - begun)
        if value["reply_to"] != event["event_id"] or (value["notice"] and value["notice"]["kind"] == "warning"):
            raise RuntimeError(f"a judgement was not taken: {value['notice']}")
        self.value = value

    async def _until_answered(self, function: int, event: dict[str, Any] | None) -> dict[str, Any]:
        while True:
            try:
                body = {"data": [PROJECT], "event_data": event, "fn_index": function, "session_hash": self.connection.token[:10]}
                answer = await self.connection.post(PREDICT, body)
                return dict(answer["data"][0])
            except FAULTS:
                self.retries += 1
                if event is not None:
                    event["attempt"] += 1
                await asyncio.sleep(RETRY_SECONDS)


async def crowd(port: int, tokens: tuple[str, ...], *, seed: int = 0, undo_share: float = 0.0) -> list[Person]:
    """A person for each session, each with the first pair before them."""
    functions = await Functions.of(Connection(port, tokens[0]))
    people = [
        Person(Connection(port, token), functions, random.Random(f"{seed} {number}"), undo_share)
        for number, token in enumerate(tokens)
    ]
    await asyncio.gather(*(person.open() for person in people))
    return people


def _text(raw: str) -> str:
    """The text of a raw view, as the browser shows it."""
    return html.unescape(re.sub(r"\A<pre[^>]*>\n|</pre>\Z", "", raw))
