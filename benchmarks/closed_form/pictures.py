"""The curves as one SVG file, light enough to stand in a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from rlhf_kit.evaluation.charts import HEIGHT, WIDTH, Series, line_chart

STYLE = (
    "text{font:10.5px system-ui,sans-serif;fill:#777}.title{font-size:13px;font-weight:600;fill:#222}.axis,.note{fill:#555}"
    ".grid{stroke:#ececec}.rule{stroke:#999;stroke-dasharray:4 3}.line{fill:none;stroke-width:1.7;stroke-linejoin:round}"
    ".dashed{stroke-dasharray:5 4}.c1{stroke:#2f62d9}.c2{stroke:#c07a08}.c3{stroke:#2f8f4e}.c4{stroke:#a03fa8}"
    ".dots{stroke:none}.dots.c1{fill:#2f62d9}.dots.c2{fill:#c07a08}.dots.c3{fill:#2f8f4e}.dots.c4{fill:#a03fa8}"
)
TITLE, GAP = 26, 14


def sheet(charts: Sequence[tuple[str, str]], legend: Sequence[tuple[str, int]], *, columns: int = 3) -> str:
    """Titled charts in rows of `columns`, under one legend of (name, colour), as a whole SVG file."""
    rows = -(-len(charts) // columns)
    width, height = columns * (WIDTH + GAP) + GAP, rows * (HEIGHT + TITLE + GAP) + 2 * GAP
    parts = [f"<style>{STYLE}</style>", f'<rect width="{width}" height="{height}" fill="#fff"/>']
    x = GAP
    for name, colour in legend:
        parts.append(f'<path class="line c{colour}" d="M{x} 14h18"/><text x="{x + 24}" y="18">{html.escape(name)}</text>')
        x += 48 + 7 * len(name)
    for i, (title, chart) in enumerate(charts):
        x, y = GAP + i % columns * (WIDTH + GAP), 2 * GAP + i // columns * (HEIGHT + TITLE + GAP)
        parts.append(f'<text class="title" x="{x + 4}" y="{y + 16}">{html.escape(title)}</text>')
        parts.append(f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}">{chart}</svg>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>\n'


def curves(sides: dict[str, dict[str, Any]]) -> str:
    """KL(pi, pi*) over episodes, a chart an algorithm, a line a seed."""
    names = list(dict.fromkeys(name for rows in sides.values() for name in rows))
    charts = []
    for name in names:
        series = [
            Series(side, [e for e, _ in points], [kl for _, kl in points], colour=colour)
            for colour, (side, rows) in enumerate(sides.items(), 1)
            for points in rows.get(name, {}).get("curves", [])
        ]
        charts.append(
            (f"{name}: KL(pi, pi*), nats", line_chart(series, name=f"{name}: distance to the optimum", x_label="episodes"))
        )
    return sheet(charts, [(side, colour) for colour, side in enumerate(sides, 1)])
