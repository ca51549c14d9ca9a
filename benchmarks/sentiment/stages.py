"""From texts to where PPO starts: a language model that writes like reviewers, the reward, the judge. Finished ones are kept.

Each is a stage of the kit (`fit`) and leaves a model directory under `--work`, where a later run finds it. Other settings of
the stages need another `--work`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.sentiment import texts as reviews
from benchmarks.sentiment.texts import Text
from recipes import pretrain, tokenizer
from rlhf_kit.batches import LabelledBatch
from rlhf_kit.data.batching import TokenBatches
from rlhf_kit.data.labelled import LabelledBatches, labelled_examples
from rlhf_kit.data.shards import write_shards
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores, unwrap
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import Classification, LanguageModelling

BOOKS = "books_train.jsonl"
RESULT = "held_out.json"


@dataclass
class StageSettings:
    """How much each stage learns; enough for the comparison, far from what more time would give."""

    pretrain_steps: int = 300  # of 32 rows of 256 tokens, on books; where no --policy is given
    vocab_size: int = 8192
    preset: str = "gpt-1m"
    reference_steps: int = 300  # of 32 rows of 128 tokens, on reviews
    classifier_epochs: float = 2.0
    classifier_tokens: int = 48  # of a text: what the reward reads in PPO is 40 long


def prepare(data: Path, policy: Path | None, work: Path, settings: StageSettings) -> dict[str, Any]:
    """All stages that `work` lacks. Returns what the held-out texts say of each: `loss` and `accuracy`.

    Raises:
        InputError: `work` holds stages that were made with other settings.
    """
    refuse_others(
        work / "stages.json",
        {"policy": policy and str(policy)} | {f.name: getattr(settings, f.name) for f in fields(StageSettings)},
    )
    texts = reviews.read_reviews(data)
    start = policy or pretrained(data, work, settings)
    result = {"reference": reference(texts, start, work / "reference", settings)}
    for name, folds in (("reward", reviews.REWARD), ("judge", reviews.JUDGE)):
        result[name] = classifier(texts, folds, work / "reference", work / name, settings)
    return result


def refuse_others(file: Path, wanted: dict[str, Any]) -> None:
    """Keep the settings of the stages beside them, and compare. The file appears whole and is never written again."""
    if not file.exists():
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(json.dumps(wanted, indent=1) + "\n")
        os.replace(temporary, file)
    found = json.loads(file.read_text())
    for name, value in wanted.items():
        if found[name] != value:
            mend = f"expected an empty folder: in the stages there {name} is {found[name]} and not {value}"
            raise InputError("--work", str(file.parent), mend)


def pretrained(data: Path, work: Path, settings: StageSettings) -> Path:
    """A tokenizer and a GPT from books, by the recipes."""
    books, folder = str(reviews.find(data, BOOKS, "pretrain")), work / "pretrain"
    if not (work / "tokenizer").is_dir():
        tokenizer.main(tokenizer.TokenizerConfig(output_dir=work / "tokenizer", data=books, vocab_size=settings.vocab_size))
    if not (folder / "config.json").exists():
        pretrain.main(
            pretrain.PretrainConfig(
                output_dir=folder, data=books, tokenizer=str(work / "tokenizer"), preset=settings.preset, batch_size=32,
                micro_batch_size=32, learning_rate=2e-3, schedule="wsd", max_steps=settings.pretrain_steps, save_every=0,
                eval_batches=4, resume=False,
            )
        )  # fmt: skip
    return folder


def reference(texts: list[Text], start: Path, folder: Path, settings: StageSettings) -> dict[str, float]:
    """The pretrained model, trained on to write like reviewers: passages and sentences of eight folds."""
    if (folder / RESULT).exists():
        return _read(folder)
    model, tokens = load_causal_lm(start), load_tokenizer(start)
    batches = {}
    for name, folds in (("train", [*reviews.REWARD, *reviews.JUDGE]), ("eval", reviews.HELD_OUT)):
        shards = write_shards(_shuffled(texts, folds), tokens, folder / "shards" / name, overwrite=True)
        batches[name] = TokenBatches(shards, sequence_length=128, batch_size=32, micro_batch_size=32, seed=0)
    config = FitConfig(
        output_dir=folder, max_steps=settings.reference_steps, learning_rate=1e-3, eval_every=0, eval_batches=8, save_every=0
    )
    found = fit(
        LanguageModelling(model), batches["train"], config, make_accelerator(), tokenizer=tokens, eval_batches=batches["eval"]
    )
    return _write(folder, {"loss": found["eval/loss"]})


def classifier(texts: list[Text], folds: Iterable[int], start: Path, folder: Path, settings: StageSettings) -> dict[str, float]:
    """A scalar head on the reviewer's body, on passages and sentences of some folds; accuracy on the held-out fold."""
    if (folder / RESULT).exists():
        return _read(folder)
    torch.manual_seed(0)  # of the new head
    model, tokens = load_scalar_model(start), load_tokenizer(start)
    unwrap(model).config.pad_token_id = tokens.pad_token_id
    config = FitConfig(
        output_dir=folder, epochs=settings.classifier_epochs, batch_size=64, micro_batch_size=64, learning_rate=1e-3,
        eval_every=0, save_every=0,
    )  # fmt: skip
    train = _labelled(reviews.of_folds(texts, folds), tokens, settings)
    fit(Classification(model), train, config, make_accelerator(), tokenizer=tokens)
    held_out = reviews.of_folds(texts, reviews.HELD_OUT)
    found = {
        name: accuracy(model, _labelled([t for t in held_out if t.sentence == sentence], tokens, settings))
        for name, sentence in (("accuracy_sentences", True), ("accuracy_passages", False))
    }
    return _write(folder, found)


@torch.no_grad()
def accuracy(model: Any, batches: LabelledBatches) -> float:
    """The share of texts whose score has the sign of their label."""
    model.eval()
    parts: list[LabelledBatch] = [b for step in range(batches.steps_per_epoch) for b in batches.micro_batches(step, 0, 1)]
    right = sum(int(((scalar_scores(model, b.input_ids, b.attention_mask) > 0) == b.labels).sum()) for b in parts)
    return right / sum(len(b.labels) for b in parts)


def _labelled(texts: list[Text], tokens: Any, settings: StageSettings) -> LabelledBatches:
    rows = [{"text": text.text, "label": text.positive} for text in texts]
    examples, _ = labelled_examples(rows, tokens, settings.classifier_tokens)
    return LabelledBatches(examples, batch_size=64, micro_batch_size=64, seed=0, pad_id=tokens.pad_token_id)


def _shuffled(texts: list[Text], folds: Iterable[int]) -> list[str]:
    chosen = reviews.of_folds(texts, folds)
    return [chosen[i].text for i in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()]


def _write(folder: Path, found: dict[str, float]) -> dict[str, float]:
    (folder / RESULT).write_text(json.dumps(found) + "\n")
    return found


def _read(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / RESULT).read_text())
    return found
