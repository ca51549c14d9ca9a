"""Pretrain a GPT from scratch on raw text.

python recipes/pretrain.py --config recipes/configs/tiny/pretrain.yaml
accelerate launch recipes/pretrain.py --config recipes/configs/small/pretrain.yaml --data books.jsonl.xz
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.common import documents, open_run
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import TokenBatches
from rlhf_kit.data.shards import INDEX, SEPARATOR, TokenShards, write_shards
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTForCausalLM
from rlhf_kit.models.loading import check_fits
from rlhf_kit.models.presets import preset
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import LanguageModelling


@dataclass
class PretrainConfig(FitConfig):
    """A language model from raw text."""

    output_dir: Path = Path("runs/tiny/pretrain")
    data: str = "world"  # texts, or the embedded world
    eval_data: str | None = None  # held-out texts; None: every 50th document of `data`
    tokenizer: str = "runs/tiny/tokenizer"
    preset: str = "gpt-1m"  # a shape from rlhf_kit/models/presets.py; the fields below override it
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    max_seq_len: int | None = None
    position: str | None = None
    norm: str | None = None
    norm_place: str | None = None
    mlp: str | None = None
    bias: bool | None = None
    tie_word_embeddings: bool | None = None
    dropout: float | None = None
    sequence_length: int = 256  # tokens a row
    world_documents: int = 20_000  # of the embedded world


MODEL_FIELDS = (
    "d_model", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "position", "norm", "norm_place", "mlp", "bias",
    "tie_word_embeddings", "dropout",
)  # fmt: skip
EVAL_EVERY = 50  # documents: one in so many is held out where no --eval_data is given


def main(config: PretrainConfig) -> dict[str, float]:
    """Tokenize into shards, then fit."""
    check_least(config, world_documents=1)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.tokenizer, "--tokenizer")
    train, held_out = token_shards(config, tokenizer, accelerator)

    overrides: dict[str, Any] = {name: value for name in MODEL_FIELDS if (value := getattr(config, name)) is not None}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = new_model(config.preset, config.seed, vocab_size=len(tokenizer), **special, **overrides)
    accelerator.print(
        f"{model.num_parameters():,} parameters; {train.num_tokens:,} tokens to train on, {held_out.num_tokens:,} held out"
    )

    shape: dict[str, Any] = {
        "sequence_length": config.sequence_length,
        "micro_batch_size": config.micro_batch_size,
        "seed": config.seed,
    }
    check_fits(model, tokenizer, longest=config.sequence_length, field="--sequence_length or raise --max_seq_len")
    return fit(
        LanguageModelling(model),
        TokenBatches(train, batch_size=config.batch_size, **shape),
        config,
        accelerator,
        tokenizer=tokenizer,
        eval_batches=TokenBatches(held_out, batch_size=config.batch_size, **shape),
    )


def new_model(name: str, seed: int, **overrides: Any) -> GPTForCausalLM:
    """A GPT with the weights that `seed` decides."""
    torch.manual_seed(seed)
    return GPTForCausalLM(preset(name, **overrides))


def token_shards(config: PretrainConfig, tokenizer: Any, accelerator: Any) -> tuple[TokenShards, TokenShards]:
    """`(train, held out)` shards under output_dir; one process writes them, and a resumed run finds them there."""
    folders = config.output_dir / "shards" / "train", config.output_dir / "shards" / "eval"
    with accelerator.main_process_first():
        if accelerator.is_main_process and not (config.resume and all((folder / INDEX).exists() for folder in folders)):
            beside = config.output_dir / "shards.new"  # wrong texts must not cost the shards of a finished run
            try:
                for folder, texts in zip(folders, split_documents(config)):
                    write_shards(texts, tokenizer, beside / folder.name, overwrite=True)
            except BaseException:  # half a corpus is of no use to anybody
                shutil.rmtree(beside, ignore_errors=True)
                raise
            shutil.rmtree(folders[0].parent, ignore_errors=True)
            beside.rename(folders[0].parent)
    return TokenShards(folders[0], tokenizer=tokenizer), TokenShards(folders[1], tokenizer=tokenizer)


def split_documents(config: PretrainConfig) -> tuple[Iterable[str], Iterable[str]]:
    """`(train, held out)` texts, as streams."""

    def read(data: str, seed: int = config.seed) -> Iterable[str]:
        return documents(data, count=config.world_documents, seed=seed)

    def some(texts: Iterable[str], field: str, data: str, mend: str) -> Iterator[str]:
        count = 0
        for count, text in enumerate(texts, 1):  # noqa: B007
            yield text
        if not count:
            raise InputError(field, data, mend)

    if config.eval_data is not None:
        mend = "expected at least one document: it is empty"
        return (
            some(read(config.data), "--data", config.data, mend),
            some(read(config.eval_data, config.seed + 1), "--eval_data", config.eval_data, mend),  # of the world: other stories
        )
    mend = f"expected at least 2 documents, one to hold out: put lines {SEPARATOR} between them, or give --eval_data"
    rest = (text for i, text in enumerate(read(config.data)) if i % EVAL_EVERY)
    return some(rest, "--data", config.data, mend), itertools.islice(read(config.data), 0, None, EVAL_EVERY)


if __name__ == "__main__":
    run_recipe(main, PretrainConfig)
