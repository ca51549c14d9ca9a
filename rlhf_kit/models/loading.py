"""Model directories in: causal LMs and scalar heads, whole or through LoRA, from a path or a hub name.

Any stage's `output_dir` is the next stage's `--model`. A directory that holds a LoRA adapter is loaded with its base
and merged, so the next stage starts from plain weights and may put a fresh adapter on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import rlhf_kit.models.hf  # noqa: F401  registers our GPT with the Auto classes
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_head, unwrap


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter (Hu et al. 2021): rank, alpha, and the modules it is put on (None: every Linear but the head)."""

    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] | None = None


def load_causal_lm(path: str | Path, *, lora: Lora | None = None, dropout: float | None = None) -> Any:
    """A causal LM in fp32, from a stage's directory or a hub name; with a fresh trainable adapter where `lora` is given.

    Args:
        dropout: overrides every dropout probability of the config (RL runs with 0: ALGORITHMS row 3 of any PPO list).
    Raises:
        InputError: nothing loadable at `path`.
    """
    model = _load(AutoModelForCausalLM, path, dropout=dropout)
    return model if lora is None else _add_lora(model, lora, TaskType.CAUSAL_LM)


def load_scalar_model(
    path: str | Path, *, lora: Lora | None = None, dropout: float | None = None, zero_head: bool = False
) -> Any:
    """A model with one scalar output, in fp32: a reward model's directory, or any LM's with a fresh head.

    A fresh head is drawn with std 1/sqrt(D+1) (Stiennon et al. 2020; Huang et al. 2024, detail 11), or is zero
    where `zero_head` (a critic that starts from a language model).

    Raises:
        InputError: nothing loadable at `path`, or a head with more than one output.
    """
    config = _config(path)
    fresh = not any("SequenceClassification" in a for a in (config.architectures or []))
    model = _load(AutoModelForSequenceClassification, path, dropout=dropout, num_labels=1)
    head = scalar_head(model)
    if fresh:
        model.config.score_bias = 0.0
        with torch.no_grad():
            head.weight.zero_() if zero_head else head.weight.normal_(0.0, (head.in_features + 1) ** -0.5)
            if head.bias is not None:
                head.bias.zero_()
    return model if lora is None else _add_lora(model, lora, TaskType.SEQ_CLS)


def reload_weights(model: nn.Module, path: Path) -> None:
    """Put the weights saved at `path` back into `model`, in place (adapters alone, where it has some)."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(path), device="cpu"))
    else:
        load_model(model, str(path / "model.safetensors"), strict=False)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of `model` to 0, modules and config alike."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _config(path: str | Path) -> Any:
    source = _base_of_adapter(path) or str(path)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError("--model", str(path), f"expected a model directory or a hub name: {_first_line(error)}") from error


def _base_of_adapter(path: str | Path) -> str | None:
    if (Path(path) / "adapter_config.json").is_file():
        return str(PeftConfig.from_pretrained(str(path)).base_model_name_or_path)
    return None


def _load(auto: Any, path: str | Path, *, dropout: float | None, **options: Any) -> Any:
    base = _base_of_adapter(path)
    config = _config(path)
    if options.get("num_labels") == 1 and any("SequenceClassification" in a for a in (config.architectures or [])):
        labels = len(config.id2label or {}) or 1
        if labels != 1:
            raise InputError("reward_model.num_labels", labels, "expected 1: pass a model with a single scalar head")
    try:
        model = auto.from_pretrained(base or str(path), dtype=torch.float32, **options)
        if base is not None:
            model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise InputError("--model", str(path), f"expected sound weights: {_first_line(error)}") from error
    if dropout == 0.0:
        disable_dropout(model)
    return model


def _add_lora(model: Any, lora: Lora, task: TaskType) -> Any:
    targets = list(lora.target_modules) if lora.target_modules else "all-linear"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type=task)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError("--lora_target_modules", targets, f"expected modules of the model: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
