"""The web app, put together, and its command: `python -m annotate serve`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from annotate.app.guard import Guard
from annotate.app.login import login_routes
from annotate.app.rest import rest_routes
from annotate.store.database import Database

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def make_app(database: Database, *, hosts: frozenset[str] = frozenset(), https: bool = False) -> Any:
    """The ASGI app over a database.

    Args:
        hosts: the names by which people ask for it; empty: any.
        https: it stands behind TLS.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(login_routes(database, https=https))
    app.include_router(rest_routes(database))
    return Guard(app, database, hosts)
