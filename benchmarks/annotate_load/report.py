"""The figures beside the bars of the design: what must be reached, and what would be better still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A figure's bar; `more`: it is a floor, not a ceiling."""

    name: str
    words: str
    bar: float
    stretch: float | None = None
    more: bool = False

    def met(self, value: float) -> bool:
        """Whether `value` reaches the bar."""
        return value >= self.bar if self.more else value <= self.bar


BARS = (
    Bar("lost", "votes lost", 0),
    Bar("duplicated", "votes duplicated", 0),
    Bar("wrong_side", "votes on the wrong side", 0),
    Bar("kills", "kill -9 under load", 50, more=True),
    Bar("ui_votes_per_s", "votes/s through the page, saturated", 100, 300, more=True),
    Bar("rest_votes_per_s", "votes/s through REST, saturated", 300, 800, more=True),
    Bar("key_to_next_pair_p95_ms", "key to next pair painted, p95, ms", 100, 50),
    Bar("login_to_first_pair_s", "login to first pair, s", 2.0, 1.0),
    Bar("warm_reload_s", "warm reload, s", 1.0, 0.5),
    Bar("paced_200_p95_ms", "200 people thinking 8 s, p95, ms", 150),
    Bar("paced_200_errors", "200 people thinking 8 s, errors", 0),
    Bar("claim_p95_ms", "claim at 100k pairs, 10k seen, p95, ms", 15),
    Bar("rss_idle_mb", "memory idle, MB", 250),
    Bar("rss_loaded_mb", "memory after load, MB", 350),
)


def table(figures: Mapping[str, Any]) -> str:
    """Figures with bars as a table, and all others in lines below."""
    lines = [("", "figure", "bar", "stretch", "")]
    for bar in BARS:
        if bar.name in figures:
            value = figures[bar.name]
            verdict = "ok" if bar.met(value) else "MISSED"
            sign = ">=" if bar.more else "<="
            stretch = "" if bar.stretch is None else f"{sign} {bar.stretch:g}"
            lines.append((bar.words, _figure(value), f"{sign} {bar.bar:g}", stretch, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    barred = {bar.name for bar in BARS}
    rest = [f"{name}: {_figure(value)}" for name, value in figures.items() if name not in barred]
    return "\n".join([*shown, "", *rest])


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
