"""SFT from the text to the gradient: records, chat template, tokens, labels, batch and loss on both sides.

TRL's side is an `SFTTrainer` as it is constructed, its prepared dataset, its dataloader and its `compute_loss` (chunked, its
default); ours are `sft_examples`, `ExampleBatches` and `LanguageModelling`.
"""

from __future__ import annotations

import logging
import tempfile
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks.parity.rows import Case, Found, gradients
from benchmarks.parity.trl_code import widened
from benchmarks.parity.world import language_model
from rlhf_kit.batches import IGNORE, LMBatch
from rlhf_kit.data.batching import ExampleBatches
from rlhf_kit.data.examples import sft_examples
from rlhf_kit.data.packing import Example
from rlhf_kit.data.tokenizer import encode_texts, train_tokenizer
from rlhf_kit.training.stages import LanguageModelling

LENGTH = 64
CHATS = (
    ("What is two and two?", "Four."),
    ("Name a colour of the sky.", "It is blue by day, and black by night."),
    ("Hello!", "Hello, and good day to you. What can I do?", "Tell me a word.", "Word."),
    ("Who sings?", "A bird."),
    ("Where do fish live?", "In water: in the sea, in rivers and in lakes."),
    ("Count to three.", "One, two, three.", "And back again?", "Three, two, one."),
)


@cache
def tokenizer() -> Any:
    """The kit's own, with its chat template."""
    return train_tokenizer([" ".join(turns) for turns in CHATS], 380)


def records(setting: str) -> list[dict[str, Any]]:
    """The data of a setting, in the format that both read."""
    chats = [[{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)] for turns in CHATS]
    if setting == "whole text":
        return [{"text": " ".join(turns)} for turns in CHATS]
    if setting == "completion-only":
        return [{"prompt": chat[:1], "completion": chat[1:2]} for chat in chats]
    return [{"messages": chat} for chat in chats]


def our_examples(setting: str) -> list[Example]:
    """Tokens and labels as the recipe makes them; a plain text is trained on whole and ends in an EOS, as in TRL."""
    made, rows = tokenizer(), records(setting)
    if setting == "whole text":
        texts = [np.asarray([*ids, made.eos_token_id], dtype=np.int32) for ids in encode_texts(made, [r["text"] for r in rows])]
        return [(ids, ids) for ids in texts]
    return sft_examples([{"messages": row.get("messages") or row["prompt"] + row["completion"]} for row in rows], made, LENGTH)[0]


def ours(setting: str, precision: str) -> Found:
    """Our stage on our one batch."""
    model, examples = language_model(precision=precision, vocab_size=len(tokenizer()), max_seq_len=512), our_examples(setting)
    packed = LENGTH if setting == "packed" else sum(len(ids) for ids, _ in examples) if setting == "padding-free" else None
    batches = ExampleBatches(examples, len(examples), len(examples), pad_id=tokenizer().pad_token_id, packed_length=packed)
    (batch,) = batches.micro_batches(0, 0, 1)
    stage = LanguageModelling(model)
    loss = stage(batch)[0] / stage.units(batch)
    return documents(batch) | {"loss": loss.detach(), "gradients": gradients(loss, model)}


def theirs(setting: str, precision: str) -> Found:
    """TRL's trainer on the one batch of its dataloader."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    model = language_model(precision=precision, vocab_size=len(tokenizer()), max_seq_len=512)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=len(CHATS), report_to=[],
            max_length=None if setting == "padding-free" else LENGTH, use_cpu=True, bf16=False,
            gradient_checkpointing=False, assistant_only_loss=setting not in ("whole text", "completion-only"),
            packing=setting == "packed", padding_free=setting == "padding-free", shuffle_dataset=False,
        )  # fmt: skip
        dataset = Dataset.from_list(records(setting))
        trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer())
        (batch,) = trainer.get_train_dataloader()
    model.train()
    fields = {name: batch[name] for name in ("input_ids", "labels", "attention_mask", "position_ids") if name in batch}
    with widened(precision):
        loss = trainer.compute_loss(model, dict(batch))
        return documents(LMBatch(**fields)) | {"loss": loss.detach(), "gradients": gradients(loss, model)}


def documents(batch: LMBatch) -> Found:
    """Ids and labels, (tokens,) each, of all documents, one behind the other, in an order that hangs on them alone.

    The first label of a document has nothing that predicts it, and is IGNORE here on both sides.
    """
    found = []
    for row in range(len(batch.input_ids)):
        ids, labels = batch.input_ids[row], batch.labels[row]
        if batch.position_ids is not None:
            starts = (batch.position_ids[row] == 0).nonzero()[:, 0].tolist()
        else:
            assert batch.attention_mask is not None
            ids, labels, starts = ids[batch.attention_mask[row].bool()], labels[batch.attention_mask[row].bool()], [0]
        for start, stop in zip(starts, [*starts[1:], len(ids)]):
            document = list(zip(ids[start:stop].tolist(), [IGNORE, *labels[start + 1 : stop].tolist()]))
            if any(label != IGNORE for _, label in document):  # else it is padding
                found.append(document)
    ids, labels = torch.tensor([pair for document in sorted(found) for pair in document]).unbind(1)
    return {"tokens": ids, "trained tokens": labels}


SETTINGS = ("assistant-only", "completion-only", "whole text", "packed", "padding-free")
ROUNDED = (5e-6, "fp32 through two layers and back, in another order of sums; some parameters' gradients nearly cancel")
LOOSE = {"fp64": {}, "fp32": {"gradients": ROUNDED}}
CASES = [
    Case(f"sft, {setting}", partial(ours, setting, precision), partial(theirs, setting, precision), precision, loose)
    for setting in SETTINGS
    for precision, loose in LOOSE.items()
]
