"""Simulated people: they claim, read, judge by a utility with noise and habits of their own, and answer, like anybody else.

How they reach the app is not theirs to know: a `Client` claims and submits, directly (`StoreClient`) or over HTTP
(`annotate.client.HttpClient`).
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from annotate.store.database import Database
from annotate.store.projects import get_project
from annotate.store.protocol import Protocol as StoreProtocol
from annotate.store.records import Kind, Message, Result, Task, Verdict
from annotate.store.users import create_user, list_users
from rlhf_kit.data import world
from rlhf_kit.errors import InputError

# (the conversation, the answers) -> what each answer is worth; a step of 1 is the noise's own size at temperature 1.
Judge = Callable[[Sequence[Message], Sequence[str]], Sequence[float]]
WORDS_A_SECOND = 4.0


def world_judge(messages: Sequence[Message], responses: Sequence[str]) -> list[float]:
    """The embedded world's gold score of each answer to the last message."""
    return world.gold_scores([str(messages[-1]["content"])] * len(responses), list(responses))


class Client(Protocol):
    """One person's way to the app."""

    def claim(self, kind: Kind) -> Task | None:
        """The next task, None where nothing is left."""

    def submit(self, task: Task, verdict: Verdict) -> Result:
        """Hand a verdict in."""


@dataclass(frozen=True)
class StoreClient:
    """The way past all pages, to the store itself."""

    protocol: StoreProtocol
    user: int

    def claim(self, kind: Kind) -> Task | None:
        """The person's next task."""
        return self.protocol.claim(self.user, kind)

    def submit(self, task: Task, verdict: Verdict) -> Result:
        """Store the verdict."""
        return self.protocol.submit(task.assignment, self.user, verdict)


@dataclass(frozen=True)
class Habits:
    """How a person judges.

    A pair's first answer (as shown) is preferred with the probability that `rlhf_kit.data.world.Annotators` gives, whose settings
    these are: `z = (u_1 - u_2 + length_bias * (words_1 - words_2) / 10) / temperature + side_bias + noise`, noise logistic. A
    ranking sorts by `u / temperature` with Gumbel noise (Luce 1959), which is the same for two answers.

    Args:
        careless: the share of tasks that are not read: any answer is as likely as any other.
        ties_below: |z| up to which two answers are called equal.
        strong_at: each of these that |z| exceeds is a step of strength more.
        bad_below: both answers are called bad where the utility of both is lower.
        seconds: the time beside the reading. The whole is log-normal around reading (4 words a second) and this.
    """

    temperature: float = 0.5
    side_bias: float = 0.0
    length_bias: float = 0.0
    careless: float = 0.0
    ties_below: float = 0.2
    strong_at: Sequence[float] = (2.0, 5.0)
    bad_below: float = -math.inf
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError("temperature", self.temperature, "expected a positive number")
        if not 0 <= self.careless <= 1:
            raise InputError("careless", self.careless, "expected a share from 0 to 1")
        if not self.seconds > 0:
            raise InputError("seconds", self.seconds, "expected a positive number")


USUAL = Habits()


@dataclass
class SimulatedPerson:
    """Somebody with a way to the app, a judgment and habits. `scale`: the project's largest strength."""

    client: Client
    judge: Judge
    habits: Habits
    rng: Random
    scale: int = 3

    def work(self, labels: int, kind: Kind = "pair") -> Counter[str]:
        """Answer up to `labels` tasks; how many there were of each kind of verdict, and of each status that is not accepted."""
        counts: Counter[str] = Counter()
        for _ in range(labels):
            task = self.client.claim(kind)  # after a submit the same task that came with its result
            if task is None:
                break
            verdict = self.verdict(task)
            result = self.client.submit(task, verdict)
            counts[verdict.kind if result.status == "accepted" else result.status] += 1
        return counts

    def verdict(self, task: Task) -> Verdict:
        """What the person says of a task."""
        habits, rng = self.habits, self.rng
        lengths = [len(text.split()) for text in task.responses]
        careless = rng.random() < habits.careless
        utilities = [0.0] * len(lengths) if careless else list(self.judge(task.messages, task.responses))
        longer = [0.0 if careless else habits.length_bias * length / 10 for length in lengths]
        felt = [(u + w) / habits.temperature + _gumbel(rng) for u, w in zip(utilities, longer, strict=True)]
        read = sum(lengths) / WORDS_A_SECOND * (0.1 if careless else 1.0)
        visible = round(1000 * (read + habits.seconds) * rng.lognormvariate(0, 0.3))
        if task.kind == "rank":
            return Verdict(task.revision, "rank", ranking=_places(felt), visible_ms=visible)
        if not careless and max(utilities) < habits.bad_below:
            return Verdict(task.revision, "both_bad", visible_ms=visible)
        z = felt[0] - felt[1] + (0.0 if careless else habits.side_bias)
        if not careless and abs(z) <= habits.ties_below:
            return Verdict(task.revision, "tie", visible_ms=visible)
        strength = min(self.scale, 1 + sum(abs(z) > step for step in habits.strong_at))
        return Verdict(task.revision, "preference", strength if z > 0 else -strength, visible_ms=visible)


def simulate(people: Sequence[SimulatedPerson], labels: int) -> Counter[str]:
    """Let people answer `labels` tasks between them, one each in turn, pairs before rankings; what they said, counted."""
    counts: Counter[str] = Counter()
    kinds: tuple[Kind, ...] = ("pair", "rank")
    for kind in kinds:
        idle: set[int] = set()
        while len(idle) < len(people) and sum(counts.values()) < labels:
            for number, person in enumerate(people):
                done = person.work(min(1, labels - sum(counts.values())), kind)
                counts += done
                idle = idle - {number} if done else idle | {number}
    return counts


def simulated_people(
    database: Database, project_name: str, number: int, *, judge: Judge = world_judge, habits: Habits = USUAL, seed: int = 0
) -> list[SimulatedPerson]:
    """`number` people called `simulated 1`, `simulated 2`, ... at the store's door; made where they are missing.

    Their passwords are drawn and told to nobody.
    """
    project = get_project(database, project_name)
    known: Mapping[str, Any] = {each.name: each for each in list_users(database)}
    people = []
    for name in (f"simulated {i}" for i in range(1, number + 1)):
        person = known.get(name) or create_user(database, name, secrets.token_urlsafe(32))
        client = StoreClient(StoreProtocol(database, project.id), person.id)
        people.append(SimulatedPerson(client, judge, habits, Random(f"simulate-{seed}-{name}"), project.settings.scale))
    return people


def _gumbel(rng: Random) -> float:
    return -math.log(-math.log(rng.random() or 5e-324))


def _places(felt: Sequence[float]) -> list[int]:
    order = sorted(range(len(felt)), key=lambda position: -felt[position])
    return [order.index(position) + 1 for position in range(len(felt))]
