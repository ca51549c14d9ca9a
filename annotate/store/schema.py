"""The tables, for SQLite and PostgreSQL alike.

Canonical order is the order of `candidate.position`. Everything judged is stored in it; what a person saw is `assignment.shown`.
Times are seconds since 1970 (UTC). The order of events is the order of their ids, never of their times: clocks jump.
A gold answer stands at the comparison, not at the item, because it speaks of an order of answers.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()
Json = JSON(none_as_null=True)


def _id() -> Column:
    return Column("id", Integer, primary_key=True)


def _refers(name: str, table: str, *, nullable: bool = False) -> Column:
    return Column(name, Integer, ForeignKey(f"{table}.id"), nullable=nullable)


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"{column}_known")


schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

user = Table(
    "annotator",  # `user` is a reserved word in PostgreSQL
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("password", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    _one_of("role", "admin", "annotator"),
)

session = Table(
    "session",
    metadata,
    Column("token_hash", Text, primary_key=True),
    _refers("user_id", "annotator"),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index("session_of_user", "user_id"),
    Index("session_expiry", "expires"),
)

login_failure = Table(
    "login_failure",
    metadata,
    Column("name", Text, primary_key=True),
    Column("address", Text, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last", Double, nullable=False),
    Index("login_failure_age", "last"),
)

project = Table(
    "project",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("guidelines", Text, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    Column("scale", Integer, nullable=False),  # the largest strength: 1 (better or not), 2 or 3
    Column("aspects", Json, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("lease_seconds", Double, nullable=False),
    Column("skips_before_adjudication", Integer, nullable=False),
    Column("gold_share", Double, nullable=False),
    Column("queue_version", Integer, nullable=False),  # counts what may put work in front of where somebody has come to
    Column("created", Double, nullable=False),
)

item = Table(
    "item",
    metadata,
    _id(),
    _refers("project_id", "project"),
    Column("messages", Json, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("project_id", "hash"),
)

response = Table(
    "response",
    metadata,
    _id(),
    _refers("item_id", "item"),
    Column("text", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("checkpoint", Text, nullable=False),
    Column("sampling", Json, nullable=False),
    Column("rm_score", Double),
    Column("hash", Text, nullable=False),
    UniqueConstraint("item_id", "hash"),
)

# Literals, not parameters: a partial index serves a query only when the planner sees the same words in both.
WAITS = "waits = 1"
RETURNED = "returned = 1"
CASES = "state = 'adjudicate'"

comparison = Table(
    "comparison",
    metadata,
    _id(),
    _refers("project_id", "project"),
    _refers("item_id", "item"),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),  # the queue, the gold set, or live: made and judged by one person in a chat
    Column("place", Double, nullable=False),  # minus the priority, so that one ascending index gives the claim order
    Column("overlap", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("leased", Integer, nullable=False),
    Column("skips", Integer, nullable=False),
    Column("flagged", Integer, nullable=False),
    Column("waits", Integer, nullable=False),  # 1: open, queued and with a free slot; stored because an index needs it
    Column("returned", Integer, nullable=False),  # 1: waits again after it did not, so people may have passed it
    Column("state", Text, nullable=False),
    Column("gold", Json),  # {"strength": ...} or {"ranking": ...}, canonical
    Column("propensity", Double),  # the probability with which the sampler chose this comparison
    Column("sampled_by", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("project_id", "hash"),
    _one_of("kind", "pair", "rank"),
    _one_of("source", "queue", "gold", "live"),
    _one_of("state", "open", "done", "adjudicate", "decided"),
    CheckConstraint("done >= 0 AND leased >= 0 AND skips >= 0 AND flagged >= 0", name="counts_not_negative"),
    Index("comparison_waits", "project_id", "kind", "place", "id", sqlite_where=text(WAITS), postgresql_where=text(WAITS)),
    Index("comparison_back", "project_id", "kind", "place", "id", sqlite_where=text(RETURNED), postgresql_where=text(RETURNED)),
    Index(
        "comparison_gold",
        *("project_id", "kind"),
        sqlite_where=text("source = 'gold'"),
        postgresql_where=text("source = 'gold'"),
    ),
    # No full index on the state: SQLite would take it for the claim, and sort.
    Index("comparison_case", "project_id", "id", sqlite_where=text(CASES), postgresql_where=text(CASES)),
    Index("comparison_item", "item_id"),
)

candidate = Table(
    "candidate",
    metadata,
    Column("comparison_id", Integer, ForeignKey("comparison.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _refers("response_id", "response"),
)

frontier = Table(  # how far each person has come in each queue
    "frontier",
    metadata,
    Column("user_id", Integer, ForeignKey("annotator.id"), primary_key=True),
    Column("project_id", Integer, ForeignKey("project.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("queue_version", Integer, nullable=False),
    Column("place", Double, nullable=False),
    Column("comparison_id", Integer, nullable=False),
)

LEASED = text("state = 'leased'")
assignment = Table(
    "assignment",
    metadata,
    _id(),
    Column("token", Text, nullable=False, unique=True),  # what the browser holds: says nothing and cannot be guessed
    _refers("project_id", "project"),
    _refers("comparison_id", "comparison"),
    _refers("user_id", "annotator"),
    Column("shown", Json, nullable=False),  # shown[place on the screen] = canonical position
    Column("state", Text, nullable=False),
    Column("leased_at", Double, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    Column("revision", Integer, nullable=False),  # of the last judgment, 0 before the first
    UniqueConstraint("user_id", "comparison_id"),
    _one_of("state", "leased", "done", "skipped", "expired"),
    Index("assignment_state", "user_id", "project_id", "state"),
    Index("assignment_expiry", "project_id", "lease_until", sqlite_where=LEASED, postgresql_where=LEASED),
    Index("assignment_comparison", "comparison_id"),
)

judgment = Table(  # only ever added to: the one that counts is the assignment's last revision, where its state is `done`
    "judgment",
    metadata,
    _id(),
    _refers("assignment_id", "assignment"),
    _refers("project_id", "project"),
    _refers("user_id", "annotator"),
    Column("revision", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("strength", Integer),
    Column("ranking", Json),
    Column("aspects", Json),
    Column("flags", Json),
    Column("justification", Text, nullable=False),
    Column("edits", Json),
    Column("visible_ms", Integer),
    Column("guidelines_version", Integer, nullable=False),
    Column("late", Boolean, nullable=False),
    Column("gold_correct", Boolean),
    Column("created", Double, nullable=False),
    UniqueConstraint("assignment_id", "revision"),
    Index("judgment_of_user", "user_id", "project_id", "id"),
    Index("judgment_of_project", "project_id", "id"),
    _one_of("kind", "preference", "tie", "both_bad", "rank", "skip", "flag", "undo"),
)

adjudication = Table(
    "adjudication",
    metadata,
    _id(),
    _refers("comparison_id", "comparison"),
    _refers("user_id", "annotator"),
    Column("decision", Text, nullable=False),
    Column("strength", Integer),
    Column("ranking", Json),
    Column("reason", Text, nullable=False),
    Column("created", Double, nullable=False),
    _one_of("decision", "preference", "tie", "both_bad", "rank", "discard", "reopen"),
    Index("adjudication_of", "comparison_id"),
)

export = Table(
    "export",
    metadata,
    _id(),
    _refers("project_id", "project"),
    _refers("user_id", "annotator", nullable=True),
    Column("manifest_hash", Text, nullable=False),
    Column("last_judgment", Integer, nullable=False),  # judgments up to this id were read for it
    Column("created", Double, nullable=False),
    Index("export_of", "project_id"),
)

event = Table(
    "event",
    metadata,
    _id(),
    _refers("project_id", "project", nullable=True),
    _refers("user_id", "annotator", nullable=True),
    Column("action", Text, nullable=False),
    Column("details", Json, nullable=False),
    Column("created", Double, nullable=False),
    Index("event_of_project", "project_id", "id"),
)
