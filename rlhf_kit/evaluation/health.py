"""The health of a whole run: the rules of each stage's kind (`rlhf_kit/health_rules.py` has those of online runs)."""

from __future__ import annotations

from rlhf_kit.evaluation.runs import Run, StageRun, is_number
from rlhf_kit.health import Note, not_finite, online_notes
from rlhf_kit.wording import count, number, percent


def health_notes(run: Run) -> list[Note]:
    """The checks that the run's metrics allow, the failed ones first."""
    notes = []
    for stage in run.stages:
        found = not_finite(stage.metrics) + (online_notes(stage.curve) if stage.kind == "online" else _fit(stage))
        seen = _first_seen(stage)
        notes += [_dated(note, seen) for note in found] + _gone(found, seen)
    notes += _ceiling(run)
    return sorted(notes, key=lambda note: note.ok)


def _first_seen(stage: StageRun) -> dict[str, float]:
    """The step at which each alarm was raised while the run went."""
    seen: dict[str, float] = {}
    for row in stage.metrics:
        for title in row.get("alarms") or ():
            seen.setdefault(str(title), float(row["step"]))
    return seen


def _dated(note: Note, seen: dict[str, float]) -> Note:
    step = seen.get(note.title)
    return note if note.ok or step is None else note._replace(text=f"{note.text} First seen at step {count(step)}.")


def _gone(notes: list[Note], seen: dict[str, float]) -> list[Note]:
    """Alarms of the running run that its curves as a whole no longer raise."""
    still = {note.title for note in notes if not note.ok}
    return [
        Note(False, f"{title}, for a while", f"An alarm of step {count(step)}, no longer raised at the end.")
        for title, step in seen.items()
        if title not in still
    ]


def _fit(stage: StageRun) -> list[Note]:
    steps, losses = stage.curve("eval/loss")
    if len(losses) < 3:
        return []
    best = min(losses)
    at = steps[losses.index(best)]
    if losses[-1] > 1.02 * best:
        text = f"Held-out loss was {number(best)} at step {count(at)} and ended at {number(losses[-1])}: "
        text += "train shorter, or on more data."
        return [Note(False, f"{stage.title} overfits", text)]
    return [
        Note(True, f"{stage.title} does not overfit", f"Held-out loss ended at {number(losses[-1])}, its best is {number(best)}.")
    ]


def _ceiling(run: Run) -> list[Note]:
    accuracy, ceiling = run.find("accuracy"), run.find("bayes_accuracy")
    if (
        not is_number(ceiling)
        or not isinstance(accuracy, dict)
        or not all(is_number(accuracy.get(k)) for k in ("estimate", "low"))
    ):
        return []
    if accuracy["low"] > ceiling:
        text = f"{percent(accuracy['estimate'])} against {percent(ceiling)}: test pairs may have leaked into training."
        return [Note(False, "Reward model beats the best possible accuracy", text)]
    return []
