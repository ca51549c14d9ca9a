"""The README.md of an export: who said what about what, by which rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from annotate.export_rows import ExportSettings
from annotate.quality.agreement import raw_agreement
from annotate.quality.estimates import Estimate
from annotate.quality.labels import label_matrix
from annotate.standing import Judged, Vote
from annotate.store.projects import Project

CONFIGS = {
    "preference": ("train", "test"),
    "ties": ("ties",),
    "both_bad": ("both_bad",),
    "sft": ("sft_train", "sft_test"),
}
CONTENTS = {
    "train": "preferences: `prompt`, `chosen`, `rejected`",
    "test": "preferences on prompts that are not in train",
    "ties": "pairs of which neither answer is better: `prompt`, `response_a`, `response_b`",
    "both_bad": "pairs of which neither answer is acceptable",
    "sft_train": "answers that people corrected: `messages`",
    "sft_test": "the same, on prompts of the test split",
}


@dataclass
class Summary:
    """What an export counts while it is written. Labels of votes: (comparison, person, side), for the agreement on pairs."""

    rows: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    people: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    strengths: Counter[int] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    samplers: Counter[str] = field(default_factory=Counter)
    guidelines: Counter[int] = field(default_factory=Counter)
    labels: list[tuple[int, str, int]] = field(default_factory=list)
    comparisons: int = 0
    adjudicated: int = 0

    def add(self, found: Judged, votes: Sequence[Vote], reason: str) -> None:
        """Count a comparison, and the reason why it is left out where there is one."""
        if reason:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return
        self.comparisons += 1
        self.adjudicated += found.decision is not None
        self.samplers[found.sampled_by or "not said"] += 1
        self.models.update(answer.model or "not said" for answer in found.answers)
        for vote in votes:
            self.people.add(vote.annotator)
            self.kinds[vote.kind] += 1
            self.guidelines[vote.guidelines_version] += 1
            if vote.kind == "preference":
                self.strengths[abs(vote.strength)] += 1
            if found.kind == "pair":
                self.labels.append((found.id, vote.annotator, (vote.strength > 0) - (vote.strength < 0)))

    def agreement(self) -> Estimate | None:
        """The share of equal sides among two people's votes on one pair; None where there is no vote on a pair."""
        return raw_agreement(label_matrix(self.labels, categories=[-1, 0, 1])) if self.labels else None


def data_card(project: Project, settings: ExportSettings, summary: Summary) -> str:
    """The card as markdown, with the header that `datasets.load_dataset` on the folder reads."""
    parts = [
        _header(settings, summary),
        f"# {project.name}: what people preferred\n",
        "Licence: **to be filled in**, here and in the header, by whoever passes this on.\n",
        _files(settings, summary),
        _people(summary),
        _rules(settings),
        f"## Where the answers come from\n\n{_table('model', 'answers', summary.models)}\n"
        f"{_table('chosen for judgment by', 'comparisons', summary.samplers)}",
        f"## Guidelines, version {project.guidelines_version}\n\n"
        f"{_table('version voted under', 'votes', summary.guidelines)}\n{_quoted(project.settings.guidelines)}\n",
    ]
    return "\n".join(parts)


def _header(settings: ExportSettings, summary: Summary) -> str:
    lines = ["---", "license: unknown", "task_categories:", "- text-generation", "configs:"]
    for config, names in CONFIGS.items():
        found = [
            name for name in names if name in summary.rows and not (settings.format == "datasets" and config == "preference")
        ]
        if found:
            lines += [f"- config_name: {config}", "  data_files:"]
        for name in found:
            split = "test" if name.endswith("test") else "train"
            lines += [f"  - split: {split}", f"    path: {name}.{'parquet' if settings.format == 'parquet' else 'jsonl'}"]
    return "\n".join([*lines, "---\n"])


def _files(settings: ExportSettings, summary: Summary) -> str:
    rows = "".join(f"| {name} | {count} | {CONTENTS[name]} |\n" for name, count in summary.rows.items())
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.left_out.items())) or "nothing"
    return (
        f"## Contents\n\n{summary.comparisons} comparisons. Left out: {left_out}. Format: {settings.format}.\n\n"
        f"| table | rows | what |\n|---|---|---|\n{rows}\n"
        "`group_id` is the comparison: pairs of one ranking share it. `votes` is how many people are behind a row.\n"
    )


def _people(summary: Summary) -> str:
    agreement = summary.agreement()
    if agreement is None:
        said = "no votes on pairs"
    elif agreement.value is None:
        said = agreement.reason
    else:
        interval = "" if agreement.low is None else f" ({agreement.low:.3f} to {agreement.high:.3f})"
        said = f"{agreement.value:.3f}{interval}, on {agreement.n} pairs"
    return (
        f"## Votes\n\n{sum(summary.kinds.values())} votes of {len(summary.people)} people; an adjudicator decided "
        f"{summary.adjudicated} comparisons. Two people's votes on one pair are for the same side (raw agreement, 95 % "
        f"interval): {said}.\n\n{_table('vote', 'count', summary.kinds)}\n{_table('strength', 'preferences', summary.strengths)}"
    )


def _rules(settings: ExportSettings) -> str:
    margin = (
        "how far the mean strength is from a tie" if settings.aggregate == "mean" else "the mean strength of the winning votes"
    )
    lines = [
        f"Several votes become one by {settings.aggregate}; an adjudicator's decision counts instead of them.",
        f"`margin` is {margin}, 1 slightly to 3 much better; of rankings, the same with strength 1 a vote."
        if settings.margin
        else "There is no `margin`.",
        f"{settings.test_fraction:g} of the prompts, by a hash of the prompt, are the test split.",
        f"People left out: {len(settings.without)}. Late votes are {_kept(settings.late)}, "
        f"flagged ones {_kept(settings.flagged)}, gold items {_kept(settings.gold)}. "
        f"Comparisons have at least {settings.min_votes} vote(s).",
    ]
    return "## Rules\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _kept(kept: bool) -> str:
    return "kept" if kept else "left out"


def _table(name: str, number: str, counts: Counter[Any]) -> str:
    rows = "".join(f"| {_cell(key)} | {count} |\n" for key, count in sorted(counts.items()))
    return f"| {name} | {number} |\n|---|---|\n{rows}" if rows else ""


def _cell(words: object) -> str:
    return str(words).replace("|", "\\|").replace("\n", " ")


def _quoted(words: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in (words or "(none)").splitlines())
