"""Do the measures of label quality give the figures that were published for real human labels?

    python -m benchmarks.human_labels --data FOLDER [--json FILE]

FOLDER holds pandalm_3annotators, tulu1_human_eval, fgrlhf_qa and oasst_ranked, as .jsonl or .jsonl.gz. PandaLM published
Cohen's kappas of its three annotators and how often each model won; both are printed beside ours. The others have no published
figure of this kind: their agreement, where an item has more than one label, and their Bradley-Terry tables are printed, with
intervals from a bootstrap over prompts, before and after length is held equal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotate.imports.human import READERS, read_rows
from annotate.imports.judgments import pair_judgments
from annotate.quality.biases import length_slope
from annotate.quality.consistency import cyclic_triples
from annotate.quality.estimates import Estimate, Resampling
from annotate.quality.labels import Judgment
from annotate.quality.report import quality_report
from rlhf_kit.config import run_recipe
from rlhf_kit.errors import InputError

KAPPAS = {("annotator 1", "annotator 2"): 0.85, ("annotator 1", "annotator 3"): 0.88, ("annotator 2", "annotator 3"): 0.86}
# (wins, losses, ties) of the first, from the table "human-annotated" of PandaLM's README.
WINS = {
    ("llama-7b", "bloom-7b"): (72, 28, 11),
    ("llama-7b", "cerebras-gpt-6.7B"): (80, 24, 6),
    ("llama-7b", "opt-7b"): (71, 24, 11),
    ("llama-7b", "pythia-6.9b"): (58, 27, 9),
    ("bloom-7b", "cerebras-gpt-6.7B"): (59, 30, 11),
    ("bloom-7b", "opt-7b"): (43, 35, 11),
    ("bloom-7b", "pythia-6.9b"): (49, 47, 11),
    ("cerebras-gpt-6.7B", "opt-7b"): (33, 49, 9),
    ("cerebras-gpt-6.7B", "pythia-6.9b"): (27, 53, 11),
    ("opt-7b", "pythia-6.9b"): (32, 53, 15),
}


@dataclass
class HumanLabelsConfig:
    """Where the labels lie, and how the intervals are drawn."""

    data: Path  # the folder
    resamples: int = 1000  # of the bootstrap of agreement
    rankings: int = 300  # of the bootstrap of the rankings
    seed: int = 0
    json: Path | None = None  # the figures


def load(folder: Path, name: str) -> list[Judgment]:
    """The judgments of one of the four sets in `folder`."""
    for path in (folder / f"{name}.jsonl.gz", folder / f"{name}.jsonl"):
        if path.is_file():
            return list(pair_judgments(READERS[name](read_rows(path))))
    raise InputError("--data", str(folder), f"expected a folder with {name}.jsonl.gz or {name}.jsonl in it")


def majorities(judgments: Sequence[Judgment]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Wins, losses and ties of the first model of each of `WINS`, an item going to what most of its labels say."""
    votes: dict[Any, list[Judgment]] = {}
    for judgment in judgments:
        votes.setdefault(judgment.item, []).append(judgment)
    found = {pair: Counter[int]() for pair in WINS}
    for item in votes.values():
        ((winner, _),) = Counter(j.winner for j in item).most_common(1)
        models = item[0].models or ("", "")
        pair = models if models in found else models[::-1]
        found[pair][winner if pair == models else -winner] += 1
    return {pair: (counts[1], counts[-1], counts[0]) for pair, counts in found.items()}


def length_lean(judgments: Sequence[Judgment]) -> Estimate:
    """Log-odds for the first answer for 100 words more, all annotators together."""
    used = [j for j in judgments if j.words]
    return length_slope([j.winner for j in used], [(j.words[0] - j.words[1]) / 100 for j in used if j.words])


def shown(estimate: dict[str, Any], digits: int = 3) -> str:
    """An estimate as text, or why there is none."""
    if estimate["value"] is None:
        return f"undefined ({estimate['reason']})"
    interval = "" if estimate["low"] is None else f" [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    note = f" ({estimate['reason']})" if estimate["reason"] else ""
    return f"{estimate['value']:.{digits}f}{interval} n={estimate['n']}{note}"


def ranking_lines(report: dict[str, Any]) -> list[str]:
    """The two tables of strengths side by side: as judged, and with length held equal."""
    plain, equal = report["ranking"], report["ranking_at_equal_length"]
    if plain["reason"]:
        return [f"ranking: {plain['reason']}"]
    held = {row["model"]: row for row in equal["models"]}
    lines = [f"{'model':22}{'strength':>26}{'expected':>10}{'at equal length':>26}{'expected':>10}{'n':>6}"]
    for row in plain["models"]:
        cells = []
        for each in (row, held[row["model"]]):
            s = each["strength"]
            cells.append(f"{s['value']:+.3f} [{s['low']:+.3f}, {s['high']:+.3f}]" if s["value"] is not None else "undefined")
            cells.append(f"{each['expected']:.3f}" if "expected" in each else "")
        lines.append(f"{row['model']:22}{cells[0]:>26}{cells[1]:>10}{cells[2]:>26}{cells[3]:>10}{row['comparisons']:6}")
    lines.append(f"length, log-odds a standard deviation of (a - b) / (a + b): {shown(equal['length'])}")
    return lines


def agreement_lines(report: dict[str, Any]) -> list[str]:
    """What the measures of agreement say."""
    winner, strength = report["agreement"]["winner"], report["agreement"]["strength"]
    return [
        f"raw agreement on the winner:   {shown(winner['raw'])}",
        f"Fleiss' kappa:                 {shown(winner['fleiss'])}",
        f"Krippendorff's alpha, nominal: {shown(winner['alpha'])}",
        f"  ordinal, over strengths:     {shown(strength['alpha'])}",
    ]


def main(config: HumanLabelsConfig) -> dict[str, Any]:
    """Print the figures of each set, and write them as JSON where asked."""
    how = Resampling(config.resamples, config.seed)
    reports: dict[str, Any] = {}
    for name in READERS:
        judgments = load(config.data, name)
        report = reports[name] = quality_report(judgments, how=how, rankings=config.rankings)
        counts = report["counts"]
        report["length_lean"] = length_lean(judgments).as_dict()
        print(f"\n== {name}: {counts['labels']} labels of {counts['items']} pairs by {counts['annotators']} annotator(s)")
        print("\n".join(agreement_lines(report)))
        if name == "pandalm_3annotators":
            for pair in report["pairs"]:
                print(f"kappa {pair['first']}, {pair['second']}: {shown(pair['kappa'])}; published "
                      f"{KAPPAS[pair['first'], pair['second']]:.2f}")  # fmt: skip
            for row in report["annotators"]:
                print(f"reliability of {row['annotator']}: {shown(row['reliability'])}")
            report["wins"] = [{"pair": pair, "ours": w, "published": WINS[pair]} for pair, w in majorities(judgments).items()]
            for row in report["wins"]:
                print(f"{row['pair'][0]} against {row['pair'][1]}: {row['ours']}; published {row['published']}")
        if name == "fgrlhf_qa":
            triples = cyclic_triples(
                [j.group for j in judgments],
                [j.models[0] for j in judgments if j.models],
                [j.models[1] for j in judgments if j.models],
                [j.winner for j in judgments],
                how,
            )
            report["cyclic_triples"] = triples.as_dict()
            print(f"triples that go round in a circle (a coin: 0.25): {shown(triples.as_dict())}")
        if report["left"]["value"] is not None:
            print(f"left rate: {shown(report['left'])}")
        print(f"log-odds for 100 words more: {shown(report['length_lean'])}")
        for flagged in report["annotators"]:
            for flag in flagged["flags"]:
                print(f"flag, {flagged['annotator']}: {flag['sentence']}")
        print("\n".join(ranking_lines(report)))
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(reports, indent=2) + "\n")
    return reports


if __name__ == "__main__":
    run_recipe(main, HumanLabelsConfig)
