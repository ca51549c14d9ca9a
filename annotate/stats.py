"""How a project stands: its progress, who did how much, how far people agree and whom to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from annotate.quality.agreement import krippendorff_alpha, raw_agreement
from annotate.quality.annotators import Profile, profile_annotators
from annotate.quality.estimates import Estimate
from annotate.quality.labels import Judgment, label_matrix
from annotate.standing import judged, one_moment, quality_judgments
from annotate.store.database import Database
from annotate.store.progress import people_progress, project_progress
from annotate.store.projects import Project


def project_judgments(database: Database, project_id: int) -> list[Judgment]:
    """All votes on pairs that stand, as `annotate.quality` takes them."""
    with database.read() as connection:
        one_moment(connection)
        return list(chain.from_iterable(quality_judgments(found) for found in judged(connection, project_id)))


def project_stats(database: Database, project: Project) -> dict[str, Any]:
    """Figures of a project, ready for JSON: `project`, `progress`, `agreement` (None without votes on pairs), `people`.

    Each person has counts, and for votes on pairs a `quality` whose figures are estimates with intervals and reasons.
    """
    judgments = project_judgments(database, project.id)
    profiles = {profile.annotator: profile for profile in profile_annotators(judgments)} if judgments else {}
    people = []
    for person in people_progress(database, project.id):
        profile = profiles.get(person.name)
        people.append(asdict(person) | {"quality": None if profile is None else _profile(profile)})
    return {
        "project": project.name,
        "progress": asdict(project_progress(database, project.id)),
        "agreement": _agreement(judgments) if judgments else None,
        "people": people,
    }


def _agreement(judgments: Sequence[Judgment]) -> dict[str, Any]:
    sides = label_matrix(((j.item, j.annotator, j.winner) for j in judgments), categories=[-1, 0, 1])
    strengths = label_matrix(((j.item, j.annotator, j.strength) for j in judgments), categories=list(range(-3, 4)))
    return {
        "raw": raw_agreement(sides).as_dict(),
        "krippendorff_alpha": krippendorff_alpha(sides).as_dict(),
        "krippendorff_alpha_of_strengths": krippendorff_alpha(strengths, "ordinal").as_dict(),
    }


def _profile(profile: Profile) -> dict[str, Any]:
    """A profile as plain values; an estimate as the mapping of its parts."""
    values = vars(profile) | {"flags": [flag._asdict() for flag in profile.flags]}
    return {
        name: value.as_dict() if isinstance(value, Estimate) else value for name, value in values.items() if name != "annotator"
    }


def stats_text(stats: dict[str, Any]) -> str:
    """The same for people to read."""
    progress = stats["progress"]
    lines = [
        f"{stats['project']}: {progress['slots_done']} of {progress['slots']} slots filled; {progress['votes']} votes stand",
        f"  comparisons: {progress['open']} open, {progress['done']} done, {progress['decided']} decided, "
        f"{progress['adjudicate']} waiting for an adjudicator",
    ]
    if progress["eta_seconds"]:
        lines.append(f"  at the pace of the last hour the rest takes {progress['eta_seconds'] / 3600:.1f} hours")
    for name, estimate in (stats["agreement"] or {}).items():
        lines.append(f"  agreement, {name.replace('_', ' ')}: {_estimate(estimate)}")
    for person in stats["people"]:
        lines.append(f"  {person['name']}: {person['votes']} votes, {person['skips']} skipped or flagged, {person['late']} late")
        quality = person["quality"]
        if quality is not None:
            lines.append(f"    gold {_estimate(quality['gold'])}; with the others {_estimate(quality['agreement'])}")
            lines += [f"    look: {flag['sentence']}" for flag in quality["flags"]]
    return "\n".join(lines)


def _estimate(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return f"undefined ({estimate['reason']})"
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.3f} to {estimate['high']:.3f})"
    return f"{estimate['value']:.3f}{interval}"
