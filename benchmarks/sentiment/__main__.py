"""python -m benchmarks.sentiment --data FOLDER [--policy DIR] [--work DIR] [--seeds 3] [--json FILE] [--picture FILE]."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from rlhf_kit.errors import InputError


@dataclass
class SentimentConfig(PPOSettings, StageSettings):
    """What to train on, how, and where the figures go."""

    data: Path = Path("data")  # holds movie_reviews_v2.jsonl and sentence_polarity.jsonl (and books_train.jsonl), .xz or .gz
    policy: Path | None = None  # a pretrained model's directory; None: a GPT is pretrained on the books
    work: Path = Path("runs/sentiment")  # finished stages are kept here, and found by the next run
    sides: tuple[str, ...] = tuple(report.SIDES)  # `ours` alone says what a setting does, in a fifth of the time
    usual_lam: float = 0.95  # of TRL's second run: its default, and that of Huang et al. 2024
    usual_kl_coef: float = 0.15  # of the same; its own default is 0.05 (docs/sentiment.md has both)
    seeds: int = 3  # runs of each side; they take turns
    first_seed: int = 0
    evaluate_every: int = 3  # rollouts
    eval_prompts: int = 512
    threads: int = 1
    json: Path | None = None
    picture: Path | None = None  # .svg


def main(config: SentimentConfig) -> dict[str, Any]:
    """Prepare, let the sides learn from the same start seed by seed, and report."""
    config.check()
    check_least(config, seeds=1, first_seed=0, evaluate_every=1, eval_prompts=1, threads=1)
    if not config.sides or not set(config.sides) <= set(report.SIDES):
        raise InputError("--sides", config.sides, f"expected some of {', '.join(report.SIDES)}")
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
    curves: report.Curves = {side: [] for side in report.SIDES if side in config.sides}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
        start = Start(work / "reference", work / "reward", texts.repeated(asked[order], config.episodes), seed)
        run: dict[str, Any] = {"seed": seed}
        for side in turns(list(curves), seed):
            watch = Watch(evaluation, config.batch_size, config.evaluate_every, config.rollouts)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # their reports
                train(side, start, config, watch)
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


def train(side: str, start: Start, config: SentimentConfig, watch: Watch) -> None:
    """One side from `start`; TRL's second run differs in lambda and the price of distance alone."""
    if side == "theirs_usual":
        config = replace(config, lam=config.usual_lam, kl_coef=config.usual_kl_coef)
    (ours if side == "ours" else theirs).train(start, config, watch)


def turns(sides: list[str], seed: int) -> list[str]:
    """Who goes first: the sides take turns, so that none always has the machine as another left it."""
    first = seed % len(sides)
    return sides[first:] + sides[:first]


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
        "reached": {rival: report.reached(curves, rival, config.first_seed) for rival in report.rivals(curves)},
        "differences": {rival: report.differences(curves, rival) for rival in report.rivals(curves)},
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
