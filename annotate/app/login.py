"""Logging in and out: a plain page, a cookie that scripts cannot read, and the store's throttle."""

from __future__ import annotations

import html
import math
from urllib.parse import parse_qs

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from annotate.app.guard import COOKIE, ICON, LOGIN, LOGOUT, PEOPLE
from annotate.store.database import Database
from annotate.store.sessions import SESSION_SECONDS, close_session, open_session
from annotate.store.users import log_in

SYMBOL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#2f5d50"/>
<rect x="6" y="8" width="8" height="16" rx="2" fill="#fff"/>
<rect x="18" y="8" width="8" height="16" rx="2" fill="#9fd1bf"/></svg>"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in</title>
<style>
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { --back: light-dark(#f6f6f3, #15171a); --card: light-dark(#ffffff, #1d2024); --text: light-dark(#1c1d1f, #e6e7e5);
  --soft: light-dark(#5a5e64, #a6aab0); --line: light-dark(#dcdcd6, #353a40); --key: light-dark(#2f5d50, #7fc4ae);
  --on-key: light-dark(#ffffff, #10201b); --bad: light-dark(#a3291f, #ff9a8f);
  margin: 0; min-height: 100dvh; display: grid; place-items: center; padding: 20px; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { width: min(24rem, 100%); background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 32px; }
h1 { margin: 0 0 4px; font-size: 22px; letter-spacing: -.01em; }
p { margin: 0 0 24px; color: var(--soft); }
label { display: block; margin-bottom: 16px; font-weight: 600; font-size: 14px; }
input { display: block; width: 100%; margin-top: 6px; padding: 11px 13px; font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--line); border-radius: 8px; }
button { width: 100%; padding: 12px; border: 0; border-radius: 8px; font: inherit; font-weight: 600; color: var(--on-key);
  background: var(--key); cursor: pointer; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--key); outline-offset: 2px; }
[role=alert] { color: var(--bad); margin: 0 0 16px; }
</style>
</head>
<body>
<main>
<h1>Which answer is better?</h1>
<p>Log in to judge pairs of answers.</p>
<form method="post" action="/login">
%(alert)s<label>Name<input name="name" value="%(name)s" autocomplete="username" autocapitalize="none" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
</form>
</main>
</body>
</html>
"""


def login_routes(database: Database, *, https: bool) -> APIRouter:
    """`/`, `/login` and `/logout`.

    Args:
        https: people come by https, so the cookie is sent by nothing else.
    """
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def home() -> Response:
        return RedirectResponse(PEOPLE + "/", 303)

    @router.get(ICON, include_in_schema=False)
    def icon() -> Response:
        return Response(SYMBOL, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})

    @router.get(LOGIN, include_in_schema=False)
    def show() -> Response:
        return _page()

    @router.post(LOGIN, include_in_schema=False)
    async def enter(request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"), max_num_fields=10)
        name, password = (form.get(field, [""])[0] for field in ("name", "password"))
        address = request.client.host if request.client else ""
        found = await to_thread.run_sync(log_in, database, name, password, address)
        if found.wait_seconds > 0:
            seconds = math.ceil(found.wait_seconds)
            return _page(f"Too many attempts: try again in {seconds} s.", name, 429, {"retry-after": str(seconds)})
        if found.user is None:
            return _page("Name or password is wrong.", name, 401)
        token = await to_thread.run_sync(open_session, database, found.user.id)
        answer = RedirectResponse(PEOPLE + "/", 303)
        answer.set_cookie(COOKIE, token, max_age=int(SESSION_SECONDS), httponly=True, samesite="lax", secure=https)
        return answer

    @router.post(LOGOUT, include_in_schema=False)
    async def leave(request: Request) -> Response:
        await to_thread.run_sync(close_session, database, request.state.token)
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=https)
        return answer

    return router


def _page(alert: str = "", name: str = "", status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    told = f'<div role="alert">{html.escape(alert)}</div>\n' if alert else ""
    return HTMLResponse(PAGE.replace("%(alert)s", told).replace("%(name)s", html.escape(name, quote=True)), status, headers)
