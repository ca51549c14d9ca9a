"""How well a language model predicts text: loss, perplexity, and bits per byte.

Perplexity depends on the tokenizer, bits per byte does not: it is the size in bits to which the model would compress
each byte of raw text, and so it stands beside xz and an n-gram (`ngram.py`) on one scale.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.batches import IGNORE, LMBatch
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import hidden_states, output_head
from rlhf_kit.objectives.language_model import language_model_loss


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """The model in eval mode without gradients, put back as it was; yields the device of its weights."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes:
            module.training = mode


def bits_per_byte(loss_sum_nats: float, n_bytes: int) -> float:
    """The summed loss in nats as bits for each byte of the raw text it predicts."""
    if n_bytes <= 0:
        raise InputError("n_bytes", n_bytes, "expected a positive count: give at least one text that is not empty")
    return loss_sum_nats / math.log(2) / n_bytes


def evaluate_language_model(model: nn.Module, batches: Iterable[LMBatch]) -> dict[str, float]:
    """Mean loss over every trained label of `batches`, padded or packed.

    Returns:
        `loss` (nats per token), `perplexity`, `bits_per_token`, `tokens`.
    Raises:
        InputError: no label to predict in any batch.
    """
    loss_sum, tokens = 0.0, 0
    with evaluating(model) as device:
        weight, bias = output_head(model)
        for batch in batches:
            batch = batch.to(device)
            hidden = hidden_states(model, batch.input_ids, batch.attention_mask, batch.position_ids)
            loss, stats = language_model_loss(hidden, weight, batch.labels, bias, position_ids=batch.position_ids)
            loss_sum += float(loss)
            tokens += int(stats["tokens"])
    if tokens == 0:
        raise InputError("evaluation tokens", 0, "expected at least one label that is not ignored: check the evaluation data")
    loss_mean = loss_sum / tokens
    return {
        "loss": loss_mean,
        "perplexity": math.exp(min(loss_mean, 700.0)),  # an untrained model must not end the evaluation
        "bits_per_token": loss_mean / math.log(2),
        "tokens": tokens,
    }


def document_windows(ids: Sequence[int], sequence_length: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows over one document such that every token but the first is predicted exactly once.

    Yields `(input_ids, labels)` of at most `sequence_length` tokens. Each window after the first predicts `stride` new
    tokens (fewer at the end) with at least `sequence_length - stride` tokens of context before them.
    """
    end = 1  # tokens before `end` have been predicted; the first one is given
    for start in range(0, max(len(ids) - 1, 0), stride):
        window = list(ids[start : start + sequence_length])
        yield window, [IGNORE] * (end - start) + window[end - start :]
        end = start + len(window)
        if end == len(ids):
            return


def _pad(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def _window_batches(windows: Iterable[tuple[list[int], list[int]]], batch_size: int) -> Iterator[LMBatch]:
    windows = sorted(windows, key=lambda window: -len(window[0]))  # the longest first: it fails early, and pads little
    for i in range(0, len(windows), batch_size):
        ids, labels = [list(column) for column in zip(*windows[i : i + batch_size])]
        yield LMBatch(_pad(ids, 0), _pad(labels, IGNORE), _pad([[1] * len(row) for row in ids], 0).bool())


def encode_document(tokenizer: Any, text: str) -> list[int]:
    """The token ids of `text` behind the token that opens a document (bos, or eos where there is no bos).

    Raises:
        InputError: the tokenizer has neither, or `text` holds what it cannot write down (an unknown token).
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise InputError("tokenizer.bos_token", None, "expected a token that opens a document: set bos_token or eos_token")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    # In GPT-2's tokenizer the unknown token is also the end of text: there it stands for itself.
    if tokenizer.unk_token_id not in (None, first, tokenizer.eos_token_id) and tokenizer.unk_token_id in ids:
        mend = "bits per byte would count lost text as predicted: use a byte-level tokenizer"
        raise InputError("tokenizer.unk_token", tokenizer.unk_token, mend)
    return [first, *ids]


def evaluate_documents(
    model: nn.Module, tokenizer: Any, texts: Iterable[str], sequence_length: int, stride: int, *, batch_size: int = 8
) -> dict[str, float]:
    """Whole documents, longer than the context or not, by windows that predict every token once.

    The opening token is given, and the closing one is not counted: neither has bytes in the raw text.

    Args:
        sequence_length: tokens a window, at most the model's context.
        stride: new tokens a window, `1 <= stride < sequence_length`; smaller gives more context and takes longer.
    Returns:
        `loss`, `perplexity`, `bits_per_token`, `tokens`, `bytes` (UTF-8, of the raw texts), `bits_per_byte`, `documents`.
    Raises:
        InputError: a stride that leaves tokens out, no text, or a tokenizer that loses text.
    """
    if not 1 <= stride < sequence_length:
        raise InputError(
            "stride", stride, f"expected 1 to sequence_length - 1 = {sequence_length - 1}, so that no token is left out"
        )
    texts = [text for text in texts if text]
    documents = [encode_document(tokenizer, text) for text in texts]
    windows = (window for ids in documents for window in document_windows(ids, sequence_length, stride))
    result = evaluate_language_model(model, _window_batches(windows, batch_size))
    n_bytes = sum(len(text.encode()) for text in texts)
    density = bits_per_byte(result["loss"] * result["tokens"], n_bytes)
    return {**result, "bytes": n_bytes, "bits_per_byte": density, "documents": len(texts)}


def xz_bits_per_byte(text: str, prior: str = "") -> float:
    """Bits per byte of `text` under xz, the baseline that needs no training.

    Args:
        prior: text that xz may look back into first (64 MB at most), such as the training text; its own size is taken off.
    """
    size = len(text.encode())
    if size == 0:
        raise InputError("text", text, "expected text that is not empty")

    # Presets 6 and 9 differ in how far back they look alone: 8 or 64 MB, and as much memory.
    preset = 6 if size + len(prior.encode()) <= 8 * 2**20 else 9

    def compressed(data: str) -> int:
        return len(lzma.compress(data.encode(), preset=preset))

    return 8 * (compressed(prior + text) - (compressed(prior) if prior else 0)) / size
