"""What is done: shapes, random data and fresh models, the same for every contender.

Models are twins in size: our GPT (rotary, RMSNorm, SwiGLU of 8/3 d) and transformers' GPT-2 (learned positions,
LayerNorm, GELU of 4 d) have the same matrices but for a few thousand parameters. Dropout is 0 everywhere. Tokens are
random: no contender's time depends on what they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification

PAD, EOS = 0, 1


@dataclass(frozen=True)
class Size:
    """A model, and how much of each work is done with it."""

    vocab: int = 8192
    d_model: int = 384
    n_layers: int = 6
    n_heads: int = 6
    length: int = 256  # tokens a row of pretraining, and the longest example
    batch: int = 8  # rows an optimizer step
    micro_batch: int = 8
    steps: int = 8
    sequences: int = 256  # of SFT; pairs of reward modelling
    mean_length: int = 93
    prompt: int = 64
    answer: int = 64
    answers: int = 64  # prompts a rollout
    epochs: int = 4

    @property
    def model(self) -> str:
        """The model in words."""
        return f"L{self.n_layers} d{self.d_model} V{self.vocab}"


SMALL = Size(d_model=256, n_layers=4, n_heads=4, batch=16, micro_batch=16)
LARGE_VOCABULARY = replace(Size(), vocab=50257, steps=4)


def quick(size: Size) -> Size:
    """The same work in miniature: proves that a row runs, says nothing about speed."""
    tiny = {"vocab": 512, "d_model": 64, "n_layers": 2, "n_heads": 2, "length": 64, "batch": 4, "micro_batch": 4, "steps": 2}
    return replace(size, **tiny, sequences=16, mean_length=24, prompt=8, answer=8, answers=8, epochs=2)


def our_model(size: Size, *, scalar: bool = False) -> Any:
    """Our GPT of that size, or a scalar head on it."""
    torch.manual_seed(0)
    labels: dict[str, Any] = {"num_labels": 1} if scalar else {}
    config = GPTConfig(
        vocab_size=size.vocab,
        d_model=size.d_model,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        max_seq_len=4096,
        pad_token_id=PAD,
        **labels,
    )
    return (GPTForSequenceClassification if scalar else GPTForCausalLM)(config)


def gpt2(size: Size, *, scalar: bool = False, stop_after: int | None = None) -> Any:
    """transformers' GPT-2 of that size with SDPA; where `stop_after` is given, it samples EOS once in so many tokens."""
    torch.manual_seed(0)
    more: dict[str, Any] = {"attn_implementation": "sdpa"} | ({"num_labels": 1} if scalar else {})
    config = GPT2Config(
        vocab_size=size.vocab,
        n_embd=size.d_model,
        n_layer=size.n_layers,
        n_head=size.n_heads,
        n_positions=4096,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **more,
    )
    model = (GPT2ForSequenceClassification if scalar else GPT2LMHeadModel)(config)
    if stop_after is not None:
        # The last bias points along one direction, and so does EOS: its logit is log(V / stop_after) above the others.
        direction = torch.nn.functional.normalize(torch.randn(size.d_model), dim=0)
        with torch.no_grad():
            model.transformer.ln_f.bias.add_(10 * direction)
            model.transformer.wte.weight[EOS] += math.log(size.vocab / stop_after) / 10 * direction
    return model


def stop_tokens(size: Size, stop_after: int) -> tuple[int, ...]:
    """So many tokens that a new model, which knows no preference, draws one of them once in `stop_after` draws."""
    return tuple(range(EOS, EOS + size.vocab // stop_after))


def tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """One word a token: for trainers that want a tokenizer and are given token ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size.vocab)}, unk_token=f"t{size.vocab - 1}"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{EOS}", padding_side="left")
    return made


def token_rows(size: Size, seed: int = 0) -> list[Tensor]:
    """(batch, length) ids of each optimizer step."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, size.vocab, (size.batch, size.length), generator=generator) for _ in range(size.steps)]


def examples(size: Size, seed: int = 0) -> list[np.ndarray]:
    """Token ids of log-normal lengths, mean `mean_length`, at most `length`."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(0.0, 0.6, size.sequences)
    for _ in range(20):  # the cut at the longest takes from the mean, so scale again
        lengths = np.clip(lengths * size.mean_length / lengths.mean(), 4, size.length)
    return [rng.integers(2, size.vocab, int(n)).astype(np.int32) for n in lengths]


def prompts(size: Size, seed: int = 0) -> Tensor:
    """(answers, prompt) ids, all of one length."""
    return torch.randint(size.vocab // 2, size.vocab, (size.answers, size.prompt), generator=torch.Generator().manual_seed(seed))
