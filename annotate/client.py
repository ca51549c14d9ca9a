"""One person's way to a running app over HTTP: what `annotate.simulate` asks of a client, and the rest of the REST API.

A request that got no answer is sent again, and none can count twice: a claim gives the task that the person holds, and what
changes something names its assignment (and revision), so that the store knows a repeat and says `duplicate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from annotate.app.guard import LOGIN, REST
from annotate.store.records import Kind, Past, Result, Task, Verdict
from rlhf_kit.errors import InputError


@dataclass(frozen=True)
class HttpClient:
    """A logged-in person, see `log_in`. Safe to share between threads; `close` it at the end.

    Args:
        http: has the app's address and the session's cookie.
        project: its name; None where there is only one.
        tries: of each request, before it is given up.
        pause: seconds before the second try, and twice as many before each further one.

    All methods raise InputError: what the app refuses as wrong input, a session that ended, an app that does not answer.
    """

    http: httpx.Client
    project: str | None = None
    tries: int = 6
    pause: float = 0.1

    def claim(self, kind: Kind = "pair") -> Task | None:
        """The person's task: the one they hold, else the next; None where nothing is left for them now."""
        return _task(self._get("claim", kind=kind)["task"])

    def submit(self, task: Task, verdict: Verdict) -> Result:
        """Hand a verdict in. `duplicate` may mean that an earlier try of this very call had arrived."""
        return self._post("submit", task, verdict=asdict(verdict))

    def skip(self, task: Task, reason: str = "") -> Result:
        """Leave a task to somebody else."""
        return self._post("skip", task, revision=task.revision, reason=reason)

    def undo(self, task: Task) -> Result:
        """Take the answer to a task back; it is the result's `next`."""
        return self._post("undo", task)

    def history(self) -> list[Past]:
        """The person's last answers, newest first, as they were shown."""
        return [Past(**past | {"task": Task(**past["task"])}) for past in self._get("history")["history"]]

    def progress(self) -> dict[str, Any]:
        """The counts of `annotate.store.progress.Progress`."""
        return self._get("progress")

    def close(self) -> None:
        """Close the connection; the session stays."""
        self.http.close()

    def _get(self, what: str, **query: str) -> dict[str, Any]:
        named = {} if self.project is None else {"project": self.project}
        return self._ask(what, lambda: self.http.get(f"{REST}/{what}", params=named | query))

    def _post(self, what: str, task: Task, **more: Any) -> Result:
        body = {"project": self.project, "assignment": task.assignment, **more}
        found = self._ask(what, lambda: self.http.post(f"{REST}/{what}", json=body))
        return Result(found["status"], _task(found["task"]), found["reason"])

    def _ask(self, what: str, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        answer = sent(send, str(self.http.base_url), tries=self.tries, pause=self.pause)
        if answer.status_code == 200:
            return dict(answer.json())
        mend = "the session has ended: log in again" if answer.status_code == 401 else _said(answer)
        raise InputError(f"the status of {REST}/{what}", answer.status_code, mend)


def log_in(address: str, name: str, password: str, project: str | None = None, *, http: httpx.Client | None = None) -> HttpClient:
    """Log in as anybody does, by name and password, at the app's address (`http://localhost:7860`).

    Raises:
        InputError: a wrong name or password, too many attempts, no app at the address.
    """
    http = http or httpx.Client(base_url=address, timeout=60)
    answer = sent(lambda: http.post(LOGIN, data={"name": name, "password": password}, follow_redirects=False), address, tries=6)
    if answer.status_code == 303:
        return HttpClient(http, project)
    http.close()
    if answer.status_code == 401:
        raise InputError("name", name, "which is nobody's, or the password is another: see `python -m annotate users list`")
    raise InputError("the status of a login", answer.status_code, _said(answer))


def sent(send: Callable[[], httpx.Response], address: str, *, tries: int, pause: float = 0.1) -> httpx.Response:
    """The answer to a request that may be repeated: again after a broken connection or a server's failure, later each time.

    Raises:
        InputError: no answer to any of the tries.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            answer = send()
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            continue
        if answer.status_code < 500:
            return answer
        reason = f"status {answer.status_code}"
    raise InputError("the app's address", address, f"which gave no answer in {tries} tries ({reason}): is the app running there?")


def _task(found: dict[str, Any] | None) -> Task | None:
    return None if found is None else Task(**found)


def _said(answer: httpx.Response) -> str:
    """What the app has against a request."""
    if answer.status_code == 429:
        return f"expected fewer attempts: try again in {answer.headers.get('retry-after', 'some')} s"
    try:
        return f"because {answer.json()['error']}"
    except (ValueError, KeyError, TypeError):
        return "expected 200: is this address the app's?"
