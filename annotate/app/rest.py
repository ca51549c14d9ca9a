"""The protocol as JSON, for clients that are no browser: the same session, the same rules, no Gradio between.

    GET /api/claim?project=NAME&kind=pair        -> {"task": {...} or null}
    POST /api/submit {project, assignment, verdict: {revision, kind, strength, ...}} -> {"status", "reason", "task"}
    POST /api/skip, /api/flag, /api/undo {project, assignment, ...}
    GET /api/history?project=NAME, /api/progress?project=NAME, /api/projects

Sides are as shown: a positive strength says that the first answer is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from annotate.store.database import Database
from annotate.store.progress import project_progress
from annotate.store.projects import Project, list_projects
from annotate.store.protocol import Protocol
from annotate.store.records import Result, Task, Verdict
from rlhf_kit.errors import InputError

# JSON's types; what values they may have is the store's to say.
VERDICT: dict[str, type | tuple[type, ...]] = {
    "revision": int, "kind": str, "strength": int, "ranking": (list, type(None)), "aspects": dict, "flags": list,
    "justification": str, "edits": dict, "visible_ms": (int, type(None)),
}  # fmt: skip


def rest_routes(database: Database) -> list[Route]:
    """Everything under `/api`; who asks is in `request.state.user`. Plain routes: FastAPI's own cost more than they check."""
    known: dict[str, int] = {}  # names of projects never change

    def protocol(name: Any) -> Protocol:
        if not isinstance(name, str):
            return Protocol(database, _project(database, name).id)
        if name not in known:
            known[name] = _project(database, name).id
        return Protocol(database, known[name])

    async def projects(request: Request) -> Response:
        return await _answer(lambda: {"projects": [_described(each) for each in list_projects(database)]})

    async def claim(request: Request) -> Response:
        query, user = request.query_params, request.state.user.id
        kind = query.get("kind", "pair")
        return await _answer(lambda: {"task": _task(protocol(query.get("project")).claim(user, _kind(kind)))})

    async def submit(request: Request) -> Response:
        body, user = await _body(request), request.state.user.id
        return await _answer(lambda: _result(protocol(body["project"]).submit(_id(body), user, verdict_from(body["verdict"]))))

    async def skip(request: Request) -> Response:
        body, user = await _body(request), request.state.user.id
        return await _answer(
            lambda: _result(protocol(body["project"]).skip(_id(body), user, _revision(body), body.get("reason", "")))
        )

    async def flag(request: Request) -> Response:
        body, user = await _body(request), request.state.user.id
        return await _answer(
            lambda: _result(
                protocol(body["project"]).flag(
                    _id(body), user, _revision(body), _typed("flags", body["flags"], list), body.get("reason", "")
                )
            )
        )

    async def undo(request: Request) -> Response:
        body, user = await _body(request), request.state.user.id
        return await _answer(lambda: _result(protocol(body["project"]).undo(_id(body), user)))

    async def history(request: Request) -> Response:
        name, user = request.query_params.get("project"), request.state.user.id
        return await _answer(lambda: {"history": [asdict(past) for past in protocol(name).history(user)]})

    async def progress(request: Request) -> Response:
        name = request.query_params.get("project")
        return await _answer(lambda: asdict(project_progress(database, _project(database, name).id)))

    return [
        Route("/api/projects", projects, methods=["GET"]),
        Route("/api/claim", claim, methods=["GET"]),
        Route("/api/submit", submit, methods=["POST"]),
        Route("/api/skip", skip, methods=["POST"]),
        Route("/api/flag", flag, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/api/history", history, methods=["GET"]),
        Route("/api/progress", progress, methods=["GET"]),
    ]


def verdict_from(said: Any) -> Verdict:
    """A verdict from JSON.

    Raises:
        InputError: a field that is missing, unknown or of another type.
    """
    if not isinstance(said, dict):
        raise InputError("verdict", said, "expected an object with revision and kind")
    for name in ("revision", "kind", *said):
        if name not in said:
            raise InputError(f"verdict.{name}", None, "which is missing")
        if name not in VERDICT:
            raise InputError(f"verdict.{name}", said[name], f"expected any of {', '.join(VERDICT)}")
        _typed(f"verdict.{name}", said[name], VERDICT[name])
    for place in said.get("edits", {}):
        if not (place.isascii() and place.isdigit()):
            raise InputError("verdict.edits", place, "expected the place of an answer shown, from 0")
    return Verdict(**said | {"edits": {int(place): text for place, text in said.get("edits", {}).items()}})


def _typed(name: str, value: Any, types: type | tuple[type, ...]) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        names = " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))
        raise InputError(name, value, f"expected {names}")
    return value


def _project(database: Database, name: Any) -> Project:
    found = list_projects(database)
    for each in found:
        if each.name == name or (name is None and len(found) == 1):
            return each
    raise InputError("project", name, f"expected one of {', '.join(each.name for each in found) or 'none yet: create one'}")


def _described(project: Project) -> dict[str, Any]:
    shown = ("guidelines", "scale", "aspects", "lease_seconds")
    settings = {name: value for name, value in asdict(project.settings).items() if name in shown}
    return {"name": project.name, "guidelines_version": project.guidelines_version, **settings}


def _kind(kind: str) -> Any:
    if kind not in ("pair", "rank"):
        raise InputError("kind", kind, "expected pair or rank")
    return kind


def _id(body: dict[str, Any]) -> str:
    return _typed("assignment", body["assignment"], str)


def _revision(body: dict[str, Any]) -> int:
    return _typed("revision", body["revision"], int)


def _task(task: Task | None) -> dict[str, Any] | None:
    return None if task is None else dict(vars(task))  # its fields are JSON as they are


def _result(result: Result) -> dict[str, Any]:
    return {"status": result.status, "reason": result.reason, "task": _task(result.next)}


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


async def _answer(work: Callable[[], dict[str, Any]]) -> Response:
    """Do the work off the event loop; wrong input is 400 with its one line."""
    try:
        return JSONResponse(await to_thread.run_sync(work))
    except InputError as error:
        return JSONResponse({"error": str(error)}, 400)
    except KeyError as error:
        return JSONResponse({"error": f"{error.args[0]} is missing from the request"}, 400)
