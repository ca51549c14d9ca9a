"""The web app, put together, and its command: `python -m annotate serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI

from annotate.app.admin import admin_pages
from annotate.app.chat import chat_page
from annotate.app.guard import ADMIN, PEOPLE, Guard
from annotate.app.judging import Judging
from annotate.app.login import login_routes
from annotate.app.panel import PAGE_CSS
from annotate.app.people import page_css, people_pages
from annotate.app.rest import rest_routes
from annotate.app.rest_admin import admin_rest_routes
from annotate.store.database import Database

if TYPE_CHECKING:
    from annotate.app.generation import Speakers

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def make_app(
    database: Database, *, hosts: frozenset[str] = frozenset(), https: bool = False, speakers: Speakers | None = None
) -> Any:
    """The ASGI app over a database.

    Args:
        speakers: the models of the chat page; without them there is none.
        hosts: the names by which people ask for it; empty: any.
        https: it stands behind TLS.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(login_routes(database, https=https))
    app.include_router(rest_routes(database))
    app.include_router(admin_rest_routes(database))
    judging = Judging(database)
    _mount(app, people_pages(judging, chat=chat_page(judging, speakers) if speakers else None), PEOPLE)
    _mount(app, admin_pages(database), ADMIN)
    return Guard(app, database, hosts)


def _mount(app: FastAPI, pages: gr.Blocks, path: str) -> None:
    gr.mount_gradio_app(
        app,
        pages,
        path,
        auth_dependency=lambda request: request.state.user.name if request.state.user else None,
        css=PAGE_CSS + page_css(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size="1kb",
        mcp_server=False,
        pwa=False,
    )
