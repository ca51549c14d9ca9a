"""Plots as inline SVG text: crisp at any size, light or dark with the page, and nothing to load.

Colours are CSS classes (`c1` ... `c4`, see `page.py`), so that the page's theme decides them. Every plot carries its
points in `data-series` for the page's small hover script; without the script it is complete all the same.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_kit.wording import MINUS, THIN, count, number, percent, scientific

WIDTH, HEIGHT = 372, 214
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 30
MOST_POINTS = 240  # a plot is 316 units wide: more points only add bytes

Format = Callable[[float], str]


def _tick_texts(values: Sequence[float], form: Format) -> list[str]:
    """Labels of one axis, all written alike."""
    if form is not number or not values:
        return [form(value) for value in values]
    largest = max(abs(value) for value in values)
    if not 0.005 <= largest < 1e6 and largest:
        return ["0" if value == 0 else scientific(value) for value in values]
    decimals = max(len(f"{value:.6f}".rstrip("0").split(".")[1]) for value in values)
    return [f"{value:,.{decimals}f}".replace(",", THIN).replace("-", MINUS) for value in values]


@dataclass
class Series:
    """One line: `x` and `y` of equal length, finite. `style`: line, dots, both; `smooth` draws the raw line faintly."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    style: str = "line"
    smooth: bool = False
    dashed: bool = False


@dataclass
class Guide:
    """What a healthy value is: a band from `low` to `high`, or a line where they are equal."""

    low: float
    high: float
    label: str


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers inside [low, high], roughly `about` of them."""
    rough = (high - low) / about
    scale = 10 ** math.floor(math.log10(rough))
    step = min((s * scale for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(values: Sequence[float]) -> list[float]:
    """At most MOST_POINTS values, each the mean of an equal share; the last value stays what it is."""
    if len(values) <= MOST_POINTS:
        return list(values)
    edges = [round(i * len(values) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return [*means[:-1], values[-1]]


def smoothed(values: Sequence[float]) -> list[float]:
    """A moving mean over about a fifteenth of the series, centred, so that a falling curve is not drawn late.

    The window shrinks on both sides alike at the start, which may be steep, and on the far side alone at the end, so that
    the last value is a mean too.
    """
    half = len(values) // 30
    sums = [0.0, *itertools.accumulate(values)]
    result = []
    for i in range(len(values)):
        first, last = i - min(half, i), min(len(values), i + min(half, i) + 1)
        result.append((sums[last] - sums[first]) / (last - first))
    return result


def _domain(values: Sequence[float], include: Sequence[float]) -> tuple[float, float]:
    low, high = min([*values, *include]), max([*values, *include])
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = max(abs(high) * 0.1, 1e-6)
        return low - pad, high + pad
    pad = 0.06 * (high - low)
    return (low if low in include else low - pad), (high if high in include else high + pad)


def _settled(series: Sequence[Series]) -> list[float]:
    """The y values, without the cliff at the start of a loss where it would flatten all the rest."""
    values = [y for s in series for y in s.y]
    start = min(s.x[0] for s in series)
    end = max(s.x[-1] for s in series)
    rest = [y for s in series for x, y in zip(s.x, s.y) if x >= start + 0.04 * (end - start)]
    if len(rest) < 10 or max(values) - min(values) < 1.5 * (max(rest) - min(rest)):
        return values
    return rest


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'


def line_chart(
    series: Sequence[Series],
    *,
    name: str,
    x_label: str = "step",
    y_format: Format = number,
    include: Sequence[float] = (),
    guide: Guide | None = None,
    settle: bool = False,
    mark: tuple[float, str] | None = None,
) -> str:
    """Lines over one x axis.

    Args:
        name: what a screen reader says the plot is.
        include: y values that the axis must reach.
        settle: leave a steep start out of the y range.
        mark: an x value to point at, with its words.
    """
    series = [s for s in series if len(s.x)]
    xs = [x for s in series for x in s.x]
    x_low, x_high = min(xs), max(xs)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    guides = [] if guide is None else [guide.low, guide.high]
    y_low, y_high = _domain(_settled(series) if settle else [y for s in series for y in s.y], [*include, *guides])
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return (x - x_low) / (x_high - x_low) * width

    def py(y: float) -> float:
        return height - (y - y_low) / (y_high - y_low) * height

    back, front, inside, hover = [], [], [], []
    y_ticks, x_ticks = ticks(y_low, y_high), ticks(x_low, x_high, 5)
    for tick, text in zip(y_ticks, _tick_texts(y_ticks, y_format)):
        back.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + width}" y1="{TOP + py(tick):.1f}" y2="{TOP + py(tick):.1f}"/>')
        back.append(_text(LEFT - 7, TOP + py(tick) + 3.5, text, "tick", "end"))
    for tick, text in zip(x_ticks, _tick_texts(x_ticks, number)):
        if x_label != "step" or tick == int(tick):
            anchor = "end" if px(tick) > width - 12 else "middle"
            back.append(_text(LEFT + px(tick) + (6 if anchor == "end" else 0), HEIGHT - 14, text, "tick", anchor))
    back.append(_text(LEFT + width / 2, HEIGHT - 1.5, x_label, "axis", "middle"))
    if guide is not None:
        top, bottom = py(guide.high), py(guide.low)
        if bottom - top > 0.5:
            inside.append(f'<rect class="band" x="0" y="{top:.1f}" width="{width}" height="{bottom - top:.1f}"/>')
        else:
            inside.append(f'<line class="rule" x1="0" x2="{width}" y1="{top:.1f}" y2="{top:.1f}"/>')
        # The label goes to the end of the axis where the first line is farther from it, and inside the band if it fits.
        first = series[0]
        gaps = [
            abs(y - guide.high)
            for y in (sum(part) / len(part) for part in (first.y[: len(first.y) // 4 + 1], first.y[-(len(first.y) // 4 + 1) :]))
        ]
        edge, anchor = (3, "start") if gaps[0] > gaps[1] else (width - 3, "end")
        front.append(
            _text(LEFT + edge, TOP + (top + 12 if bottom - top > 16 or top < 14 else top - 4), guide.label, "note", anchor)
        )
    if mark is not None:
        at = px(mark[0])
        inside.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}"/>')
        anchor = "end" if at > width / 2 else "start"
        front.append(_text(LEFT + at + (-5 if anchor == "end" else 5), TOP + 9, mark[1], "note", anchor))
    for s in series:
        faint = s.smooth and len(s.x) >= 30
        x, y = [px(v) for v in thin(s.x)], thin(smoothed(s.y) if faint else s.y)
        if faint:
            inside.append(f'<path class="line raw c{s.colour}" d="{_path(x, [py(v) for v in thin(s.y)])}"/>')
        if s.style in ("line", "both") and len(x) > 1:
            dash = " dashed" if s.dashed else ""
            inside.append(f'<path class="line c{s.colour}{dash}" d="{_path(x, [py(v) for v in y])}"/>')
        if s.style in ("dots", "both") or len(x) == 1:
            dots = "".join(f'<circle cx="{a:.1f}" cy="{py(b):.1f}" r="2.4"/>' for a, b in zip(x, y))
            inside.append(f'<g class="dots c{s.colour}">{dots}</g>')
        hover.append(
            {
                "label": s.label,
                "c": s.colour,
                "x": [round(LEFT + v, 1) for v in x],
                "y": [round(TOP + py(v), 1) for v in y],
                "at": [f"{x_label} {count(v) if x_label == 'step' else number(v)}" for v in thin(s.x)],
                "value": [y_format(v) for v in y],
            }
        )
    # The inner svg clips what runs off the axes.
    clipped = f'<svg x="{LEFT}" y="{TOP}" width="{width}" height="{height}">{"".join(inside)}</svg>'
    return _svg(name, hover, "".join(back) + clipped + "".join(front))


def _svg(name: str, hover: Sequence[object], content: str, height: float = HEIGHT) -> str:
    data = html.escape(json.dumps(hover, ensure_ascii=False, separators=(",", ":")))
    label = html.escape(name)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" data-series="{data}">{content}</svg>'
    )


def reliability_chart(predicted: Sequence[float], observed: Sequence[float], pairs: Sequence[int]) -> str:
    """Accuracy over confidence from 50 % to 100 %, against the diagonal, with binomial 95 % bars."""
    low = min(0.5, *(math.floor(10 * o) / 10 for o in observed))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - 0.5) / 0.5 * width

    def py(y: float) -> float:
        return TOP + height - (y - low) / (1 - low) * height

    parts = []
    for tick in ticks(low, 1.0, 5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + width}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(_text(LEFT - 7, py(tick) + 3.5, percent(tick), "tick", "end"))
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(_text(px(tick), HEIGHT - 14, percent(tick), "tick", "end" if tick == 1 else "middle"))
    parts.append(_text(LEFT + width / 2, HEIGHT - 1.5, "confidence of the reward model", "axis", "middle"))
    parts.append(f'<line class="rule" x1="{px(0.5):.1f}" y1="{py(0.5):.1f}" x2="{px(1):.1f}" y2="{py(1):.1f}"/>')
    hover: dict[str, object] = {"label": "right", "c": 1}
    for p, o, n in zip(predicted, observed, pairs):
        reach = 1.96 * math.sqrt(max(o * (1 - o), 1e-9) / max(n, 1))
        top, bottom = py(min(1.0, o + reach)), py(max(low, o - reach))
        parts.append(f'<line class="error" x1="{px(p):.1f}" x2="{px(p):.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
    parts.append(f'<path class="line c1" d="{_path([px(p) for p in predicted], [py(o) for o in observed])}"/>')
    dots = "".join(f'<circle cx="{px(p):.1f}" cy="{py(o):.1f}" r="3.2"/>' for p, o in zip(predicted, observed))
    parts.append(f'<g class="dots c1">{dots}</g>')
    hover |= {"x": [round(px(p), 1) for p in predicted], "y": [round(py(o), 1) for o in observed]}
    hover |= {"at": [f"says {percent(p)}, {n} pairs" for p, n in zip(predicted, pairs)], "value": [percent(o) for o in observed]}
    return _svg("How often the reward model is right, over how sure it is", [hover], "".join(parts))


@dataclass
class Row:
    """One line of an interval chart: what it is of, the estimate, and the ends of its interval where there is one."""

    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    colour: int = 1


def interval_chart(
    rows: Sequence[Row],
    *,
    name: str,
    x_label: str,
    x_format: Format = number,
    include: Sequence[float] = (),
    guide: Guide | None = None,
) -> str:
    """Estimates with their intervals, one under the other on a common axis, the labels on the left.

    Args:
        name: what a screen reader says the plot is.
        include: x values that the axis must reach.
    """
    left, step = 108, 19
    width, height = WIDTH - left - RIGHT, step * len(rows)
    guides = [] if guide is None else [guide.low, guide.high]
    ends = [end for row in rows for end in (row.low, row.estimate, row.high) if end is not None]
    x_low, x_high = _domain(ends, [*include, *guides])

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * width

    parts = []
    x_ticks = ticks(x_low, x_high, 4)
    for tick, text in zip(x_ticks, _tick_texts(x_ticks, x_format)):
        parts.append(f'<line class="grid" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="{TOP}" y2="{TOP + height}"/>')
        parts.append(_text(px(tick), TOP + height + 16, text, "tick", "end" if px(tick) > WIDTH - 24 else "middle"))
    parts.append(_text(left + width / 2, TOP + height + 29, x_label, "axis", "middle"))
    if guide is not None and guide.low < guide.high:
        reach = px(guide.high) - px(guide.low)
        parts.append(f'<rect class="band" x="{px(guide.low):.1f}" y="{TOP}" width="{reach:.1f}" height="{height}"/>')
    elif guide is not None:
        parts.append(f'<line class="rule" x1="{px(guide.low):.1f}" x2="{px(guide.low):.1f}" y1="{TOP}" y2="{TOP + height}"/>')
    for i, row in enumerate(rows):
        y = TOP + step * (i + 0.5)
        said = f"{row.label}: {x_format(row.estimate)}"
        bar = ""
        if row.low is not None and row.high is not None:
            said += f", {x_format(row.low)} to {x_format(row.high)}"
            bar = f'<line class="line c{row.colour}" x1="{px(row.low):.1f}" x2="{px(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        dot = f'<circle class="dots c{row.colour}" cx="{px(row.estimate):.1f}" cy="{y:.1f}" r="3.4"/>'
        shown = row.label if len(row.label) <= 17 else row.label[:16] + "\u2026"
        parts.append(f"<g><title>{html.escape(said)}</title>{_text(left - 8, y + 3.5, shown, 'tick', 'end')}{bar}{dot}</g>")
    return _svg(name, [], "".join(parts), TOP + height + 33)


def histogram(edges: Sequence[float], counts: Sequence[int], *, name: str, x_label: str, unit: str = "") -> str:
    """Bars over a logarithmic axis: `counts` (N,) between `edges` (N + 1,), which are above 0 and rise."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    first, last, most = math.log(edges[0]), math.log(edges[-1]), max(1, *counts) * 1.06

    def px(x: float) -> float:
        return LEFT + (math.log(x) - first) / (last - first) * width

    def py(y: float) -> float:
        return TOP + height * (1 - y / most)

    parts, bars = [], []
    for tick in ticks(0, most):
        if tick == int(tick):
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + width}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
            parts.append(_text(LEFT - 7, py(tick) + 3.5, count(tick), "tick", "end"))
    decades = range(math.floor(first / math.log(10)), math.ceil(last / math.log(10)) + 1)
    marks = [m * 10.0**d for d in decades for m in (1, 2, 5) if edges[0] <= m * 10.0**d <= edges[-1]]
    marks = marks[:: 1 + len(marks) // 9]
    for tick, text in zip(marks, _tick_texts(marks, number)):
        parts.append(_text(px(tick), HEIGHT - 14, text, "tick", "end" if px(tick) > WIDTH - 24 else "middle"))
    parts.append(_text(LEFT + width / 2, HEIGHT - 1.5, x_label, "axis", "middle"))
    for (a, b), found in zip(itertools.pairwise(edges), counts):
        wide, tall = max(0.5, px(b) - px(a) - 1), TOP + height - py(found)
        bars.append(f'<rect x="{px(a) + 0.5:.1f}" y="{py(found):.1f}" width="{wide:.1f}" height="{tall:.1f}"/>')
    parts.append(f'<g class="dots c1">{"".join(bars)}</g>')
    hover = {
        "label": "count",
        "c": 1,
        "x": [round((px(a) + px(b)) / 2, 1) for a, b in itertools.pairwise(edges)],
        "y": [round(py(found), 1) for found in counts],
        "at": [f"{number(a)} to {number(b)}{unit}" for a, b in itertools.pairwise(edges)],
        "value": [count(found) for found in counts],
    }
    return _svg(name, [hover], "".join(parts))


def interval_strip(estimate: float, low: float, high: float, marks: Sequence[float] = (0.5,)) -> str:
    """A small 0 to 100 % ruler with the interval on it and ticks at `marks`."""
    rule = "".join(f'<line class="tickmark" x1="{200 * m:.1f}" x2="{200 * m:.1f}" y1="1" y2="15"/>' for m in marks)
    return (
        '<svg class="strip" viewBox="0 0 200 16" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="track" x1="0" x2="200" y1="8" y2="8"/>'
        f'{rule}<line class="range" x1="{200 * low:.1f}" x2="{200 * high:.1f}" y1="8" y2="8"/>'
        f'<line class="point" x1="{200 * estimate:.1f}" x2="{200 * estimate:.1f}" y1="3" y2="13"/></svg>'
    )
