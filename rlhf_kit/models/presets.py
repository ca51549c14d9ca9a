"""Named model shapes, from one million parameters to GPT-2 XL.

`gpt-*` are the kit's own: rotary positions, RMSNorm, SwiGLU, no biases, tied head; they export as Llama. `gpt2-*` are
OpenAI's exact shapes and export as GPT-2. A preset is where to start: every field can be overridden.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_kit.errors import InputError
from rlhf_kit.models.gpt import GPTOptions
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM

_GPT2 = {
    "vocab_size": 50257,
    "max_seq_len": 1024,
    "position": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "bias": True,
    "init_std": 0.02,
}

# Parameters with the vocabulary given here, the tied head counted once.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt-1m": {"vocab_size": 2048, "d_model": 128, "n_layers": 4, "n_heads": 4, "max_seq_len": 512},  # 1,115,264
    "gpt-5m": {"vocab_size": 8192, "d_model": 256, "n_layers": 4, "n_heads": 4, "max_seq_len": 512},  # 5,310,720
    "gpt-14m": {"vocab_size": 8192, "d_model": 384, "n_layers": 6, "n_heads": 6, "max_seq_len": 1024},  # 13,767,552
    "gpt-30m": {"vocab_size": 8192, "d_model": 512, "n_layers": 8, "n_heads": 8, "max_seq_len": 1024},  # 29,893,120
    "gpt-110m": {"vocab_size": 32000, "d_model": 768, "n_layers": 12, "n_heads": 12, "max_seq_len": 2048},  # 109,529,856
    "gpt2-small": _GPT2 | {"d_model": 768, "n_layers": 12, "n_heads": 12},  # 124,439,808
    "gpt2-medium": _GPT2 | {"d_model": 1024, "n_layers": 24, "n_heads": 16},  # 354,823,168
    "gpt2-large": _GPT2 | {"d_model": 1280, "n_layers": 36, "n_heads": 20},  # 774,030,080
    "gpt2-xl": _GPT2 | {"d_model": 1600, "n_layers": 48, "n_heads": 25},  # 1,557,611,200
}


def preset(name: str, **overrides: Any) -> GPTConfig:
    """The config of a preset, with any field of `GPTConfig` overridden.

    Raises:
        InputError: an unknown preset or field, or a value that cannot be.
    """
    if name not in PRESETS:
        raise InputError("preset", name, f"expected one of {', '.join(PRESETS)}")
    for field in overrides:
        if not hasattr(GPTConfig, field) and field not in GPTOptions.__dataclass_fields__:
            raise InputError("model field", field, "expected a field of GPTConfig: see rlhf_kit/models/gpt.py")
    return GPTConfig(**(PRESETS[name] | overrides))


def parameter_count(config: GPTConfig) -> int:
    """Parameters of the language model, a tied head counted once; no memory is taken."""
    with torch.device("meta"):
        return GPTForCausalLM(config).num_parameters()
