"""The whole run on one page: `write_report(run_dir)` writes one `report.html` that needs nothing else.

It reads what the stages left behind (`runs.py`) and shows what is there. Of `evaluation.json`, of a stage or of the run,
it knows these keys, all optional; an interval is `{"estimate", "low", "high", "n"}`:

    gold_win_rate, judge_win_rate,    intervals, with shares win/tie/loss      (generation.win_rate)
    proxy_win_rate
    gold_length_controlled_win_rate,  intervals                                (generation.length_controlled_win_rate)
    judge_..., proxy_...
    accuracy, calibration, ...        of the reward model                      (reward.summarize_preferences)
    bayes_accuracy                    float, the accuracy nobody can beat      (reward.bayes_accuracy)
    kl                                interval, nats an answer                 (generation.sequence_kl)
    eos_rate, mean_length             floats, of the trained policy            (generation.describe_answers)
    baseline_mean_length              float, of the model it started from
    perplexity, bits_per_byte         floats                                   (perplexity.evaluate_documents)
    baselines                         {"xz": bits per byte, ...}
    attributes                        [{"name", "before", "after"}]
    seconds, stage_seconds            float and {"pretrain": float, ...}, where the metrics do not hold them

A line of `samples.jsonl`: `prompt, before, after` (text) and optionally `proxy_before, proxy_after, gold_before, gold_after`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.charts import interval_strip, smoothed
from rlhf_kit.evaluation.comparison import JUDGES, change_section, sample_section
from rlhf_kit.evaluation.figures import stage_figures
from rlhf_kit.evaluation.health import health_notes
from rlhf_kit.evaluation.page import page
from rlhf_kit.evaluation.runs import Run, StageRun, is_number, read_run, run_from_dict, title_of
from rlhf_kit.wording import THIN, count, number, percent


def write_report(run: Path | str | Sequence[Path | str] | Mapping[str, Any] | Run, path: Path | str | None = None) -> Path:
    """Write the report of a run and return where it is.

    Args:
        run: a run directory, one stage directory, a list of stage directories, or the data itself (`runs.run_from_dict`).
        path: the file to write; `report.html` in the run directory by default.
    Raises:
        InputError: nothing to report, a broken file, or no place to write it.
    """
    if path is None:
        if not isinstance(run, Path | str):
            raise InputError("path", None, "expected a file name where the run is not a single directory")
        path = Path(run) / "report.html"
    if isinstance(run, Mapping):
        run = run_from_dict(run)
    elif not isinstance(run, Run):
        run = read_run(run)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run), encoding="utf-8")
    return path


def render(run: Run) -> str:
    """The report of `run` as HTML text."""
    parts = [
        f'<header><p class="eyebrow">Run report</p><h1>{escape(run.title)}</h1><p class="verdict">{_verdict(run)}</p></header>',
        _tiles(run),
        _health(run),
        _pipeline(run),
        change_section(run),
        sample_section(run),
        *(_stage(i, stage, run) for i, stage in enumerate(run.stages, 1)),
        _config(run),
        "<footer>Made by rlhf_kit from the files of the run. This page is complete in itself and loads nothing.</footer>",
    ]
    return page(f"{run.title} \u00b7 run report", "".join(parts))


# ---- the top of the page --------------------------------------------------------------------------------------------


def _interval(value: Any) -> dict[str, float] | None:
    """`value` as an interval, a plain number being one without ends."""
    found = {str(k): v for k, v in value.items() if is_number(v)} if isinstance(value, Mapping) else {"estimate": value}
    return found if is_number(found.get("estimate")) else None


def _range(value: Mapping[str, float], form: Callable[[float], str]) -> str:
    if "low" not in value or "high" not in value:
        return ""
    low = form(value["low"]).removesuffix(f"{THIN}%") if form is percent else form(value["low"])
    return f"95{THIN}% interval {low} to {form(value['high'])}"


def _verdict(run: Run) -> str:
    """The one sentence a reader takes away, as HTML."""
    accuracy = _interval(run.find("accuracy"))
    for key, (_, judge) in JUDGES.items():
        win = _interval(run.find(key))
        if win is None:
            continue
        low, high = win.get("low", win["estimate"]), win.get("high", win["estimate"])
        verb = "beats" if low > 0.5 else "loses to" if high < 0.5 else "cannot be told apart from"
        prompts = f" on {count(win['n'])} prompts" if "n" in win else ""
        rate = f"it wins {percent(win['estimate'])} of comparisons{prompts}, a tie being half{judge}"
        return f"The trained policy <b>{verb}</b> the model it started from: {rate}."
    if accuracy is not None:
        return f"The reward model agrees with the held-out choice in <b>{percent(accuracy['estimate'])}</b> of pairs."
    stage = run.stages[-1]
    return f"{escape(stage.title)}: {_result(stage)}."


def _tile(label: str, value: str, unit: str = "", sub: str = "", strip: str = "", alarm: bool = False) -> str:
    unit = f" <small>{unit}</small>" if unit else ""
    sub = f'<p class="sub">{sub}</p>' if sub else ""
    kind = "value alarm" if alarm else "value"
    return f'<div class="card tile"><p class="label">{label}</p><p class="{kind}">{value}{unit}</p>{strip}{sub}</div>'


def _share_tile(label: str, value: Any, sub: str, marks: Sequence[float]) -> str:
    found = _interval(value)
    if found is None:
        return ""
    strip = interval_strip(found["estimate"], found["low"], found["high"], marks) if "low" in found and "high" in found else ""
    size = f"{count(found['n'])} items" if "n" in found and not strip else ""
    text = "<br>".join(part for part in (_range(found, percent), sub, size) if part)
    return _tile(label, percent(found["estimate"]), "", text, strip)


def _tiles(run: Run) -> str:
    online = next((stage for stage in reversed(run.stages) if stage.kind == "online"), None)
    tiles = [_win_tile(run)]

    ceiling = run.find("bayes_accuracy")
    marks = (0.5, ceiling) if is_number(ceiling) else (0.5,)
    sub = f"best possible {percent(marks[1])}" if len(marks) > 1 else ""
    tiles.append(_share_tile("Reward-model accuracy", run.find("accuracy"), sub, marks))

    kl = _interval(run.find("kl")) or _interval(online.last("objective/kl") if online else None)
    if kl is not None:
        sub = "KL per answer" + (f"<br>{_range(kl, number)}" if "low" in kl else ", at the last step")
        tiles.append(_tile("Distance from reference", number(kl["estimate"]), "nats", sub))

    eos = _interval(run.find("eos_rate")) or _interval(online.last("response/eos_rate") if online else None)
    if eos is not None:
        share, sub = eos["estimate"], f"with a stop token; healthy above 95{THIN}%"
        before, after = run.find("baseline_mean_length"), run.find("mean_length")
        if is_number(before) and is_number(after):
            sub = f"with a stop token<br>{number(before)} \u2192 {number(after)} tokens long"
        tiles.append(_tile("Answers that end", percent(share), "", sub, alarm=share < 0.95))

    if not any(tiles):
        tiles = _language_tiles(run)
    if run.seconds is not None:
        steps = len(run.steps()) or len(run.stages)
        tiles.append(_tile("Time", duration(run.seconds), "", f"{steps} steps" if steps > 1 else ""))
    found = "".join(tiles)
    return f'<div class="tiles">{found}</div>' if found else ""


def _win_tile(run: Run) -> str:
    for key, (label, _) in JUDGES.items():
        if run.find(key) is not None:
            level = _interval(run.find(key.replace("_win_rate", "_length_controlled_win_rate")))
            equal = f"{percent(level['estimate'])} at equal length" if level else ""
            return _share_tile(f"Win rate, {label.lower()}", run.find(key), equal, (0.5,))
    return ""


def _language_tiles(run: Run) -> list[str]:
    """What stands at the top where no reward model and no win rate was measured."""
    tiles, stage = [], run.stages[-1]
    loss, density, baselines = stage.last("eval/loss"), run.find("bits_per_byte"), run.find("baselines")
    if stage.kind == "preference":
        margin = stage.last("eval/rewards/margins")
        tiles += [_tile("Held-out margin", number(margin), "", _result(stage))] if margin is not None else []
    elif loss is not None:
        tiles.append(_tile("Held-out loss", number(loss), "nats a token", f"perplexity {number(math.exp(min(loss, 99)))}"))
    if is_number(density):
        beside = (
            [f"{escape(str(k))} {number(v)}" for k, v in baselines.items() if is_number(v)]
            if isinstance(baselines, Mapping)
            else []
        )
        tiles.append(_tile("Text prediction", number(density), "bits a byte", " \u00b7 ".join(beside) or "on held-out text"))
    if stage.speed is not None:
        tiles.append(_tile("Speed", count(stage.speed[0]), escape(stage.speed[1]), "median over the run"))
    return tiles


def duration(seconds: float) -> str:
    """Seconds as people say them: `8.4 s`, `3 min 20 s`, `1 h 04 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + f"{THIN}s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60}{THIN}min {round(seconds) % 60:02d}{THIN}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"


def _health(run: Run) -> str:
    notes = health_notes(run)
    if not notes:
        return ""

    def row(ok: bool, title: str, text: str) -> str:
        flag = '<span class="flag ok">\u2713</span>' if ok else '<span class="flag no">!</span>'
        return f'<div class="note">{flag}<div><b>{escape(title)}.</b> <span class="text">{escape(text)}</span></div></div>'

    failed, passed = [n for n in notes if not n.ok], [n for n in notes if n.ok]
    rows = "".join(row(*note) for note in failed)
    if passed:
        checks = f"{len(passed)} health check{'s' if len(passed) > 1 else ''} passed"
        summary = f'<summary><span class="flag ok">\u2713</span><b>{checks}</b></summary>'
        rows += f"<details>{summary}{''.join(row(*note) for note in passed)}</details>"
    return f'<section class="card health" aria-label="Health">{rows}</section>'


def _result(stage: StageRun) -> str:
    """What came out of a stage, in a few words of HTML."""
    if stage.kind == "online":
        score, kl = stage.curve("objective/scores")[1], stage.last("objective/kl")
        parts = [f"reward {number(score[0])} \u2192 {number(smoothed(score)[-1])}"] if score else []
        return ", ".join(parts + ([f"KL {number(kl)}"] if kl is not None else [])) or "no metrics"
    if stage.kind == "reward":
        accuracy = _interval(stage.evaluation.get("accuracy")) or _interval(stage.last("eval/accuracy"))
        return f"{percent(accuracy['estimate'])} of held-out pairs right" if accuracy else "no held-out accuracy"
    if stage.kind == "preference":
        right, margin = stage.last("eval/rewards/accuracies"), stage.last("eval/rewards/margins")
        parts = [f"{percent(right)} of held-out pairs right"] if right is not None else []
        return ", ".join(parts + ([f"held-out margin {number(margin)}"] if margin is not None else [])) or "nothing held out"
    loss, word = (stage.last("eval/loss"), "held-out loss")
    if loss is None:
        loss, word = stage.last("train/loss"), "training loss"
    return f"{word} {number(loss)} (perplexity {number(math.exp(min(loss, 99)))})" if loss is not None else "no metrics"


def _pipeline(run: Run) -> str:
    """Every step with its time; the steps that logged something lead to their plots."""
    stages = {stage.name: (i, stage) for i, stage in enumerate(run.stages, 1)}
    times = {name: stage.duration for name, (_, stage) in stages.items()} | run.steps()
    names = list(run.steps()) if set(stages) <= set(run.steps()) else list(stages)
    if len(names) < 2:
        return ""
    longest = max([times[name] or 0.0 for name in names]) or 1.0
    cells = []
    for n, name in enumerate(names, 1):
        seconds, time = times[name], ""
        if seconds is not None:
            meter = f'<div class="meter"><i style="width:{100 * seconds / longest:.1f}%"></i></div>'
            time = f'<div class="time">{duration(seconds)}{meter}</div>'
        title = stages[name][1].title if name in stages else title_of(name)
        inside = f'<div class="n">{n}</div><div class="name">{escape(title)}</div>'
        if name in stages:
            i, stage = stages[name]
            cells.append(f'<a class="stage" href="#stage-{i}">{inside}<div class="result">{_result(stage)}</div>{time}</a>')
        else:
            cells.append(f'<div class="stage">{inside}{time}</div>')
    return f'<h2>The pipeline</h2><nav class="card stages" aria-label="Stages">{"".join(cells)}</nav>'


# ---- the stages and their settings ------------------------------------------------------------------------------------


def _stage(i: int, stage: StageRun, run: Run) -> str:
    plots = stage_figures(stage, run)
    if not plots:
        return ""
    facts = [
        _result(stage),
        f"{count(max(float(row['step']) for row in stage.metrics))} steps" if stage.metrics else "",
        duration(stage.duration) if stage.duration is not None else "",
        f"{count(stage.speed[0])} {escape(stage.speed[1])}" if stage.speed is not None else "",
    ]
    small = " \u00b7 ".join(fact for fact in facts if fact)
    return f'<h2 id="stage-{i}">{escape(stage.title)} <small>{small}</small></h2><div class="grid">{plots}</div>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            rows.append((f"{prefix}{key}", shown))
    return rows


def _config(run: Run) -> str:
    blocks = []
    for stage in run.stages:
        rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in _flat(stage.config))
        if rows:
            summary = f"{escape(stage.title)}: {len(_flat(stage.config))} settings"
            blocks.append(f'<details class="card config"><summary>{summary}</summary><dl>{rows}</dl></details>')
    return f"<h2>Configuration</h2>{''.join(blocks)}" if blocks else ""
