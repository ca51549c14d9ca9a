"""How well does our pretraining learn real text, and how fast, beside transformers' own and beside what needs no GPU?

    OMP_NUM_THREADS=1 python -m benchmarks.books --data books_train.jsonl.xz --eval_data books_val.jsonl.xz [--json FILE]

Our GPT under `fit`, and a `GPT2LMHeadModel` of the same size under `transformers.Trainer`: the same rows of tokens in the
same order, the same optimizer, the same schedule; neither learning rate is tuned. Both are judged in bits per byte of
held-out books, where xz and a 5-gram model stand too: those on the text that the models saw, and on all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from rlhf_kit.batches import IGNORE
from rlhf_kit.config import run_recipe
from rlhf_kit.data.batching import TokenBatches
from rlhf_kit.data.shards import TokenShards, read_texts, write_shards
from rlhf_kit.data.tokenizer import load_tokenizer, train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.ngram import ngram_bits_per_byte
from rlhf_kit.evaluation.perplexity import evaluate_documents, xz_bits_per_byte
from rlhf_kit.models.hf import GPTForCausalLM
from rlhf_kit.models.presets import preset
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.optim import lr_at, make_optimizer
from rlhf_kit.training.stages import LanguageModelling


@dataclass
class BooksConfig:
    """What to train on, for how long, and what to judge on."""

    data: str = "books_train.jsonl.xz"  # texts to train on: .jsonl or .txt, compressed or not, or a folder
    eval_data: str = "books_val.jsonl.xz"  # texts to judge on
    tokens: int = 1_500_000  # to train on, at most an epoch
    runs: tuple[Literal["ours-bf16", "ours-fp32", "gpt2-bf16", "gpt2-fp32"], ...] = ("ours-bf16", "gpt2-bf16")
    tokenizer: str | None = None  # a tokenizer's folder; None: one is trained on the data
    vocab_size: int = 8192
    preset: str = "gpt-5m"  # our model's shape; the GPT-2 has its width, depth and heads
    sequence_length: int = 256
    batch_size: int = 32
    learning_rate: float = 1e-3
    eval_characters: int = 60_000  # of the beginning of each held-out text
    seed: int = 0
    json: Path | None = None  # the figures


@dataclass
class Data:
    """The corpus as tokens, the order in which both trainers see it, and the text to judge them on."""

    tokenizer: Any
    batches: TokenBatches
    steps: int
    config: BooksConfig
    held_out: list[str]

    @property
    def tokens(self) -> int:
        """Tokens that are predicted in training."""
        return sum(int((row != IGNORE).sum()) for row in self.rows("labels", skip=1))

    def rows(self, field: str, skip: int = 0) -> list[torch.Tensor]:
        """Every row that is trained on, in order."""
        parts = [batch for step in range(self.steps) for batch in self.batches.micro_batches(step, 0, 1)]
        return [row[skip:] for part in parts for row in getattr(part, field)]

    def seen_text(self) -> list[str]:
        """The trained rows as text again: what a model without weights may learn from to have seen the same."""
        return [self.tokenizer.decode(row) for row in self.rows("input_ids")]


def read_data(config: BooksConfig, folder: Path) -> Data:
    """Train the tokenizer (or load one), write shards, cut the held-out documents."""
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer = train_tokenizer(read_texts(config.data), config.vocab_size)
    write_shards(read_texts(config.data), tokenizer, folder / "shards")
    batches = TokenBatches(
        TokenShards(folder / "shards", tokenizer=tokenizer),
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        seed=config.seed,
        separate_documents=False,  # rows of plain text, which a GPT-2 can take as well
        drop_last=True,
    )
    steps = config.tokens // (config.batch_size * (config.sequence_length - 1))
    if not 1 <= steps <= batches.steps_per_epoch:
        most = batches.steps_per_epoch * config.batch_size * (config.sequence_length - 1)
        raise InputError("--tokens", config.tokens, f"expected at least one step's and at most an epoch's, {most:,}")
    held_out = [text[: config.eval_characters] for text in read_texts(config.eval_data)]
    return Data(tokenizer, batches, steps, config, held_out)


def our_model(data: Data) -> Any:
    """Our GPT, in the shape of the preset."""
    torch.manual_seed(data.config.seed)
    return GPTForCausalLM(preset(data.config.preset, vocab_size=len(data.tokenizer)))


def their_model(data: Data) -> Any:
    """A GPT-2 of the same width and depth, whose wider feed-forward layer and positions make up for the third matrix of ours."""
    torch.manual_seed(data.config.seed)
    ours = preset(data.config.preset)
    shape = GPT2Config(
        vocab_size=len(data.tokenizer),
        n_embd=ours.d_model,
        n_layer=ours.n_layers,
        n_head=ours.n_heads,
        n_positions=data.config.sequence_length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=data.tokenizer.bos_token_id,
        eos_token_id=data.tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(shape)


def train_ours(model: Any, data: Data, precision: str, folder: Path) -> None:
    """Our loop."""
    config = FitConfig(
        output_dir=folder,
        seed=data.config.seed,
        max_steps=data.steps,
        batch_size=data.config.batch_size,
        micro_batch_size=data.config.batch_size,
        learning_rate=data.config.learning_rate,
        precision=precision,  # type: ignore[arg-type]
        save_every=0,
    )
    accelerator = make_accelerator("bf16" if precision == "bf16" else "no")
    fit(LanguageModelling(model), data.batches, config, accelerator, tokenizer=data.tokenizer)


class InOrder(Trainer):
    """transformers' Trainer, which shuffles, on rows that are shuffled already."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def train_theirs(model: Any, data: Data, precision: str, folder: Path) -> None:
    """transformers' loop with our optimizer's settings and our schedule."""
    defaults = FitConfig()
    optimizer = make_optimizer(
        model,
        learning_rate=data.config.learning_rate,
        weight_decay=defaults.weight_decay,
        betas=(defaults.adam_beta1, defaults.adam_beta2),
        eps=defaults.adam_eps,
    )
    warmup = round(defaults.warmup_fraction * data.steps)
    schedule = LambdaLR(
        optimizer,
        lambda step: lr_at(step, data.steps, warmup, schedule=defaults.schedule, final_fraction=defaults.final_lr_fraction),
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=data.config.batch_size,
        max_steps=data.steps,
        max_grad_norm=defaults.max_grad_norm,
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=data.config.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(data.rows("input_ids"), data.rows("labels"))]
    trainer = InOrder(model, arguments, train_dataset=rows, optimizers=(optimizer, schedule))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


MODELS: dict[str, tuple[Callable[[Data], Any], Callable[[Any, Data, str, Path], None]]] = {
    "ours": (our_model, train_ours),
    "gpt2": (their_model, train_theirs),
}


def run(name: str, data: Data, folder: Path) -> dict[str, Any]:
    """Train one model in one precision, timed, and judge it in fp32."""
    kind, precision = name.split("-")
    make, train = MODELS[kind]
    model = make(data)
    wall, cpu = time.perf_counter(), time.process_time()
    train(model, data, precision, folder / name)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    model.to("cpu")
    found = evaluate_documents(
        model, data.tokenizer, data.held_out, data.config.sequence_length, data.config.sequence_length * 3 // 4
    )
    return {
        "parameters": model.num_parameters(),
        "tokens": data.tokens,
        "tokens_per_second": data.tokens / wall,
        "tokens_per_cpu_second": data.tokens / cpu,
        "bits_per_byte": found["bits_per_byte"],
        "loss": found["loss"],
        "eval_bytes": found["bytes"],
    }


def without_weights(data: Data, whole: Sequence[str]) -> dict[str, dict[str, float]]:
    """xz and the 5-gram, with nothing, the seen text, and all the text to learn from."""
    test, seen = "\n".join(data.held_out), data.seen_text()
    return {
        "xz": {"bits_per_byte": xz_bits_per_byte(test)},
        "xz, seen text before": {"bits_per_byte": xz_bits_per_byte(test, prior="\n".join(seen))},
        "xz, all text before": {"bits_per_byte": xz_bits_per_byte(test, prior="\n".join(whole))},
        "5-gram, seen text": {"bits_per_byte": ngram_bits_per_byte(seen, data.held_out)},
        "5-gram, all text": {"bits_per_byte": ngram_bits_per_byte(whole, data.held_out)},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as lines, best first."""
    lines = [f"{'':22}{'bits/byte':>10}{'parameters':>12}{'tokens/s':>10}{'per CPU s':>10}"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["bits_per_byte"]):
        line = f"{name:22}{row['bits_per_byte']:10.3f}"
        if "parameters" in row:
            line += f"{row['parameters']:12,}{row['tokens_per_second']:10,.0f}{row['tokens_per_cpu_second']:10,.0f}"
        lines.append(line)
    return "\n".join(lines)


def main(config: BooksConfig) -> dict[str, Any]:
    """Print the table, and write it as JSON where asked."""
    with TemporaryDirectory() as folder:
        data = read_data(config, Path(folder))
        print(
            f"{data.tokens:,} tokens in {data.steps} steps; judged on {sum(len(t.encode()) for t in data.held_out):,} bytes "
            f"of {len(data.held_out)} texts; {torch.get_num_threads()} thread(s)",
            flush=True,
        )
        rows: dict[str, Any] = {}
        for name in config.runs:
            rows[name] = run(name, data, Path(folder))
            print(
                f"{name}: {rows[name]['bits_per_byte']:.3f} bits per byte, {rows[name]['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )
        rows |= without_weights(data, list(read_texts(config.data)))
    print(table(rows))
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps({"steps": data.steps, "rows": rows}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    run_recipe(main, BooksConfig)
