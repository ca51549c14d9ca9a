"""Put a run, or one stage of it, on one page.

python recipes/report.py --run runs/tiny
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import recipes  # noqa: F401  a checkout's recipes run its own code
from rlhf_kit.config import run_recipe
from rlhf_kit.evaluation.report import write_report


@dataclass
class ReportConfig:
    """Which run, and where to."""

    run: Path = Path("runs/tiny")  # a folder of stages, or one stage's output_dir
    output: Path | None = None  # the file to write; None: report.html in the run


def main(config: ReportConfig) -> Path:
    """Read what the stages left and write the page."""
    path = write_report(config.run, config.output)
    print(f"report -> {path}")
    return path


if __name__ == "__main__":
    run_recipe(main, ReportConfig)
