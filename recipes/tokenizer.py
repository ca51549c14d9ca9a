"""Train a byte-level BPE tokenizer with a chat template.

python recipes/tokenizer.py --config recipes/configs/tiny/tokenizer.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.common import documents, writable
from rlhf_kit.config import check_least, run_recipe, save_config
from rlhf_kit.data.tokenizer import train_tokenizer


@dataclass
class TokenizerConfig:
    """A tokenizer from text."""

    data: str = "world"  # texts (.jsonl, .txt, .parquet, a folder, a dataset's name), or the embedded world
    output_dir: Path = Path("runs/tiny/tokenizer")
    vocab_size: int = 1024  # 300 to 50,257
    world_documents: int = 20_000  # of the embedded world
    seed: int = 0


def main(config: TokenizerConfig) -> None:
    """Train it and save it."""
    check_least(config, world_documents=1)
    writable(config.output_dir)
    tokenizer = train_tokenizer(documents(config.data, count=config.world_documents, seed=config.seed), config.vocab_size)
    tokenizer.save_pretrained(config.output_dir)
    save_config(config, config.output_dir / "run_config.yaml")
    print(f"{len(tokenizer)} tokens -> {config.output_dir}")


if __name__ == "__main__":
    run_recipe(main, TokenizerConfig)
