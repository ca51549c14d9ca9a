"""python -m benchmarks.closed_form [algorithms|dpo|reward_model|overoptimisation|best_of_n] [--help]; the first by default."""

from __future__ import annotations

import importlib
import sys

BENCHES = ("algorithms", "dpo", "reward_model", "overoptimisation", "best_of_n")


def main() -> None:
    """Hand the rest of the command line to the benchmark that it names; only that one's libraries are loaded."""
    words = sys.argv[1:]
    name, rest = (words[0], words[1:]) if words and words[0] in BENCHES else (BENCHES[0], words)
    importlib.import_module(f"benchmarks.closed_form.{name}").main(rest)


if __name__ == "__main__":
    main()
