"""python -m benchmarks.sentiment --data FOLDER [--policy DIR] [--work DIR] [--seeds 3] [--json FILE] [--picture FILE]."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from benchmarks.sentiment import ours, report, texts, theirs
from benchmarks.sentiment.measure import Evaluation, Watch
from benchmarks.sentiment.settings import PPOSettings, Start
from benchmarks.sentiment.stages import StageSettings, prepare
from benchmarks.speed.measure import machine
from recipes.common import writable
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.tokenizer import load_tokenizer

Side = Literal["ours", "theirs"]
TRAIN: dict[Side, Callable[[Start, PPOSettings, Watch], None]] = {"ours": ours.train, "theirs": theirs.train}


@dataclass
class SentimentConfig(PPOSettings, StageSettings):
    """What to train on, how, and where the figures go."""

    data: Path = Path("data")  # holds movie_reviews_v2.jsonl and sentence_polarity.jsonl (and books_train.jsonl), .xz or .gz
    policy: Path | None = None  # a pretrained model's directory; None: a GPT is pretrained on the books
    work: Path = Path("runs/sentiment")  # finished stages are kept here, and found by the next run
    seeds: int = 3  # runs of each side; ours and TRL's take turns
    first_seed: int = 0
    evaluate_every: int = 3  # rollouts
    eval_prompts: int = 512
    threads: int = 1
    json: Path | None = None
    picture: Path | None = None  # .svg


def main(config: SentimentConfig) -> dict[str, Any]:
    """Prepare, let both sides learn from the same start seed by seed, and report."""
    config.check()
    check_least(config, seeds=1, first_seed=0, evaluate_every=1, eval_prompts=1, threads=1)
    torch.set_num_threads(config.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    work = writable(config.work, "--work")
    held_out = prepare(config.data, config.policy, work, config)
    print(f"held out: {held_out}", flush=True)

    reviews, tokenizer = texts.read_reviews(config.data), load_tokenizer(work / "reference")
    asked, shown = (
        texts.beginnings(texts.of_folds(reviews, folds), tokenizer, config.prompt_tokens, seed=0)
        for folds in (texts.PROMPTS, texts.HELD_OUT)
    )
    evaluation = Evaluation(
        work / "reference", work / "reward", work / "judge", shown[: config.eval_prompts], answer_tokens=config.answer_tokens
    )
    runs: list[dict[str, Any]] = []
    curves: report.Curves = {side: [] for side in TRAIN}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
        start = Start(work / "reference", work / "reward", texts.repeated(asked[order], config.episodes), seed)
        run: dict[str, Any] = {"seed": seed}
        for side in turns(seed):
            watch = Watch(evaluation, config.batch_size, config.evaluate_every, config.rollouts)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # their reports
                TRAIN[side](start, config, watch)
            run[side] = watch.as_dict()
            curves[side].append(watch.points)
            end = watch.points[-1]
            print(
                f"seed {seed}, {report.SIDES[side]}: {watch.episodes} episodes, {watch.optimizer_steps} optimizer steps, "
                f"{end.wall:.0f} s, reward {end.reward:.3f}, judge {end.judge:.3f}, KL {end.kl:.2f}",
                flush=True,
            )
        runs.append(run)
        result = finish(config, held_out, runs, curves)  # after every seed, so that a run cut short leaves what it has
    print("\n" + report.table(curves) + "\n\n" + report.verdict(curves, config.first_seed))
    return result


def turns(seed: int) -> list[Side]:
    """Who goes first: the two take turns, so that neither always has the machine as the other left it."""
    return ["ours", "theirs"] if seed % 2 == 0 else ["theirs", "ours"]


def finish(
    config: SentimentConfig, held_out: dict[str, Any], runs: list[dict[str, Any]], curves: report.Curves
) -> dict[str, Any]:
    """Write what is asked for; the same as plain data."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    for path in ("data", "policy", "work", "json", "picture"):
        settings.pop(path)
    result = {
        "machine": machine() | {"cores": os.cpu_count()},
        "settings": settings,
        "held_out": held_out,
        "reached": report.reached(curves, config.first_seed),
        "runs": runs,
    }
    for file, text in (
        (config.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n"),
        (config.picture, report.picture(curves)),
    ):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return result


if __name__ == "__main__":
    run_recipe(main, SentimentConfig)
