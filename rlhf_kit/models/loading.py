"""Model directories in: causal LMs, scalar heads and step heads, whole or through LoRA, from a path or a hub name.

Any stage's `output_dir` is the next stage's `--model`. A directory that holds a LoRA adapter is loaded with its base
(which may be such a directory again) and merged, so the next stage starts from plain weights and may put a fresh adapter
on them. `transformers` makes up what a weights file lacks; here that is refused, but for a head that is meant to be new.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.utils import logging

import rlhf_kit.models.hf  # noqa: F401  registers our GPT with the Auto classes
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_head, step_head, unwrap

SCORE_BIAS = "score_bias.json"  # beside a scalar model's adapter, which has no config of the model
Head = Literal["language", "scalar", "steps"]  # next tokens; one score a text (a class a text); a class a token


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter (Hu et al. 2021): rank, alpha, and the modules it is put on (None: every Linear but the head)."""

    rank: int = 16
    alpha: int = 32
    target_modules: tuple[str, ...] | None = None


def load_causal_lm(path: str | Path, *, lora: Lora | None = None, dropout: float | None = None) -> Any:
    """A causal LM in fp32, from a stage's directory or a hub name; with a fresh trainable adapter where `lora` is given.

    Args:
        dropout: 0 switches every dropout off (RL: two forwards of the same tokens must agree); None leaves the config's.
    Raises:
        InputError: nothing loadable at `path`, or a model with a head of another kind.
    """
    if head_of(path) != "language":
        raise InputError("--model", str(path), "expected a language model: this one scores texts and cannot write any")
    model = _load(AutoModelForCausalLM, path, dropout=dropout)
    return model if lora is None else _add_lora(model, lora, TaskType.CAUSAL_LM)


def load_scalar_model(
    path: str | Path,
    *,
    lora: Lora | None = None,
    dropout: float | None = None,
    zero_head: bool = False,
    trained_as: str | None = None,
) -> Any:
    """A model with one scalar output, in fp32: a reward model's directory, or any LM's with a fresh head.

    A fresh head is drawn with std 1/sqrt(D+1) (Stiennon et al. 2020; Huang et al. 2024, detail 11), or is zero
    where `zero_head` (a critic that starts from a language model).

    Args:
        dropout: 0 switches every dropout off, None leaves the config's.
        trained_as: where given, the setting for which only a model that already has its head will do.
    Raises:
        InputError: nothing loadable at `path`, a head with more than one output or of another kind, or none where one is needed.
    """
    config, kind = _config(path), head_of(path)
    if kind == "steps":
        raise InputError("--model", str(path), "expected a language or a reward model: this one judges the steps of an answer")
    fresh = kind == "language"
    if fresh and trained_as is not None:
        raise InputError(trained_as, str(path), "expected a reward model: it has no scalar head, and a new one knows nothing")
    if not isinstance(bias := getattr(config, "score_bias", 0.0), int | float):
        raise InputError(f"score_bias of {path}", bias, "expected a number in its config.json")
    labels = len(config.id2label or {}) or 1
    if not fresh and labels != 1 and _base_of_adapter(path) is None:
        raise InputError("reward_model.num_labels", labels, f"expected 1: pass a model with a single scalar head, not {path}")
    model = _load(AutoModelForSequenceClassification, path, dropout=dropout, num_labels=1)
    head = scalar_head(model)
    if fresh:
        model.config.score_bias = 0.0
        _draw_head(head, 0.0 if zero_head else 1.0)
    return model if lora is None else _add_lora(model, lora, TaskType.SEQ_CLS)


def load_process_model(path: str | Path, *, lora: Lora | None = None, dropout: float | None = None) -> Any:
    """A process reward model, two outputs a token, in fp32: its own directory, or any LM's with a fresh head.

    A fresh head is drawn as that of `load_scalar_model`. `transformers` has no such head for a few architectures.

    Args:
        dropout: 0 switches every dropout off, None leaves the config's.
    Raises:
        InputError: nothing loadable at `path`, a head of another kind or with another number of outputs.
    """
    config, kind = _config(path), head_of(path)
    if kind == "scalar":
        raise InputError("--model", str(path), "expected a language or a process reward model: this one scores whole texts")
    labels = len(config.id2label or {})
    if kind == "steps" and labels != 2 and _base_of_adapter(path) is None:
        raise InputError("process_reward_model.num_labels", labels, f"expected 2, wrong and correct: not {path}")
    model = _load(AutoModelForTokenClassification, path, dropout=dropout, num_labels=2)
    if kind == "language":
        _draw_head(step_head(model), 1.0)
    return model if lora is None else _add_lora(model, lora, TaskType.TOKEN_CLS)


@torch.no_grad()
def _draw_head(head: Any, scale: float) -> None:
    head.weight.normal_(0.0, (head.in_features + 1) ** -0.5).mul_(scale)
    if head.bias is not None:
        head.bias.zero_()


def reload_weights(model: nn.Module, path: Path) -> None:
    """Put the weights saved at `path` back into `model`, in place (adapters alone, where it has some).

    They are read as any model is, because a file may hold them in parts, under other names (experts) or once for two (tied).

    Raises:
        InputError: the files lack a weight.
    """
    if isinstance(model, PeftModel):
        _fill_adapter(model, path)
    else:
        model.load_state_dict(_whole(type(model), path).state_dict())


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of `model` to 0: of modules, of numbers that modules hand to functions, of configs."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_dropout(module)


def _zero_dropout(holder: nn.Module | PreTrainedConfig) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, PreTrainedConfig):
            _zero_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(holder, name, 0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and load reports of `transformers`, which say nothing a run's log needs."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_fits(model: nn.Module, tokenizer: Any, *, longest: int = 0, field: str = "--max_length") -> None:
    """Refuse ids and positions that the model does not have, before a kernel reads past the end of a table.

    Args:
        longest: tokens of the longest sequence that will be fed.
        field: the setting that bounds it.
    Raises:
        InputError: a larger vocabulary than the embedding, or a sequence longer than the model's positions.
    """
    config = unwrap(model).config.get_text_config(decoder=True)
    rows = unwrap(model).get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        mend = f"expected at most the {rows} rows of the model's embedding: load the tokenizer that the model was trained with"
        raise InputError("tokens of the tokenizer", len(tokenizer), mend)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError("longest sequence in tokens", longest, f"expected at most {limit}, the model's positions: lower {field}")


def _config(path: str | Path) -> Any:
    base = _base_of_adapter(path)
    if base is not None:
        return _config(base)
    try:
        return AutoConfig.from_pretrained(str(path))
    except Exception as error:  # a wrong value in the file fails wherever it is first used
        if str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
            reason = "it is not here" if not Path(path).is_dir() else _first_line(error)
        else:
            reason = f"it is no directory here, and {_first_line(error)}" if not Path(path).is_dir() else _first_line(error)
        raise InputError("--model", str(path), f"expected a model directory or a hub name: {reason}") from error


def _base_of_adapter(path: str | Path) -> str | None:
    if (Path(path) / "adapter_config.json").is_file():
        return str(_adapter_config(path).base_model_name_or_path)
    return None


def _adapter_config(path: str | Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("--model", str(path), f"expected a sound adapter_config.json: {_first_line(error)}") from error


def head_of(path: str | Path) -> Head:
    """What the model at `path` ends in.

    Raises:
        InputError: nothing loadable there.
    """
    tasks: dict[Any, Head] = {TaskType.SEQ_CLS: "scalar", TaskType.TOKEN_CLS: "steps"}
    if _base_of_adapter(path) is not None and (kind := tasks.get(_adapter_config(path).task_type)) is not None:
        return kind
    names = _config(path).architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("--model", str(path), f"expected a list of names as architectures in its config.json, found {names!r}")
    if any("TokenClassification" in name for name in names):
        return "steps"
    return "scalar" if any("SequenceClassification" in name for name in names) else "language"


def _load(auto: Any, path: str | Path, *, dropout: float | None, **options: Any) -> Any:
    if dropout not in (None, 0.0):
        raise InputError("dropout", dropout, "expected 0 (off) or None (as the config has it)")
    base = _base_of_adapter(path)
    try:
        if base is None:
            new = ("score.", "classifier.") if head_of(path) == "language" else ()
            model = _whole(auto, path, new, **options)
        else:
            model = _merged(_load(auto, base, dropout=dropout, **options), path)
    except InputError:
        raise
    except Exception as error:  # a damaged file fails wherever it is first used
        raise InputError("--model", str(path), f"expected sound weights: {_first_line(error)}") from error
    if dropout == 0.0:
        disable_dropout(model)
    return model


def _whole(auto: Any, path: str | Path, new: tuple[str, ...] = (), **options: Any) -> Any:
    """`auto.from_pretrained` in fp32; what it made up, but for names that begin with one of `new`, is refused."""
    with quiet():
        model, found = auto.from_pretrained(str(path), dtype=torch.float32, output_loading_info=True, **options)
    _refuse_lacking(path, [name for name in found["missing_keys"] if not name.startswith(new)])
    return model


def _refuse_lacking(path: str | Path, names: list[str]) -> None:
    if names:
        mend = f"expected all weights, {len(names)} are missing ({min(names)}, ...): save the model again"
        raise InputError("--model", str(path), mend)


def _merged(model: Any, path: str | Path) -> Any:
    """`model` with the adapter at `path` added to its weights; an adapter put on it later names `path` as its base."""
    adapter = _adapter_config(path)
    adapter.task_type = None  # a language model's adapter may also start a critic
    with warnings.catch_warnings(action="ignore"):  # that tensors are missing, which the next line refuses
        adapted = PeftModel.from_pretrained(model, str(path), config=adapter)
    _fill_adapter(adapted, path)
    merged = adapted.merge_and_unload().requires_grad_(True)  # peft froze what it put the adapter on
    if (offset := Path(path) / SCORE_BIAS).is_file():
        merged.config.score_bias = float(json.loads(offset.read_text(encoding="utf-8")))
    merged.name_or_path = merged.config._name_or_path = str(path)
    return merged


def _fill_adapter(model: PeftModel, path: str | Path) -> None:
    """Put the adapter saved at `path` into that of `model`; peft itself lets what a file lacks stay as it was drawn."""
    loaded: Any = set_peft_model_state_dict(model, load_peft_weights(str(path), device="cpu"))
    _refuse_lacking(path, [name for name in loaded.missing_keys if "default" in name.split(".")])  # peft's name of the adapter


def _add_lora(model: Any, lora: Lora, task: TaskType) -> Any:
    targets = list(lora.target_modules) if lora.target_modules else "all-linear"
    # A token classifier's head peft would both train and put an adapter on.
    heads = ["score", "classifier"] if task == TaskType.TOKEN_CLS else None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type=task, exclude_modules=heads)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError("--lora_target_modules", targets, f"expected modules of the model: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fingerprint(path: str | Path) -> str:
    """The first 12 digits of a hash of a directory's weights, which tells checkpoints of one name apart; "" of a hub name."""
    files, whole = sorted(Path(path).glob("*.safetensors")), hashlib.sha256()
    for part in files:
        with part.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12] if files else ""
