"""python -m benchmarks.parity [--only NAME ...] [--json FILE] [--record FILE]."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path


def main() -> int:
    """Run both sides, print the table; 1 where any row exceeds its tolerance, else 0."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    import trl

    from benchmarks.parity import golden
    from benchmarks.parity.cases import chosen
    from benchmarks.parity.rows import Found, Row, compared, summary, table
    from rlhf_kit.errors import InputError

    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description="Ours beside TRL's, number by number.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="algorithms of the table, or families such as sft")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", type=Path, help="write TRL's numbers of the cases run (tests/parity/golden.json)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows: list[Row] = []
    found: dict[str, Found] = {}
    started = time.perf_counter()
    try:
        cases = chosen(arguments.only)
    except InputError as error:
        parser.error(str(error))
    for case in cases:
        ours, found[case.name] = case.ours(), case.theirs()
        rows += compared(case, ours, found[case.name])
        print(f"{time.perf_counter() - started:5.1f} s  {case.name}", file=sys.stderr, flush=True)
    print(f"TRL {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"\n{table(rows)}\n\n{summary(rows)}")
    if arguments.json:
        report = {"trl": trl.__version__, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.record:
        golden.record(arguments.record, found)
    exceeding = sum(row.exceeds for row in rows)
    print(f"\n{len(rows)} rows, {exceeding} beyond their tolerance")
    return int(exceeding > 0)


if __name__ == "__main__":
    sys.exit(main())
