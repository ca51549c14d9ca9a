"""People: their names, roles and passwords. There is no default user and no default password."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Row, delete, insert, select, update

from annotate.store.audit import record
from annotate.store.database import Database, insert_missing
from annotate.store.schema import login_failure, session, user
from annotate.store.verdicts import check_text
from rlhf_kit.errors import InputError

# scrypt (RFC 7914) with N = 2^15, r = 8, p = 3, one of the settings of OWASP's Password Storage Cheat Sheet: 32 MiB a hash, and
# the semaphore keeps a crowd that logs in at once at 64 MiB and two cores.
LOG2_N, R, P = 15, 8, 3
_hashing = threading.BoundedSemaphore(2)
SHORTEST_PASSWORD = 10
LONGEST = 200
FREE_FAILURES = 3
LONGEST_WAIT = 900.0
FORGOTTEN_AFTER = 86400.0
Role = Literal["admin", "annotator"]


@dataclass(frozen=True)
class User:
    """A person. `active` False: may neither log in nor answer; what they said stays."""

    id: int
    name: str
    role: Role
    active: bool


@dataclass(frozen=True)
class Login:
    """What became of an attempt to log in: the user, or None and the seconds to wait before the next attempt is looked at."""

    user: User | None
    wait_seconds: float = 0.0


def create_user(database: Database, name: str, password: str, role: Role = "annotator", *, by: int | None = None) -> User:
    """Add a person.

    Raises:
        InputError: the name is taken or empty, the role unknown, the password shorter than 10 characters.
    """
    check_text("user.name", name)
    if not name.strip() or len(name) > LONGEST:
        raise InputError("user.name", name, f"expected 1 to {LONGEST} characters")
    _check_role(role)
    hashed = _hash_password(_checked_password(password))
    with database.write() as connection:
        if connection.execute(select(user.c.id).where(user.c.name == name)).first():
            raise InputError("user.name", name, "which exists already: choose another name")
        now = database.now()
        row = {"name": name, "role": role, "password": hashed, "active": True, "created": now}
        key = connection.execute(insert(user).values(row).returning(user.c.id)).scalar_one()
        record(connection, now, "create_user", user=by, created=key, name=name, role=role)
    return User(key, name, role, True)


def set_active(database: Database, key: int, active: bool, *, by: int | None = None) -> None:
    """Disable a person, which ends their sessions at once, or enable them again.

    Raises:
        InputError: nobody has that id; or it is the last active admin, or `by` themselves.
    """
    with database.write() as connection:
        if not active:
            _check_admin_stays(connection, key, by)
        _change(connection, key, active=active)
        record(connection, database.now(), "enable_user" if active else "disable_user", user=by, whom=key)


def set_password(database: Database, key: int, password: str, *, by: int | None = None) -> None:
    """Give a person another password; their sessions end."""
    hashed = _hash_password(_checked_password(password))
    with database.write() as connection:
        _change(connection, key, password=hashed)
        record(connection, database.now(), "set_password", user=by, whom=key)


def set_role(database: Database, key: int, role: Role, *, by: int | None = None) -> None:
    """Make a person an admin, or an annotator again; their sessions end.

    Raises:
        InputError: the role is unknown, nobody has that id; or the last active admin, or `by`, would cease to be one.
    """
    _check_role(role)
    with database.write() as connection:
        if role != "admin":
            _check_admin_stays(connection, key, by)
        _change(connection, key, role=role)
        record(connection, database.now(), "set_role", user=by, whom=key, role=role)


def list_users(database: Database) -> list[User]:
    """Everybody, by name."""
    with database.read() as connection:
        return [_user(row) for row in connection.execute(select(user).order_by(user.c.name))]


def log_in(database: Database, name: str, password: str, address: str) -> Login:
    """Check a password. After three failures of a name from an address, attempts have to wait 1, 2, 4, ... 900 seconds.

    An attempt counts as failed before its password is looked at, so that many at once gain nothing; a success clears the count.
    A name that does not exist takes as long as one that does.
    """
    name, address = (words[:LONGEST].encode(errors="replace").decode().replace("\0", "") for words in (name, address))
    with database.write() as connection:
        now = database.now()
        connection.execute(delete(login_failure).where(login_failure.c.last < now - FORGOTTEN_AFTER))
        wait = _count_failure(connection, name, address, now)
        if wait > 0:
            record(connection, now, "login_throttled", name=name, address=address)
            return Login(None, wait)
        row = connection.execute(select(user).where(user.c.name == name)).first()
    right = _is_password(password, row.password if row else None)
    with database.write() as connection:
        if not (right and row and row.active):
            record(connection, database.now(), "login_failed", name=name, address=address)
            return Login(None)
        connection.execute(delete(login_failure).where(login_failure.c.name == name, login_failure.c.address == address))
        record(connection, database.now(), "login", user=row.id, address=address)
    return Login(_user(row))


def _count_failure(connection: Connection, name: str, address: str, now: float) -> float:
    connection.execute(insert_missing(connection, login_failure), {"name": name, "address": address, "count": 0, "last": now})
    this = (login_failure.c.name == name) & (login_failure.c.address == address)
    query = select(login_failure.c["count"], login_failure.c.last).where(this).with_for_update()
    failures, last = connection.execute(query).one()
    pause = min(2.0 ** min(failures - FREE_FAILURES, 30), LONGEST_WAIT) if failures >= FREE_FAILURES else 0.0
    # A clock that was set back must not lock anybody out for longer than the pause.
    wait = min(last + pause - now, pause)
    if wait <= 0:
        connection.execute(update(login_failure).where(this).values(count=failures + 1, last=now))
    return wait


def _check_admin_stays(connection: Connection, key: int, by: int | None) -> None:
    # Locked on PostgreSQL, so that two admins who disable each other are looked at one after the other.
    admins = select(user.c.id, user.c.name).where(user.c.role == "admin", user.c.active).order_by(user.c.id).with_for_update()
    names = {row.id: row.name for row in connection.execute(admins)}
    if key in names and key == by:
        raise InputError("user", names[key], "which is you: let another admin do that")
    if set(names) == {key}:
        raise InputError("user", names[key], "which is the last active admin: make somebody else an admin first")


def _check_role(role: str) -> None:
    if role not in ("admin", "annotator"):
        raise InputError("user.role", role, "expected admin or annotator")


def _change(connection: Connection, key: int, **values: object) -> None:
    if connection.execute(update(user).where(user.c.id == key).values(values)).rowcount != 1:
        raise InputError("user", key, "which does not exist")
    connection.execute(delete(session).where(session.c.user_id == key))


def _checked_password(password: str) -> str:
    check_text("password", password)
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST:
        raise InputError("password", "*" * min(len(password), LONGEST), f"expected {SHORTEST_PASSWORD} to {LONGEST} characters")
    return password


def _hash_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"scrypt${LOG2_N}${R}${P}${salt.hex()}${_scrypt(password, salt, LOG2_N, R, P).hex()}"


def _is_password(password: str, stored: str | None) -> bool:
    """False for None too, after as long."""
    log2_n, r, p, salt, key = stored.split("$")[1:] if stored else (LOG2_N, R, P, "00" * 16, "")
    found = _scrypt(password[:LONGEST], bytes.fromhex(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(key))


def _scrypt(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    with _hashing:
        memory = 128 * r * (2**log2_n + p + 2)
        words = password.encode(errors="surrogatepass")
        return hashlib.scrypt(words, salt=salt, n=2**log2_n, r=r, p=p, maxmem=memory + 2**20, dklen=32)


def _user(row: Row) -> User:
    return User(row.id, row.name, row.role, row.active)
