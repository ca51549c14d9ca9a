"""`python -m rlhf_kit.data.world --out DIR`: writes the world's datasets as JSON lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from rlhf_kit.data.world.annotators import Annotators
from rlhf_kit.data.world.rows import instructions, preferences, prompts, stories


def write_world(
    out: Path,
    *,
    n_stories: int = 20000,
    n_sft: int = 4000,
    n_preference: int = 8000,
    n_prompts: int = 4000,
    n_heldout: int = 512,
    seed: int = 0,
    annotators: Annotators | None = None,
) -> dict[str, int]:
    """Writes corpus, sft, preference, prompts and prompts_heldout as `.jsonl` into `out`; returns their row counts."""
    files: dict[str, Iterable[dict]] = {
        "corpus.jsonl": ({"text": text} for text in stories(n_stories, seed)),
        "sft.jsonl": instructions(n_sft, seed),
        "preference.jsonl": preferences(n_preference, seed, annotators),
        "prompts.jsonl": prompts(n_prompts, seed),
        "prompts_heldout.jsonl": prompts(n_heldout, seed, split="heldout"),
    }
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, rows in files.items():
        with (out / name).open("w", encoding="utf-8") as file:
            counts[name] = sum(1 for row in rows if file.write(json.dumps(row) + "\n"))
    return counts


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_kit.data.world", description="Write the generated world's datasets.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, made if it is not there")
    parser.add_argument("--stories", type=int, default=20000, help="documents in corpus.jsonl")
    parser.add_argument("--sft", type=int, default=4000, help="rows in sft.jsonl")
    parser.add_argument("--preference", type=int, default=8000, help="pairs in preference.jsonl")
    parser.add_argument("--prompts", type=int, default=4000, help="rows in prompts.jsonl")
    parser.add_argument("--heldout", type=int, default=512, help="rows in prompts_heldout.jsonl")
    parser.add_argument("--temperature", type=float, default=Annotators.temperature, help="noise of the simulated annotators")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    counts = write_world(
        args.out,
        n_stories=args.stories,
        n_sft=args.sft,
        n_preference=args.preference,
        n_prompts=args.prompts,
        n_heldout=args.heldout,
        seed=args.seed,
        annotators=Annotators(temperature=args.temperature, seed=args.seed),
    )
    for name, count in counts.items():
        print(f"{args.out / name}: {count} rows")


if __name__ == "__main__":
    main()
