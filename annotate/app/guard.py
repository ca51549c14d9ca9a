"""What every request passes first: whose it is, where it comes from, how large it is, what it may reach.

Deny by default: a path that is not named here does not exist. Gradio serves files, proxies, uploads, and its own code editor
under its prefix; none of them is named. A hidden button is no authorisation either, so the admin's pages are a mount of their
own, and what they call checks the role again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from anyio import to_thread
from starlette.exceptions import HTTPException

from annotate.store.database import Database
from annotate.store.sessions import session_user
from annotate.store.users import User

COOKIE = "annotate_session"
PEOPLE, ADMIN, REST, LOGIN, LOGOUT, ICON = "/app", "/admin", "/api", "/login", "/logout", "/favicon.ico"
LARGEST_BODY = 1 << 20  # bytes; a vote with an edited answer is far below
LARGEST_IMPORT = 256 << 20
IMPORT = f"{REST}/admin/import"
# Of Gradio: its code, which is the same for everybody and holds nothing of ours, ...
PUBLIC = ("/assets/", "/static/", "/svelte/")
PUBLIC_FILES = ("/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/manifest.json")
# ... and what a logged-in page needs.
PAGE = ("", "/", "/config", "/config/", "/gradio_api/startup-events", "/gradio_api/queue/data")
PAGE_PREFIXES = ("/gradio_api/heartbeat/",)
CALLS = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/reset/")
CALL_PREFIXES = ("/gradio_api/run/", "/gradio_api/api/")
HEADERS = {
    # Gradio starts by inline scripts and compiles its templates, so both are allowed; nothing may come from or go elsewhere.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with `no-referrer` a browser hides the origin of a form from the app itself, too
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Guard:
    """ASGI middleware; puts the user into `request.state.user` and the token of the session into `request.state.token`.

    Args:
        hosts: names by which the app may be asked for, without ports; empty: any. They stop a foreign page whose name was made to
            point at this machine.
    """

    app: Any
    database: Database
    hosts: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not pass, and hand on the rest."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page uses a websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        if self.hosts and _host(headers.get("host", "")) not in self.hosts:
            return await _refuse(send, 421, "this server does not answer to that name: see --public_host")
        if method not in ("GET", "HEAD") and not _same_origin(headers):
            return await _refuse(send, 403, "the request comes from another site")
        most = LARGEST_IMPORT if path == IMPORT else LARGEST_BODY
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            return await _refuse(send, 413, f"the request is larger than {most:,} bytes")

        token = _cookie(headers.get("cookie", ""))
        user = None
        if not _public(path):
            user = await self._whose(token)
            if user is None:
                if method == "GET" and "text/html" in headers.get("accept", ""):
                    return await _redirect(send, LOGIN)
                return await _refuse(send, 401, "log in first")
            status = allowed(method, path, user)
            if status != 200:
                return await _refuse(send, status, "an admin's page" if status == 403 else "there is no such page")
        scope.setdefault("state", {}).update(user=user, token=token)
        await self._forward(scope, receive, send, most)

    async def _whose(self, token: str) -> User | None:
        """Whose session it is. SQLite answers sooner than a thread could be asked; a server elsewhere may let us wait."""
        if not token:
            return None
        if self.database.sqlite:
            return session_user(self.database, token)
        return await to_thread.run_sync(session_user, self.database, token)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        got = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:  # it did not say how large it is
                raise HTTPException(413, f"the request is larger than {most:,} bytes")
            return message

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *ENCODED]
            await send(message)

        await self.app(scope, counted, with_headers)


def allowed(method: str, path: str, user: User) -> int:
    """The status of a logged-in person's request as far as the path decides it: 200, 403 or 404."""
    if path in ("/", LOGOUT):
        return 200
    if path.startswith(f"{REST}/admin/"):
        return 200 if user.role == "admin" else 403
    if path.startswith(f"{REST}/"):
        return 200
    for mount in (PEOPLE, ADMIN):
        if path == mount or path.startswith(f"{mount}/"):
            inside = path[len(mount) :]
            reads = method in ("GET", "HEAD") and (inside in PAGE or inside.startswith(PAGE_PREFIXES))
            calls = method == "POST" and (inside in CALLS or inside.startswith(CALL_PREFIXES))
            if not (reads or calls):
                return 404
            return 403 if mount == ADMIN and user.role != "admin" else 200
    return 404


def _public(path: str) -> bool:
    if path in (LOGIN, ICON):
        return True
    inside = next((path[len(mount) :] for mount in (PEOPLE, ADMIN) if path.startswith(f"{mount}/")), "")
    return inside in PUBLIC_FILES or (inside.startswith(PUBLIC) and ".." not in inside)


def _same_origin(headers: dict[str, str]) -> bool:
    """A browser names the origin of what changes something; what names none is no browser, and has no cookie by accident."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    return bool(origin) and urlsplit(origin).netloc == headers.get("host")


def _host(header: str) -> str:
    return (urlsplit(f"//{header}").hostname or "").lower() if header else ""


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    await _answer(send, status, {"content-type": "application/json", "content-length": str(len(body))}, body)


async def _redirect(send: Send, where: str) -> None:
    await _answer(send, 303, {"location": where, "content-length": "0"}, b"")


async def _answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*((name.encode(), value.encode()) for name, value in headers.items()), *ENCODED],
        }
    )
    await send({"type": "http.response.body", "body": body})
