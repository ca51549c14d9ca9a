"""The whole road on the embedded world: raw text to an aligned model, with a report. `make quickstart` runs this.

    python examples/quickstart.py [--output_dir runs/quickstart] [--seed 0]

Every stage is the recipe of its name with its config from recipes/configs/tiny. What people would do, the world's
simulated annotators do: they say, with noise, which of two answers is better.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import evaluate, ppo, pretrain, reward, sft, tokenizer
from rlhf_kit.config import parse_config, run_recipe
from rlhf_kit.data import world
from rlhf_kit.evaluation.report import write_report

CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "configs" / "tiny"
STAGES = ("tokenizer", "pretrain", "sft", "reward", "ppo", "evaluation")


@dataclass
class QuickstartConfig:
    """Where to, and from which seed."""

    output_dir: Path = Path("runs/quickstart")
    seed: int = 0


def main(config: QuickstartConfig) -> dict[str, Any]:
    """Run the stages in order; write report.html and summary.json."""
    out = config.output_dir
    seconds: dict[str, float] = {}

    def run(name: str, recipe: Any, cls: Any, **overrides: Any) -> Any:
        flags = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        yaml = CONFIGS / f"{name}.yaml"
        flags = ["--config", str(yaml), "--seed", str(config.seed), *flags]
        return timed(seconds, name, lambda: recipe.main(parse_config(cls, flags)))

    for stage in STAGES:  # what an earlier quickstart left
        shutil.rmtree(out / stage, ignore_errors=True)
    started = time.perf_counter()
    run("tokenizer", tokenizer, tokenizer.TokenizerConfig, output_dir=out / "tokenizer")
    run("pretrain", pretrain, pretrain.PretrainConfig, tokenizer=out / "tokenizer", output_dir=out / "pretrain")
    run("sft", sft, sft.SFTConfig, model=out / "pretrain", output_dir=out / "sft")
    run("reward", reward, reward.RewardConfig, model=out / "sft", output_dir=out / "reward")
    run("ppo", ppo, ppo.PPOConfig, model=out / "sft", reward=out / "reward", output_dir=out / "ppo")
    result = run(
        "evaluate",
        evaluate,
        evaluate.EvaluateConfig,
        model=out / "ppo",
        reference=out / "sft",
        reward=out / "reward",
        preferences="world",
        output_dir=out / "evaluation",
    )

    pairs = world.preferences(evaluate.WORLD_PAIRS, config.seed + 1, split="heldout")  # those that evaluate judged
    texts = [(r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in pairs]
    result["bayes_accuracy"] = world.Annotators().bayes_accuracy(*map(list, zip(*texts)))
    summary = {
        "gold_win_rate": result["gold_win_rate"]["estimate"],
        "gold_win_rate_low": result["gold_win_rate"]["low"],
        "gold_win_rate_high": result["gold_win_rate"]["high"],
        "reward_accuracy": result["accuracy"]["estimate"],
        "bayes_accuracy": result["bayes_accuracy"],
        "kl": result["kl"]["estimate"],
        "eos_rate": result["eos_rate"],
        "seconds": time.perf_counter() - started,
        "stage_seconds": seconds,
        "seed": config.seed,
    }
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = write_report(out)
    print(
        f"\nPPO beats its SFT model on the gold preference in {summary['gold_win_rate']:.1%} of pairs "
        f"(95 % interval {summary['gold_win_rate_low']:.1%} to {summary['gold_win_rate_high']:.1%}).\n"
        f"Reward model: {summary['reward_accuracy']:.1%} of held-out pairs; with this noise nobody can know more "
        f"than {summary['bayes_accuracy']:.1%}.\n"
        f"KL to the SFT model {summary['kl']:.1f} nats an answer; {summary['eos_rate']:.1%} of answers end by themselves.\n"
        f"{summary['seconds']:.0f} s. Report: {report}\n"
        f"Talk to it: python recipes/chat.py --model {out / 'ppo'}"
    )
    return summary


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """Run `work` under a heading and note how long it took."""
    print(f"\n== {name} ==", flush=True)
    started = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - started
    return result


if __name__ == "__main__":
    run_recipe(main, QuickstartConfig)
