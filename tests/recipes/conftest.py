"""The whole road in miniature: every recipe's own `main` on the embedded world, once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import classify, dpo, evaluate, export, ppo, pretrain, process_reward, reward, sample_pairs, sft, tokenizer
from rlhf_kit.config import parse_config

CONFIGS = {
    "tokenizer": (tokenizer, tokenizer.TokenizerConfig, {"vocab_size": 400, "world_documents": 200}),
    "pretrain": (
        pretrain,
        pretrain.PretrainConfig,
        {
            "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 256, "sequence_length": 64, "world_documents": 150,
            "max_steps": 6, "batch_size": 8, "micro_batch_size": 4, "eval_every": 3, "save_every": 2, "log_every": 1,
        },
    ),
    "sft": (
        sft,
        sft.SFTConfig,
        {
            "world_demonstrations": 60, "max_steps": 5, "batch_size": 8, "micro_batch_size": 4, "eval_every": 3,
            "eval_fraction": 0.1, "save_every": 2, "log_every": 1,
        },
    ),
    "sample_pairs": (
        sample_pairs,
        sample_pairs.SamplePairsConfig,
        {"pairs": 40, "annotators": "world", "max_new_tokens": 12, "batch_size": 20},
    ),
    "reward": (
        reward,
        reward.RewardConfig,
        {"max_steps": 5, "batch_size": 8, "micro_batch_size": 4, "eval_every": 3, "save_every": 2, "log_every": 1},
    ),
    "classify": (classify, classify.ClassifyConfig, {"max_steps": 5, "batch_size": 8, "micro_batch_size": 4}),
    "process_reward": (
        process_reward,
        process_reward.ProcessRewardConfig,
        {"max_steps": 5, "batch_size": 8, "micro_batch_size": 4},
    ),
    "dpo": (
        dpo,
        dpo.DPOConfig,
        {
            "max_steps": 5, "batch_size": 8, "micro_batch_size": 4, "eval_every": 3, "save_every": 2, "log_every": 1,
            "learning_rate": 1e-3,
        },
    ),
    "ppo": (
        ppo,
        ppo.PPOConfig,
        {
            "total_steps": 5, "batch_size": 8, "micro_batch_size": 4, "num_epochs": 2, "num_minibatches": 2, "max_new_tokens": 12,
            "world_prompts": 40, "save_every": 2, "learning_rate": 1e-3, "gold": "rlhf_kit.data.world:gold_scores",
        },
    ),
    "evaluate": (
        evaluate,
        evaluate.EvaluateConfig,
        {"prompts": 16, "max_new_tokens": 12, "batch_size": 8, "samples": 4},
    ),
    "export": (export, export.ExportConfig, {}),
}  # fmt: skip


def flags_of(name: str, **overrides: Any) -> list[str]:
    """The command line of the recipe `name` with the miniature's settings."""
    settings = CONFIGS[name][2] | overrides
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def run_main(name: str, **overrides: Any) -> Any:
    """The recipe's `main` in this process, its config parsed from a command line."""
    recipe, cls, _ = CONFIGS[name]
    return recipe.main(parse_config(cls, flags_of(name, **overrides)))  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Any]:
    """`recipe(name, **overrides)` runs a recipe's `main` with the miniature's settings."""
    return run_main


@pytest.fixture(scope="session")
def flags() -> Callable[..., list[str]]:
    """`flags(name, **overrides)`: the miniature's command line of a recipe."""
    return flags_of


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of all stages, each made from those before."""
    out = tmp_path_factory.mktemp("road")
    run_main("tokenizer", output_dir=out / "tokenizer")
    run_main("pretrain", tokenizer=out / "tokenizer", output_dir=out / "pretrain")
    run_main("sft", model=out / "pretrain", output_dir=out / "sft")
    run_main("sample_pairs", model=out / "sft", output=out / "pairs.jsonl")
    run_main("reward", model=out / "sft", data=out / "pairs.jsonl", output_dir=out / "reward")
    run_main("dpo", model=out / "sft", data=out / "pairs.jsonl", output_dir=out / "dpo")
    run_main("ppo", model=out / "sft", reward=out / "reward", output_dir=out / "ppo")
    run_main("ppo", model=out / "sft", reward=out / "reward", output_dir=out / "rloo", algorithm="rloo", group_size=2)
    run_main(
        "evaluate",
        model=out / "ppo",
        reference=out / "sft",
        reward=out / "reward",
        gold="rlhf_kit.data.world:gold_scores",
        attributes="rlhf_kit.data.world:attributes",
        output_dir=out / "evaluation",
    )
    run_main("export", model=out / "ppo", output_dir=out / "exported")
    return out
