"""The web app, put together, and its command: `python -m annotate serve`."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Any

import gradio as gr
import uvicorn
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
from annotate.demo import GUIDELINES, demo_comparisons
from annotate.store.database import Database
from annotate.store.items import add_comparisons
from annotate.store.progress import project_progress
from annotate.store.projects import Settings, create_project, list_projects
from annotate.store.users import create_user, list_users
from rlhf_kit.config import check_least
from rlhf_kit.errors import InputError

if TYPE_CHECKING:
    from annotate.app.generation import Speakers
    from annotate.cli import ServeConfig

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def main(config: ServeConfig) -> None:
    """Make ready what is missing, say where the app is, and serve until stopped."""
    check_least(config, port=1, max_new_tokens=1, temperature=0)
    if len(config.models) not in (0, 2):
        raise InputError("--models", list(config.models), "expected two, or the same one twice")
    _check_free(config.host, config.port)
    with config.open() as database:
        make_ready(database, config)
        speakers = None
        if config.models:
            from annotate.app.generation import load_speakers  # torch, for those who chat alone

            options: Any = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
            speakers = load_speakers(*config.models, **options)
        if importlib.util.find_spec("matplotlib") is None:
            # Gradio tries to import it at every call; None lets that fail at once, instead of after a search of all folders.
            sys.modules["matplotlib"] = None  # type: ignore[assignment]
        app = make_app(database, hosts=served_names(config), https=config.https, speakers=speakers)
        print(f"http://{'localhost' if config.host in LOOPBACK else config.host}:{config.port}/", flush=True)
        forwarded: Any = {"proxy_headers": config.https, "forwarded_allow_ips": "*" if config.https else None}
        uvicorn.run(app, host=config.host, port=config.port, log_level="warning", server_header=False, **forwarded)


def make_ready(database: Database, config: ServeConfig) -> None:
    """The first admin, the project, and the demo's comparisons where the project is empty."""
    users = list_users(database)
    name = config.admin or ("admin" if not any(user.role == "admin" for user in users) else None)
    if name is not None and not any(user.name == name for user in users):
        password = secrets.token_urlsafe(12)
        create_user(database, name, password, "admin")
        print(f"{name}: the password is {password} (shown this once)", flush=True)
    projects = list_projects(database)
    wanted = config.project or (projects[0].name if projects else "default")
    project = next((each for each in projects if each.name == wanted), None)
    if project is None:
        project = create_project(database, wanted, Settings(guidelines=GUIDELINES if config.demo else ""))
    found = project_progress(database, project.id)
    if config.demo and not found.open + found.done + found.adjudicate + found.decided:
        add_comparisons(database, project.id, demo_comparisons(200, 20))


def served_names(config: ServeConfig) -> frozenset[str]:
    """The names that the guard answers to; none for any."""
    here = LOOPBACK | {config.host}
    everywhere = config.host in ("0.0.0.0", "::") and not config.public_host
    return frozenset() if everywhere else here | frozenset(name.lower() for name in config.public_host)


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise InputError("--port", port, f"it cannot be served at {host} ({error.strerror}): choose another") from error


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
    app.router.routes.extend(rest_routes(database))
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
