"""Is the quickstart's result luck? The whole road from several seeds: other text, other models, other annotators' noise.

    python -m benchmarks.quickstart [--seeds 5] [--output_dir runs/seeds] [--json FILE]

A seed decides everything that is drawn. `gold_win_rate` is PPO's against its own SFT model, with its 95 % interval.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples import quickstart
from rlhf_kit.config import check_least, run_recipe

COLUMNS = ("gold_win_rate", "gold_win_rate_low", "gold_win_rate_high", "reward_accuracy", "bayes_accuracy", "kl", "eos_rate")


@dataclass
class SeedsConfig:
    """How many roads, and where to."""

    seeds: int = 5
    output_dir: Path = Path("runs/seeds")
    json: Path | None = None  # the figures


def main(config: SeedsConfig) -> list[dict[str, Any]]:
    """Run them one after the other; print the table, and write it as JSON where asked."""
    check_least(config, seeds=1)
    rows = []
    for seed in range(config.seeds):
        rows.append(quickstart.main(quickstart.QuickstartConfig(output_dir=config.output_dir / str(seed), seed=seed)))
        if config.json:  # after every seed, so that a run cut short leaves what it has
            config.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    print("\n" + table(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line a seed."""
    lines = ["seed gold win rate   95 % interval  reward   Bayes     KL     EOS  seconds"]
    for row in rows:
        rate, low, high, accuracy, ceiling, kl, eos = (row[name] for name in COLUMNS)
        lines.append(
            f"{row['seed']:>4} {rate:>13.1%} {f'{low:.1%} to {high:.1%}':>15} {accuracy:>7.1%} {ceiling:>7.1%} "
            f"{kl:>6.2f} {eos:>7.1%} {row['seconds']:>8.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_recipe(main, SeedsConfig)
