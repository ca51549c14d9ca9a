"""The one event of the admin's pages, as their script sends it."""

from __future__ import annotations

import html
import re
from typing import Any

from starlette.testclient import TestClient

from annotate.app.admin import PAGES
from tests.annotate.app.conftest import World

__all__ = ["PAGES", "act", "shown", "words"]


def act(client: TestClient, page: str, action: str = "show", project: str | None = "first", **fields: Any) -> dict[str, Any]:
    """Send the event and give the value that comes back."""
    event = {"id": "1", "page": page, "project": project, "action": action, "fields": {k: str(v) for k, v in fields.items()}}
    [function] = client.get("/admin/config").json()["dependencies"]
    body = {"fn_index": function["id"], "data": [], "event_data": event, "session_hash": "abc"}
    answer = client.post("/admin/gradio_api/run/predict", json=body)
    assert answer.status_code == 200, answer.text
    value = answer.json()["data"][0]
    assert value["reply_to"] == "1"
    return value


def shown(world: World, page: str, **fields: Any) -> str:
    """The text of a page as root sees it."""
    value = act(world.client("root"), page, **fields)
    assert value["html"] is not None, value
    return words(value["html"])


def words(markup: str) -> str:
    """Markup without its tags."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())
