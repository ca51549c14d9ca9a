"""Passwords, sessions and the brake on guessing."""

from __future__ import annotations

import threading

import pytest

from annotate.store import users
from annotate.store.audit import events
from annotate.store.schema import session, user
from annotate.store.sessions import SESSION_SECONDS, close_session, open_session, session_user
from annotate.store.users import create_user, list_users, log_in, set_active, set_password, set_role
from rlhf_kit.errors import InputError


@pytest.fixture(autouse=True)
def _fast_hashes(monkeypatch):
    monkeypatch.setattr(users, "LOG2_N", 4)


def rows(database, table) -> list:
    with database.read() as connection:
        return list(connection.execute(table.select()).all())


def test_the_password_of_a_new_user_opens_and_no_other_does(database):
    made = create_user(database, "ana", "correct horse", "admin")
    assert log_in(database, "ana", "correct horse", "here").user == made
    assert log_in(database, "ana", "correct hors", "here").user is None
    for name in ("nobody", "ana\0", "\ud800", "x" * 1000):
        assert log_in(database, name, "correct horse", "\udfff").user is None or name == "ana\0"
    assert list_users(database) == [made]
    assert "correct horse" not in repr(rows(database, user)) + repr(events(database))


def test_two_users_with_one_password_have_different_hashes_of_the_stated_strength(database, monkeypatch):
    monkeypatch.undo()
    for name in ("ana", "bo"):
        create_user(database, name, "correct horse")
    first, second = (row.password for row in rows(database, user))
    assert first != second
    assert first.startswith("scrypt$15$8$3$")
    assert log_in(database, "bo", "correct horse", "here").user is not None


@pytest.mark.parametrize(
    ("name", "password", "role", "field"),
    [
        ("ana", "long enough", "annotator", "user.name"),
        (" ", "long enough", "annotator", "user.name"),
        ("bo", "too short", "annotator", "password"),
        ("bo", "long enough", "owner", "user.role"),
    ],
)
def test_a_user_that_cannot_be_is_refused_by_name_and_the_password_is_not_shown(database, name, password, role, field):
    create_user(database, "ana", "long enough")
    with pytest.raises(InputError) as error:
        create_user(database, name, password, role)
    assert error.value.field == field
    assert password not in str(error.value)


def test_failures_make_the_next_attempt_wait_longer_each_time_and_a_success_forgets_them(database, clock):
    create_user(database, "ana", "correct horse")
    waits = []
    for _ in range(16):
        attempt = log_in(database, "ana", "a wrong guess", "here")
        waits.append(attempt.wait_seconds)
        if attempt.wait_seconds:
            assert log_in(database, "ana", "correct horse", "here").user is None  # even the right one is not looked at
            clock.time += attempt.wait_seconds
            assert log_in(database, "ana", "a wrong guess", "here").wait_seconds == 0
    assert waits[:9] == [0, 0, 0, 1, 2, 4, 8, 16, 32]
    assert waits[-1] == 900
    assert log_in(database, "ana", "correct horse", "elsewhere").user is not None
    clock.time += 900
    assert log_in(database, "ana", "correct horse", "here").user is not None
    assert log_in(database, "ana", "a wrong guess", "here").wait_seconds == 0


def test_many_guesses_at_once_get_no_more_looks_than_one_after_the_other(database, monkeypatch):
    create_user(database, "ana", "correct horse")
    looks = []
    monkeypatch.setattr(users, "_is_password", lambda *_: looks.append(1))
    attempts = []
    guess = ("ana", "a wrong guess", "here")
    threads = [threading.Thread(target=lambda: attempts.append(log_in(database, *guess))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) == 12
    assert len(looks) == 3


def test_a_clock_set_back_does_not_lock_anybody_out(database, clock):
    create_user(database, "ana", "correct horse")
    for _ in range(3):
        log_in(database, "ana", "a wrong guess", "here")
    clock.time -= 86_400
    wait = log_in(database, "ana", "correct horse", "here").wait_seconds
    assert wait <= 1


def test_a_session_names_its_user_until_it_is_closed_or_over(database, clock):
    made = create_user(database, "ana", "correct horse")
    token = open_session(database, made.id)
    assert session_user(database, token) == made
    assert session_user(database, token + "x") is None
    assert token not in repr(rows(database, session))
    clock.time += SESSION_SECONDS - 1
    assert session_user(database, token) == made
    clock.time += 1
    assert session_user(database, token) is None
    token = open_session(database, made.id)
    assert len(rows(database, session)) == 1  # the one that was over is gone
    close_session(database, token)
    assert session_user(database, token) is None


def test_a_clock_set_back_by_hours_ends_a_session_and_a_small_correction_does_not(database, clock):
    token = open_session(database, create_user(database, "ana", "correct horse").id)
    clock.time -= 2
    assert session_user(database, token) is not None
    clock.time -= 86_400
    assert session_user(database, token) is None


@pytest.mark.parametrize(
    "change", [lambda database, key: set_active(database, key, False), lambda d, k: set_password(d, k, "another one")]
)
def test_disabling_a_user_or_changing_the_password_ends_the_sessions(database, change):
    made = create_user(database, "ana", "correct horse")
    token = open_session(database, made.id)
    change(database, made.id)
    assert session_user(database, token) is None
    assert log_in(database, "ana", "correct horse", "here").user is None


def test_a_user_enabled_again_gets_in(database):
    made = create_user(database, "ana", "correct horse")
    set_active(database, made.id, False)
    set_active(database, made.id, True)
    assert log_in(database, "ana", "correct horse", "here").user == made
    with pytest.raises(InputError, match="does not exist"):
        set_active(database, 99, True)


def test_every_deed_around_an_account_is_on_record(database):
    admin = create_user(database, "ana", "correct horse", "admin")
    made = create_user(database, "bo", "correct horse", by=admin.id)
    log_in(database, "bo", "a wrong guess", "1.2.3.4")
    log_in(database, "bo", "correct horse", "1.2.3.4")
    set_password(database, made.id, "another one", by=admin.id)
    set_active(database, made.id, False, by=admin.id)
    trail = [(event.action, event.user) for event in reversed(events(database))]
    expected = ["create_user", "create_user", "login_failed", "login", "set_password", "disable_user"]
    assert trail == list(zip(expected, [None, admin.id, None, made.id, admin.id, admin.id]))


def test_an_admin_stays_whatever_two_admins_do_to_each_other_at_once(database):
    first, second = (create_user(database, name, "correct horse", "admin").id for name in ("ana", "bo"))
    refused = []

    def disable(whom: int, by: int) -> None:
        try:
            set_active(database, whom, False, by=by)
        except InputError as error:
            refused.append(error.mend)

    threads = [threading.Thread(target=disable, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["which is the last active admin: make somebody else an admin first"]
    assert [each.active for each in list_users(database)].count(True) == 1


def test_a_role_can_be_changed_but_not_an_admins_own_nor_the_last_ones(database):
    ana, bo = create_user(database, "ana", "correct horse", "admin"), create_user(database, "bo", "correct horse")
    for by in (None, ana.id):
        with pytest.raises(InputError, match="last active admin" if by is None else "which is you"):
            set_role(database, ana.id, "annotator", by=by)
    token = open_session(database, bo.id)
    set_role(database, bo.id, "admin", by=ana.id)
    assert session_user(database, token) is None
    set_role(database, ana.id, "annotator", by=bo.id)
    assert [(each.name, each.role) for each in list_users(database)] == [("ana", "annotator"), ("bo", "admin")]
    with pytest.raises(InputError, match="admin or annotator"):
        set_role(database, ana.id, "owner")
    assert [(each.action, each.user) for each in events(database, action="set_role")] == [
        ("set_role", bo.id),
        ("set_role", ana.id),
    ]
