"""Charts of a benchmark as one SVG file, light enough to stand in a page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from rlhf_kit.evaluation.charts import HEIGHT, WIDTH

STYLE = (
    "text{font:10.5px system-ui,sans-serif;fill:#777}.title{font-size:13px;font-weight:600;fill:#222}.axis,.note{fill:#555}"
    ".grid{stroke:#ececec}.line{fill:none;stroke-width:1.7;stroke-linejoin:round}.c1{stroke:#2f62d9}.c2{stroke:#c07a08}"
    ".c3{stroke:#2e8b57}.dashed{stroke-dasharray:5 4}.rule{stroke:#999;stroke-dasharray:2 3}.dots{stroke:none}"
    ".dots.c1{fill:#2f62d9}.dots.c2{fill:#c07a08}.dots.c3{fill:#2e8b57}"
)
TITLE, GAP = 26, 14


def sheet(charts: Sequence[tuple[str, str]], sides: Sequence[str], *, columns: int = 3) -> str:
    """Titled charts in rows of `columns`, under one legend, as a whole SVG file.

    Args:
        charts: `(title, svg)` from `line_chart`. sides: names in the order of their colours, from 1; three at most.
    """
    rows = -(-len(charts) // columns)
    width, height = columns * (WIDTH + GAP) + GAP, rows * (HEIGHT + TITLE + GAP) + 2 * GAP
    parts = [f"<style>{STYLE}</style>", f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for colour, name in enumerate(sides, 1):
        x = GAP + WIDTH // 2 * (colour - 1)
        parts.append(f'<path class="line c{colour}" d="M{x} 14h18"/><text x="{x + 24}" y="18">{html.escape(name)}</text>')
    for i, (title, chart) in enumerate(charts):
        x, y = GAP + i % columns * (WIDTH + GAP), 2 * GAP + i // columns * (HEIGHT + TITLE + GAP)
        parts.append(f'<text class="title" x="{x + 4}" y="{y + 16}">{html.escape(title)}</text>')
        parts.append(f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}">{chart}</svg>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>\n'
