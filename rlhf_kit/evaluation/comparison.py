"""The part of the report on what training changed: who wins, what the answers are like, and the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rlhf_kit.evaluation.figures import card, frontier
from rlhf_kit.evaluation.runs import Run, is_number
from rlhf_kit.wording import number, percent

# Who may say which answer is better, the most trustworthy first: label, and the words behind a verdict.
JUDGES = {
    "gold_win_rate": ("Gold judge", ""),
    "judge_win_rate": ("Judge", ", by the judge"),
    "proxy_win_rate": ("Reward model", ", by the reward model it was trained on"),
}
SHOWN_SAMPLES = 6
_BEFORE_AFTER = ("before", "after")


def _numbers(row: Any, *keys: str) -> bool:
    return isinstance(row, Mapping) and all(is_number(row.get(key)) for key in keys)


def change_section(run: Run) -> str:
    """Win shares, attributes and the score-over-distance plot, as far as they were measured."""
    plots = "".join(frontier(stage) for stage in run.stages if stage.kind == "online")
    cards = _win_card(run) + _attribute_card(run) + plots
    return f'<h2>What training changed</h2><div class="grid fill">{cards}</div>' if cards else ""


def _win_card(run: Run) -> str:
    rows = []
    for key, (label, _) in JUDGES.items():
        value = run.find(key)
        if not _numbers(value, "win", "tie", "loss"):
            continue
        parts = "".join(
            f'<div class="{k}" style="flex:{value[k]:.4f}">{percent(value[k]) if value[k] >= 0.12 else ""}</div>'
            for k in ("win", "tie", "loss")
            if value[k] > 0
        )
        split = " \u00b7 ".join(f"{k} {percent(value[k])}" for k in ("win", "tie", "loss"))
        head = f'<div class="head"><b>{label}</b><span>{split}</span></div>'
        rows.append(f'<div class="row">{head}<div class="split">{parts}</div></div>')
    if not rows:
        return ""
    caption = "Blue: the trained policy\u2019s answer is better than the starting model\u2019s to the same prompt."
    if len(rows) > 1:
        caption += " Many more wins under the reward model than elsewhere: the policy has learned to please it."
    return card("Who wins, prompt by prompt", "", "".join(rows), caption)


def _attribute_card(run: Run) -> str:
    found = run.find("attributes")
    rows = [row for row in found if _numbers(row, *_BEFORE_AFTER)] if isinstance(found, list) else []
    if not rows:
        return ""
    shares = all(0 <= row[side] <= 1 for row in rows for side in _BEFORE_AFTER)
    body = []
    for row in rows:
        scale = 1.0 if shares else max(abs(row["before"]), abs(row["after"])) or 1.0
        body.append(f'<div class="pair"><div class="what">{escape(str(row.get("name", "")).replace("_", " "))}</div>')
        for side in _BEFORE_AFTER:
            width, text = 100 * abs(row[side]) / scale, (percent if shares else number)(row[side])
            body.append(f'<div class="bar {side}"><i style="width:{width:.1f}%"></i></div><div class="num {side}">{text}</div>')
        body.append("</div>")
    legend = '<span class="k0"><i></i>before</span><span class="k1"><i></i>after</span>'
    caption = "What the answers are like, by measures that are not the reward. Look for those that moved without being asked to."
    dense = " dense" if len(rows) > 5 else ""
    return card("Attributes of the answers", legend, f'<div class="pairs{dense}">{"".join(body)}</div>', caption)


def sample_section(run: Run) -> str:
    """The answers before and after side by side, with their scores; the first few open, the others folded."""
    samples = run.all_samples()
    if not samples:
        return ""
    cards = [_sample(i, sample) for i, sample in enumerate(samples, 1)]
    first, rest = "".join(cards[:SHOWN_SAMPLES]), "".join(cards[SHOWN_SAMPLES:])
    if rest:
        summary = f"<summary>Show {len(cards) - SHOWN_SAMPLES} more</summary>"
        rest = f'<details class="more">{summary}<div class="samples">{rest}</div></details>'
    lead = (
        "The same prompts before and after training, in the order of the file, not picked. "
        "The better answer is tinted: by the gold score where there is one, by the reward model\u2019s otherwise."
    )
    return f'<h2>Before and after</h2><p class="lead">{lead}</p><div class="samples">{first}</div>{rest}'


def _winner(sample: Mapping[str, Any], judge: str) -> str | None:
    if not _numbers(sample, f"{judge}_before", f"{judge}_after"):
        return None
    before, after = sample[f"{judge}_before"], sample[f"{judge}_after"]
    return "tie" if before == after else "after" if after > before else "before"


def _sample(i: int, sample: Mapping[str, Any]) -> str:
    gold, proxy = _winner(sample, "gold"), _winner(sample, "proxy")
    best = gold or proxy
    cells = []
    for side in _BEFORE_AFTER:
        pills = '<span class="pill">better</span>' if best == side else ""
        if best == "tie":
            pills = '<span class="pill quiet">tie</span>'
        if gold in _BEFORE_AFTER and proxy == side != gold:
            pills += '<span class="pill quiet">the reward model prefers this</span>'
        scores = "".join(
            f"<span>{word} <b>{number(sample[f'{judge}_{side}'])}</b></span>"
            for judge, word in (("gold", "gold"), ("proxy", "reward model"))
            if _numbers(sample, f"{judge}_{side}")
        )
        scores = f'<div class="scores">{scores}</div>' if scores else ""
        text = str(sample.get(side) or "")
        said = f'<div class="said">{escape(text)}</div>' if text.strip() else '<div class="said none">(empty answer)</div>'
        tint = " best" if best == side else ""
        cells.append(f'<div class="answer{tint}"><div class="who">{side.title()}{pills}</div>{said}{scores}</div>')
    prompt = f'<div class="prompt"><span class="n">{i}</span><span>{escape(str(sample.get("prompt", "")))}</span></div>'
    return f'<article class="card sample">{prompt}<div class="answers">{"".join(cells)}</div></article>'
