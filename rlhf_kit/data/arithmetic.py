"""Worked sums with a slip: generated data for a process reward model, deterministic per seed, with nothing to download.

A question ("What is 3 + 1 + 4?") is answered a step a line ("3 + 1 = 4", "4 + 4 = 8"). Up to half of the answers slip at a
random step, by 1 to 3 too many, and count on from there: each later step is right by itself and the answer is lost. Every step
from the slip on is labelled False, the convention of Math-Shepherd (Wang et al. 2024: a step is good if the right answer can
still be reached from it), in the format of TRL's stepwise supervision. All numbers have one digit and no slip is too few, so that
a small model learns to check sums from nothing, in a minute on a CPU.
"""

from __future__ import annotations

import zlib
from random import Random
from typing import Any, Literal

Split = Literal["train", "heldout"]


def solutions(n: int, seed: int = 0, split: Split = "train") -> list[dict[str, Any]]:
    """`n` rows `{"prompt": [user], "completions": [str, ...], "labels": [bool, ...]}` of 2 to 4 steps.

    One question in ten, by its words, is held out: `split` says which of the two kinds is asked.
    """
    rng = Random(f"solutions-{split}-{seed}")
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        first, terms = rng.randrange(5), [rng.randrange(1, 5) for _ in range(rng.randrange(2, 5))]
        question = f"What is {' + '.join(map(str, (first, *terms)))}?"
        slip = rng.randrange(len(terms)) if rng.random() < 0.5 else None
        steps, total = [], first
        for number, term in enumerate(terms):
            result = total + term
            if number == slip:
                result += rng.randrange(1, 4)
            steps.append(f"{total} + {term} = {result}")
            total = result
            if not 0 <= total <= 9:
                break
        else:
            if (zlib.crc32(question.encode()) % 10 == 0) == (split == "heldout"):
                labels = [slip is None or number < slip for number in range(len(terms))]
                prompt = [{"role": "user", "content": question}]
                rows.append({"prompt": prompt, "completions": steps, "labels": labels})
    return rows
