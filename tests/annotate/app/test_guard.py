"""Who gets in, from where, and how far."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from annotate.app.guard import COOKIE, LARGEST_BODY, Guard
from annotate.app.server import make_app
from annotate.store.sessions import open_session
from annotate.store.users import set_active
from tests.annotate.app.conftest import PASSWORD, World


def log_in(client, name: str = "ann", password: str = PASSWORD):
    return client.post("/login", data={"name": name, "password": password})


def test_without_a_session_a_page_leads_to_the_login_and_everything_else_is_refused(world: World) -> None:
    client = world.client()
    for path in ("/", "/app/", "/admin/", "/api/claim"):
        page = client.get(path, headers={"accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert client.get(path).status_code == 401
    assert client.post("/api/submit", json={}).status_code == 401
    assert client.get("/login").status_code == 200


def test_a_password_opens_a_session_in_a_cookie_that_scripts_and_other_sites_do_not_get(world: World) -> None:
    client = world.client()
    answer = log_in(client)
    assert (answer.status_code, answer.headers["location"]) == (303, "/app/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/api/projects").status_code == 200


def test_behind_tls_the_cookie_travels_by_nothing_else(world: World) -> None:
    client = TestClient(make_app(world.database, https=True), base_url="https://localhost", follow_redirects=False)
    assert "secure" in log_in(client).headers["set-cookie"].lower()


def test_a_wrong_password_says_no_more_than_a_wrong_name_and_both_are_throttled(world: World) -> None:
    client = world.client()
    wrong = [log_in(client, name, "not the password") for name in ("ann", "nobody")]
    assert [each.status_code for each in wrong] == [401, 401]
    assert wrong[0].text.replace("ann", "") == wrong[1].text.replace("nobody", "").replace("ann", "")
    codes = [log_in(client, "ann", "not the password").status_code for _ in range(4)]
    assert codes[-1] == 429
    late = log_in(client, "ann")  # right, but too soon
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) >= 1


def test_a_name_from_the_login_form_is_shown_as_text(world: World) -> None:
    page = log_in(world.client(), '"><script>alert(1)</script>', "not the password").text
    assert "<script>" not in page


def test_leaving_ends_the_session_on_the_server(world: World) -> None:
    client = world.client("ann")
    token = client.cookies[COOKIE]
    assert client.post("/logout").status_code == 303
    again = world.client()
    again.cookies.set(COOKIE, token)
    assert again.get("/api/projects").status_code == 401


def test_a_disabled_person_is_out_at_once(world: World) -> None:
    client = world.client("ann")
    assert client.get("/api/projects").status_code == 200
    set_active(world.database, world.people["ann"].id, False)
    assert client.get("/api/projects").status_code == 401


def test_a_session_survives_a_restart_of_the_app(world: World) -> None:
    other = TestClient(make_app(world.database), base_url="http://localhost")
    other.cookies.set(COOKIE, open_session(world.database, world.people["ann"].id))
    assert other.get("/api/projects").status_code == 200


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"origin": "http://localhost"}, True),
        ({}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://localhost.evil.example"}, False),
        ({"origin": "http://localhost:81"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
    ],
)
def test_what_changes_something_must_come_from_the_apps_own_pages(world: World, headers, passes: bool) -> None:
    answer = world.client("ann").post("/api/undo", json={}, headers=headers)
    assert (answer.status_code != 403) == passes
    assert (log_in(world.client()).status_code, world.client().post("/login", headers=headers).status_code != 403) == (
        303,
        passes,
    )


def test_another_name_for_this_machine_is_not_answered(world: World) -> None:
    client = TestClient(make_app(world.database, hosts=frozenset({"localhost"})), base_url="http://localhost")
    assert client.get("/login").status_code == 200
    assert client.get("/login", headers={"host": "localhost:7860"}).status_code == 200
    assert client.get("/login", headers={"host": "evil.example"}).status_code == 421


def test_bodies_have_a_cap_whether_or_not_they_say_how_large_they_are(world: World) -> None:
    client = world.client("ann")
    assert client.post("/api/submit", content=b"x" * (LARGEST_BODY + 1)).status_code == 413

    def drip():
        for _ in range(LARGEST_BODY // 1000 + 2):
            yield b"x" * 1000

    assert client.post("/api/submit", content=drip()).status_code == 413
    assert client.get("/api/projects").status_code == 200


def test_an_annotator_reaches_no_admin_path_and_nobody_what_is_not_named(world: World) -> None:
    ann, root = world.client("ann"), world.client("root")
    for path in ("/admin/", "/admin/config", "/api/admin/export"):
        assert ann.get(path).status_code == 403
        assert root.get(path).status_code != 403
    for mount in ("/app", "/admin"):
        for path in (
            "/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/proxy=http://x", "/monitoring", "/gradio_api/info",
            "/gradio_api/vibe-code", "/gradio_api/runs", "/gradio_api/component_server", "/gradio_api/stream/x", "/login",
            "/gradio_api/call/x",
        ):  # fmt: skip
            assert root.get(mount + path).status_code == 404, path
            assert root.post(mount + path).status_code == 404, path
    assert root.get("/docs").status_code == root.get("/openapi.json").status_code == 404


def test_every_answer_forbids_foreign_content_framing_and_sniffing(world: World) -> None:
    for client, path in ((world.client(), "/login"), (world.client(), "/api/claim"), (world.client("ann"), "/api/projects")):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


def test_a_websocket_is_closed(world: World) -> None:
    sent = []

    async def send(message):
        sent.append(message)

    # In a thread, because a browser test before it may have left a running loop in this one.
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, Guard(None, world.database)({"type": "websocket"}, None, send)).result()  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
