"""The GPT, its `transformers` shells, presets and conversion. Importing this registers it with the Auto classes."""

from rlhf_kit.models.gpt import GPT, GPTOptions
from rlhf_kit.models.hf import (
    GPTConfig,
    GPTForCausalLM,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
    register,
)

register()

__all__ = [
    "GPT",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "GPTOptions",
]
