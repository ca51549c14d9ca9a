"""Comparisons from the kit's embedded world, to try the app with: its gold score knows what is right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from annotate.store.records import NewComparison, NewResponse
from rlhf_kit.data import world

GUIDELINES = """\
Which story answers the request better?

- It is about who, what and where was asked for.
- It ends well, somebody speaks, its tone is warm, and it has vivid details.
- It is whole: no sentence breaks off, repeats or contradicts itself.

*Both bad* where neither is a story. Length alone is no merit.
"""
GOLD_GAP = 2.0  # standard deviations of the gold score: nobody who reads both answers can miss it
RANKED = 4


def demo_comparisons(pairs: int, rankings: int = 0, *, seed: int = 0, gold_share: float = 0.1) -> Iterator[NewComparison]:
    """`pairs` pairs and `rankings` rankings of four, from three writers: `careful` ends well, `plain` leaves it to chance, and
    `hasty` breaks off, repeats itself or loses the thread.

    Of the pairs whose answers lie far enough apart, a share `gold_share` are gold items.
    """
    rng = Random(f"demo-{seed}")
    requests = [row["prompt"] for row in world.prompts(pairs + rankings, seed)]
    for number, messages in enumerate(requests):
        prompt = messages[-1]["content"]
        size = 2 if number < pairs else RANKED
        writers = rng.sample(["careful", "plain", "hasty"], 2) if size == 2 else ["careful", "plain", "plain", "hasty"]
        answers = list(itertools.islice(_distinct(prompt, itertools.cycle(writers), rng), size))
        rng.shuffle(answers)
        scores = world.gold_scores([prompt] * size, [answer.text for answer in answers])
        gap = scores[0] - scores[1]
        gold = size == 2 and abs(gap) > GOLD_GAP and rng.random() < gold_share
        strength = (2 if gap > 0 else -2) if gold else None
        yield NewComparison(messages, answers, gold_strength=strength, propensity=1.0, sampled_by="demo")


def _distinct(prompt: str, writers: Iterator[str], rng: Random) -> Iterator[NewResponse]:
    seen = set()
    for writer in writers:
        text = world.write_answer(prompt, rng, happy_ending=True if writer == "careful" else None)
        text = world.spoil(prompt, text, rng) if writer == "hasty" else text
        if text not in seen:
            seen.add(text)
            yield NewResponse(text, model=writer)
