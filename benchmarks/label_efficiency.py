"""What a label is worth when the reward models choose what to ask: uncertainty sampling against random pairs.

    python -m benchmarks.label_efficiency --model runs/quickstart/sft [--seeds 5] [--json FILE] [--picture FILE]

Rounds double the labels. In each, an ensemble of reward models is trained anew on all labels so far, from the SFT model; then new
pairs are chosen out of three times as many candidates: at random, or by `annotate.quality.sampling` (the members' disagreement,
with a fifth of the chance shared out alike). Both see the same candidates, and every pair's label is one draw of the embedded
world's annotators. Training weighs all labels alike: weights of 1 over the propensity would undo the choice, and add noise.

Accuracy is that of the members' mean score on held-out pairs, as an expectation over the annotators' noise (`accuracy`), so that
no draw of test labels blurs it; nothing can pass the Bayes ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from annotate.quality.sampling import choose_comparisons
from benchmarks.pictures import sheet
from rlhf_kit.data import world
from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import PreferenceExample, preference_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.evaluation.charts import Guide, Series, line_chart
from rlhf_kit.models.access import scalar_scores, unwrap
from rlhf_kit.models.loading import load_scalar_model
from rlhf_kit.rollout.scoring import pad
from rlhf_kit.training.distributed import make_accelerator, seed_everything_for_step
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import RewardModelling
from rlhf_kit.wording import percent

WAYS = ("random", "uncertainty")
CANDIDATES = 3  # for each pair that is asked about
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How one curve is made."""

    model: str
    labels: tuple[int, ...]
    members: int
    test: int
    epochs: float
    batch_size: int = 8
    learning_rate: float = 1e-3


@dataclass
class Clock:
    """How much of the work is done, in pairs that went through a model, and when the rest will be."""

    whole: float
    begun: float = field(default_factory=time.perf_counter)
    done: float = 0.0

    def tell(self, what: str, work: float) -> None:
        """Add `work`, and print how long the rest will take."""
        self.done += work
        spent = time.perf_counter() - self.begun
        left = spent * (self.whole / self.done - 1)
        print(f"{what} | {spent / 60:.1f} min so far, about {left / 60:.0f} left", flush=True)


class Pairs:
    """Judged pairs: encoded, and the chance with which an annotator says what the label says."""

    def __init__(self, rows: list[dict[str, Any]], tokenizer: Any) -> None:
        self.examples, counts = preference_examples(rows, tokenizer, 10_000)
        assert counts.kept == len(rows), f"pairs of the world that cannot be encoded: {counts}"
        texts = [(row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
        prompts, chosen, rejected = map(list, zip(*texts, strict=True))
        self.chances = np.array(world.Annotators().probabilities(prompts, chosen, rejected))

    def __len__(self) -> int:
        return len(self.examples)


def accuracy(margins: ArrayLike, chances: ArrayLike) -> float:
    """The expected share of labels, over the annotators' noise, that scores get right; an even score is half right.

    Args:
        margins: (P,) score of the first answer less the second's.
        chances: (P,) with which an annotator prefers the first. `accuracy(chances - 1 / 2, chances)` is the Bayes ceiling.
    """
    sign, p = np.sign(np.asarray(margins, dtype=np.float64)), np.asarray(chances, dtype=np.float64)
    return float((0.5 + sign * (p - 0.5)).mean())


def ceiling(chances: Floats) -> float:
    """The accuracy of who knows the annotators' chances."""
    return accuracy(chances - 0.5, chances)


def train(settings: Settings, examples: Sequence[PreferenceExample], tokenizer: Any, seed: int) -> Any:
    """A reward model, from the SFT model and with a new head of its own, in the kit's own loop."""
    seed_everything_for_step(seed, 0, 0)
    model = load_scalar_model(settings.model)
    unwrap(model).config.pad_token_id = tokenizer.pad_token_id
    batches = PreferenceBatches(examples, settings.batch_size, settings.batch_size, seed, tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        config = FitConfig(
            Path(folder), seed, settings.epochs, learning_rate=settings.learning_rate, weight_decay=0.01, eval_every=0,
            save_every=0, keep_best=False,
        )  # fmt: skip
        fit(RewardModelling(model), batches, config, make_accelerator(), tokenizer=tokenizer)
    return model.eval()


@torch.no_grad()
def margins_of(models: Sequence[Any], examples: Sequence[PreferenceExample]) -> Floats:
    """(M, P): what each model says of the first answer less the second."""

    def scores(model: Any, sides: list[Any]) -> torch.Tensor:
        return torch.cat([scalar_scores(model, *pad(sides[i : i + 64])) for i in range(0, len(sides), 64)])

    first, second = [example.chosen for example in examples], [example.rejected for example in examples]
    found = [scores(model, first) - scores(model, second) for model in models]
    return torch.stack(found).double().numpy()


def choose(way: str, margins: Callable[[], Floats], candidates: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` of the candidates, which come in random order."""
    if way == "random":
        return list(candidates[:count])
    drawn, _ = choose_comparisons(candidates, lambda _: margins(), count, seed=seed)
    return [candidates[i] for i in drawn.chosen]


def curves(settings: Settings, seed: int, tokenizer: Any, clock: Clock) -> dict[str, Any]:
    """One seed: for each way the accuracies, and how clear the pairs were that it asked about; the ceiling."""
    first, steps = settings.labels[0], [b - a for a, b in zip(settings.labels, settings.labels[1:])]
    stream = Pairs(world.preferences(first + CANDIDATES * sum(steps), seed), tokenizer)
    test = Pairs(world.preferences(settings.test, seed, split="heldout"), tokenizer)

    def trained(asked: list[int], what: str) -> tuple[list[Any], float]:
        examples = [stream.examples[i] for i in asked]
        models = [train(settings, examples, tokenizer, 100 * seed + member) for member in range(settings.members)]
        found = accuracy(margins_of(models, test.examples).mean(0), test.chances)
        clock.tell(f"seed {seed} {what} {len(asked)} labels: {found:.1%}", work(settings, len(asked)))
        return models, found

    start = list(range(first))
    models, found = trained(start, "both")
    result: dict[str, Any] = {"ceiling": ceiling(test.chances)}
    for way in WAYS:
        asked, judges, accuracies, offset, clear = list(start), models, [found], first, []
        for count in steps:
            candidates = range(offset, offset + CANDIDATES * count)
            examples = [stream.examples[i] for i in candidates]
            chosen = choose(way, lambda: margins_of(judges, examples), candidates, count, seed)  # noqa: B023 (called at once)
            clear.append(ceiling(stream.chances[chosen]))
            asked, offset = asked + chosen, candidates.stop
            judges, now = trained(asked, way)
            accuracies.append(now)
        result[way] = {"accuracy": accuracies, "clear": clear}
    return result


def work(settings: Settings, labels: int) -> float:
    """What one ensemble costs, in pairs that go through a model; a backward costs about two forwards."""
    return settings.members * (3 * settings.epochs * labels + settings.test)


def summary(settings: Settings, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of labels the mean and standard deviation over seeds, of each way and of their difference by seed."""

    def over_seeds(values: list[float]) -> dict[str, float | None]:
        return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}

    rows = []
    for i, labels in enumerate(settings.labels):
        accuracies = {way: [run[way]["accuracy"][i] for run in runs] for way in WAYS}
        row: dict[str, Any] = {"labels": labels, **{way: over_seeds(accuracies[way]) for way in WAYS}}
        row["difference"] = over_seeds([b - a for a, b in zip(accuracies["random"], accuracies["uncertainty"])])
        if i:
            row["clear"] = {way: statistics.mean(run[way]["clear"][i - 1] for run in runs) for way in WAYS}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], most: float) -> str:
    """The summary as a Markdown table."""

    def cell(found: dict[str, Any], sign: str = "") -> str:
        return f"{100 * found['mean']:{sign}.1f}" + ("" if found["sd"] is None else f" ± {100 * found['sd']:.1f}")

    lines = ["| labels | random | uncertainty | difference | ceiling of the labels asked for: random, uncertainty |"]
    lines.append("|--:|--:|--:|--:|--:|")
    for row in rows:
        clear = ", ".join(f"{100 * row['clear'][way]:.1f}" for way in WAYS) if "clear" in row else "the same"
        ways = " | ".join(cell(row[way]) for way in WAYS)
        lines.append(f"| {row['labels']:,} | {ways} | {cell(row['difference'], '+')} | {clear} |")
    return "\n".join([*lines, f"| Bayes ceiling | {100 * most:.1f} | {100 * most:.1f} | | |"])


def picture(rows: list[dict[str, Any]], most: float) -> str:
    """The mean accuracies over the doublings of the labels, with a standard deviation to both sides, as SVG."""
    x = [float(np.log2(row["labels"] / rows[0]["labels"])) for row in rows]
    series = []
    for colour, way in enumerate(WAYS, 1):
        mean, sd = (np.array([row[way][name] or 0.0 for row in rows]) for name in ("mean", "sd"))
        series.append(Series(way, x, mean.tolist(), colour, "both"))
        series += [Series(f"{way}, one sd", x, (mean + side * sd).tolist(), colour, dashed=True) for side in (-1, 1)]
    chart = line_chart(
        series,
        name="Accuracy of the reward models over the number of labels",
        x_label=f"doublings of {rows[0]['labels']} labels",
        y_format=percent,
        guide=Guide(most, most, "Bayes ceiling"),
    )
    return sheet([("Accuracy on held-out pairs (dashed: one sd)", chart)], list(WAYS), columns=1)


def main() -> None:
    """Run the seeds, print the table; write figures and picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an SFT model of the embedded world")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="the curves, as SVG")
    given = parser.parse_args()
    settings = Settings(given.model, tuple(given.labels), given.members, given.test, given.epochs)
    tokenizer = load_tokenizer(settings.model, "--model")
    once = work(settings, settings.labels[0]) + len(WAYS) * sum(work(settings, labels) for labels in settings.labels[1:])
    clock, runs = Clock(given.seeds * once), []
    for seed in range(given.seeds):
        runs.append(curves(settings, seed, tokenizer, clock))
    rows, most = summary(settings, runs), statistics.mean(run["ceiling"] for run in runs)
    print("\n" + table(rows, most))
    if given.json:
        given.json.write_text(json.dumps({"ceiling": most, "rows": rows, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    if given.picture:
        given.picture.write_text(picture(rows, most), encoding="utf-8")


if __name__ == "__main__":
    main()
