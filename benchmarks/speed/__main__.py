"""python -m benchmarks.speed [--rows NAME ...] [--rounds N] [--threads N] [--quick] [--json FILE]."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path


def main() -> None:
    """Run the rows asked for, print the table, and write it as JSON where asked."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    from benchmarks.speed import rows as rows_module
    from benchmarks.speed.measure import Row, as_json, table
    from benchmarks.speed.memory import probe

    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Ours beside well-configured peers.")
    parser.add_argument("--rows", nargs="+", default=list(rows_module.DEFAULT_NAMES), choices=rows_module.NAMES, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: that it runs, not how fast")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", nargs=2, metavar=("GROUP", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    if arguments.probe:
        name, contender = arguments.probe
        group = rows_module.GROUPS[name]
        setup = group.contenders(rows_module.sized(group, arguments.quick))[contender]
        print(json.dumps({"peak_mb": probe(setup)}))
        return
    rounds = 1 if arguments.quick else arguments.rounds
    rows: list[Row] = []
    for name in arguments.rows:
        started = time.perf_counter()
        rows += rows_module.rows_of(name, rounds, arguments.quick)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        if arguments.json:  # after every group, so that a run cut short leaves what it has
            arguments.json.write_text(json.dumps(as_json(rows, rounds, arguments.quick), indent=2) + "\n")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
