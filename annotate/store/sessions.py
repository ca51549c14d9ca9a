"""Who is logged in. The browser holds a random token, the database its hash: a stolen database opens no session."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import bindparam, delete, insert, select

from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.schema import session, user
from annotate.store.users import User

SESSION_SECONDS = 12 * 3600.0
CLOCK_SLACK = 300.0  # a clock corrected by less than this ends no session
# Built once: every request asks it.
WHOSE = (
    select(user)
    .join(session, session.c.user_id == user.c.id)
    .where(session.c.token_hash == bindparam("hash"), session.c.expires > bindparam("now"))
    .where(session.c.created <= bindparam("now") + CLOCK_SLACK, user.c.active)
)


def open_session(database: Database, user_id: int) -> str:
    """Start a session of 12 hours and return its token, which is stored nowhere."""
    token = secrets.token_urlsafe(32)
    with database.write() as connection:
        now = database.now()
        connection.execute(delete(session).where(session.c.expires <= now))
        row = {"token_hash": _hash(token), "user_id": user_id, "created": now, "expires": now + SESSION_SECONDS}
        connection.execute(insert(session).values(row))
    return token


def session_user(database: Database, token: str) -> User | None:
    """Whose session it is; None where it is unknown, over, or its user disabled.

    A session from the future is over too: a clock set back must not make it live for longer than it was given.
    """
    with database.read() as connection:
        row = connection.execute(WHOSE, {"hash": _hash(token), "now": database.now()}).first()
    return None if row is None else User(row.id, row.name, row.role, row.active)


def close_session(database: Database, token: str) -> None:
    """Log out: the token opens nothing any more."""
    with database.write() as connection:
        query = delete(session).where(session.c.token_hash == _hash(token)).returning(session.c.user_id)
        owner = connection.execute(query).scalar_one_or_none()
        if owner is not None:
            record(connection, database.now(), "logout", user=owner)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
