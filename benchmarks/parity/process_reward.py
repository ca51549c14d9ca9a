"""The process reward model: `ProcessRewardModelling` beside TRL's PRMTrainer, its collator and its metric.

Tokens and labels are given: where a step's label stands is a choice of the text's encoding (docs/parity.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import GPT2Config, GPT2ForTokenClassification, LlamaConfig, LlamaForTokenClassification

from benchmarks.parity import world
from benchmarks.parity.rows import Case, Found, gradients
from benchmarks.parity.sft import tokenizer
from benchmarks.parity.trl_code import bare, widened
from rlhf_kit.batches import IGNORE
from rlhf_kit.data.batching import ExampleBatches
from rlhf_kit.models.hf import GPTConfig, GPTForTokenClassification
from rlhf_kit.training.stages import ProcessRewardModelling

# The lengths of the steps of each answer, and whether each is correct.
STEPS = (((3, 2, 4), (1, 1, 0)), ((2, 2), (1, 1)), ((5,), (0,)), ((1, 3, 2, 2), (1, 0, 0, 0)), ((4, 3), (0, 1)))
PROMPTS = (2, 4, 1, 3, 5)


def rows() -> list[dict[str, list[int]]]:
    """Prompts and answers in tokens, a label at the last token of each step."""
    made = []
    for i, (prompt, (lengths, labels)) in enumerate(zip(PROMPTS, STEPS)):
        placed = [IGNORE] * prompt
        for length, label in zip(lengths, labels):
            placed += [IGNORE] * (length - 1) + [label]
        made.append({"input_ids": world.tokens(len(placed), i), "labels": placed})
    return made


def model(kind: str, precision: str) -> Any:
    """A model with two outputs a token, its biases from the formula as well."""
    shape: dict[str, Any] = {"vocab_size": world.VOCAB, "num_labels": 2, "pad_token_id": world.PAD}
    made: Any
    if kind == "gpt2":
        off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout"), 0.0)
        made = GPT2ForTokenClassification(GPT2Config(**shape, n_positions=32, n_embd=16, n_layer=2, n_head=2, **off))
    elif kind == "llama":
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = LlamaForTokenClassification(LlamaConfig(**shape, **sizes, max_position_embeddings=32))
        made.dropout.p = 0.0  # as PRMTrainer does
    else:
        made = GPTForTokenClassification(GPTConfig(**(world.SHAPE | {"num_labels": 2})))
    return world.filled(made.to(world.DTYPES[precision]), 2.0)


def ours(kind: str, precision: str) -> Found:
    """Our stage on our batch."""
    made = model(kind, precision)
    examples = [tuple(np.asarray(row[name], dtype=np.int32) for name in ("input_ids", "labels")) for row in rows()]
    (batch,) = ExampleBatches(examples, len(examples), len(examples), 0, world.PAD).micro_batches(0, 0, 1)  # type: ignore[arg-type]
    stage = ProcessRewardModelling(made)
    total, stats = stage(batch)
    loss = total / stage.units(batch)
    return {"loss": loss.detach(), "gradients": gradients(loss, made), "accuracy": float(stats["accuracy"] / stage.units(batch))}


def theirs(kind: str, precision: str) -> Found:
    """TRL's trainer on its collator's batch."""
    from transformers import DataCollatorForTokenClassification, EvalPrediction
    from trl.experimental.prm.prm_trainer import PRMTrainer, compute_accuracy

    made = model(kind, precision)
    settings = {"label_smoother": None, "compute_loss_func": None, "model_accepts_loss_kwargs": False}
    trainer = bare(PRMTrainer, made, args=SimpleNamespace(average_tokens_across_devices=False), **settings)
    batch = DataCollatorForTokenClassification(tokenizer())(rows())
    loss, outputs = trainer.compute_loss(made, batch, return_outputs=True)
    accuracy = compute_accuracy(EvalPrediction(outputs.logits.detach().numpy(), batch["labels"].numpy()))["accuracy"]
    return {"loss": loss.detach(), "gradients": gradients(loss, made), "accuracy": accuracy}


def side(run: Callable[[str, str], Found], kind: str, precision: str) -> Found:
    """One side; both cast logits to fp32 whatever the weights are, so that both are widened for fp64."""
    with widened(precision):
        return run(kind, precision)


ROUNDED = (5e-6, "the gradient of one norm is a hundredth of the others': it nearly cancels between the steps")
CASES = [
    Case(
        "process reward" + ("" if kind == "ours" else f", {kind}"),
        partial(side, ours, kind, precision),
        partial(side, theirs, kind, precision),
        precision,
        {"gradients": ROUNDED} if precision == "fp32" else {},
    )
    for kind, precision in (("ours", "fp64"), ("ours", "fp32"), ("gpt2", "fp64"), ("llama", "fp64"))
]
