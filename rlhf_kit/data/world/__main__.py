"""Write the world's datasets as JSON lines: corpus, sft, preference, prompts and prompts_heldout.

python -m rlhf_kit.data.world --out DIR
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.world.annotators import Annotators
from rlhf_kit.data.world.rows import instructions, preferences, prompts, stories
from rlhf_kit.errors import InputError


@dataclass
class WorldConfig:
    """Where to, and how much."""

    out: Path  # folder to write to, made if it is not there
    stories: int = 20_000  # documents in corpus.jsonl
    sft: int = 4_000  # rows in sft.jsonl
    preference: int = 8_000  # pairs in preference.jsonl
    prompts: int = 4_000  # rows in prompts.jsonl
    heldout: int = 512  # rows in prompts_heldout.jsonl
    temperature: float = Annotators.temperature  # noise of the simulated annotators
    seed: int = 0


def main(config: WorldConfig) -> dict[str, int]:
    """Write the files; returns their row counts.

    Raises:
        InputError: a negative count, annotators that cannot be, a folder that cannot be written.
    """
    check_least(config, stories=0, sft=0, preference=0, prompts=0, heldout=0)
    annotators = Annotators(temperature=config.temperature, seed=config.seed)
    counts = {}
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        files: dict[str, Iterable[dict]] = {
            "corpus.jsonl": ({"text": text} for text in stories(config.stories, config.seed)),
            "sft.jsonl": instructions(config.sft, config.seed),
            "preference.jsonl": preferences(config.preference, config.seed, annotators),
            "prompts.jsonl": prompts(config.prompts, config.seed),
            "prompts_heldout.jsonl": prompts(config.heldout, config.seed, split="heldout"),
        }
        for name, rows in files.items():
            with (config.out / name).open("w", encoding="utf-8") as file:
                counts[name] = sum(1 for row in rows if file.write(json.dumps(row) + "\n"))
            print(f"{config.out / name}: {counts[name]} rows")
    except OSError as error:
        mend = f"expected a folder that can be written ({error.strerror}): choose another, or make room"
        raise InputError("--out", str(config.out), mend) from error
    return counts


if __name__ == "__main__":
    run_recipe(main, WorldConfig)
