"""Judging answers: a reward model's directory, or any Python callable `(prompts, responses) -> scores`.

Both become one thing, a `Scorer`: `(rollout, rows) -> (B,) fp32`. Scores that are missing or not finite stop the run
at once, by name: one NaN that reaches the optimiser costs the whole run.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlhf_kit.batches import Rollout
from rlhf_kit.data.tokenizer import encode_chat, load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.loading import check_fits, load_scalar_model
from rlhf_kit.rollout.experience import by_length, join

Row = dict[str, Any]  # a prompt record: {"prompt": [messages]}
RewardFunction = Callable[..., Sequence[float]]  # (prompts, responses, and the columns it names) -> scores
Scorer = Callable[[Rollout, list[Row]], Tensor]


def prompt_text(row: Row) -> str:
    """What reward callables see as the prompt: the last user message, or the plain text of an unchatty prompt."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    return str(next(m["content"] for m in reversed(prompt) if m["role"] == "user"))


def response_texts(rollout: Rollout, tokenizer: Any) -> list[str]:
    """The answers as text, without special tokens."""
    rows = [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask)]
    return list(tokenizer.batch_decode(rows, skip_special_tokens=True))


def function_scorer(function: RewardFunction, tokenizer: Any, *, name: str = "reward function") -> Scorer:
    """A scorer from a callable on text; parameters after the first two name columns of the prompt rows that it reads.

    Raises:
        InputError: (the scorer) a column that a row lacks; the callable raised, or did not return one finite number for each
            response.
    """
    asked = columns_asked(function)

    def score(rollout: Rollout, rows: list[Row]) -> Tensor:
        prompts, responses = [prompt_text(row) for row in rows], response_texts(rollout, tokenizer)
        for i, row in enumerate(rows):
            for column in asked:
                if column not in row:
                    mend = f"expected a column {column!r}: the function reads it, add it to the prompts of --data"
                    raise InputError(f"{name}: columns of row {i}", sorted(row), mend)

        def judge(part: slice) -> Any:
            return function(prompts[part], responses[part], **{c: [row[c] for row in rows[part]] for c in asked})

        try:
            returned = judge(slice(None))
        except Exception as error:
            raise _failure(judge, responses, name, error) from error
        if not isinstance(returned, Iterable):
            raise InputError(f"{name}: scores", returned, f"expected {len(responses)} numbers: return one for each response")
        scores = list(returned)
        if len(scores) != len(responses):
            raise InputError(f"{name}: number of scores", len(scores), f"expected {len(responses)}: return one for each response")
        for i, (response, value) in enumerate(zip(responses, scores)):
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise InputError(f"{name}: score of row {i}, {response[:60]!r}", value, "expected a finite number")
        return torch.tensor(scores, dtype=torch.float32, device=rollout.response_ids.device)

    return score


def columns_asked(function: RewardFunction) -> tuple[str, ...]:
    """The parameters of a reward callable after `prompts` and `responses` that have no default."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):  # some builtins tell nothing
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in named and p.default is p.empty)


def _failure(judge: Callable[[slice], Any], responses: list[str], name: str, error: Exception) -> InputError:
    """What a callable raised, where, and for which response: the first that it cannot judge alone either, if there is one."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    row = ""
    for i, response in enumerate(responses):
        try:
            judge(slice(i, i + 1))
        except Exception:
            row = f" for row {i}, the response {response[:60]!r},"
            break
    mend = f"raised{row} at {Path(at.filename).name} line {at.lineno}: mend the function; --resume true goes on from a checkpoint"
    return InputError(name, f"{type(error).__name__}: {error}", mend)


def model_scorer(model: nn.Module, policy_tokenizer: Any, reward_tokenizer: Any, *, micro_batch_size: int) -> Scorer:
    """A scorer from a scalar-head model, read at the last real token of [query | answer].

    Where the tokenizers agree, the very ids are scored; otherwise the conversation is encoded again as text.
    """
    same = policy_tokenizer.get_vocab() == reward_tokenizer.get_vocab() and (
        policy_tokenizer.chat_template == reward_tokenizer.chat_template
    )

    @torch.no_grad()
    def score(rollout: Rollout, rows: list[Row]) -> Tensor:
        scores = torch.zeros(len(rollout.response_ids), device=rollout.response_ids.device)
        texts = [] if same else response_texts(rollout, policy_tokenizer)
        for index in by_length(rollout, micro_batch_size):
            if same:
                joined = join(rollout.rows(index))
                ids, mask = joined.ids, joined.mask
            else:
                chats = [[*rows[i]["prompt"], {"role": "assistant", "content": texts[i]}] for i in index.tolist()]
                ids, mask = pad([encode_chat(reward_tokenizer, chat)[0] for chat in chats], device=scores.device)
            scores[index] = scalar_scores(model, ids, mask)
        if not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).nonzero()[0])
            raise InputError(f"reward model: score of row {row}", float(scores[row]), "expected finite scores: check its weights")
        return scores

    return score


def pad(rows: Sequence[Any], *, side: str = "right", device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """`(ids (B, T) long, mask (B, T) bool)` from rows of token ids, padded with 0 on `side`."""
    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(t, dtype=torch.bool) for t in tensors], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def load_function(spec: str, field: str = "--reward") -> RewardFunction:
    """The callable that `module:function` or `path/to/file.py:function` names."""
    target, _, name = spec.rpartition(":")
    if not target or not name:
        raise InputError(field, spec, "expected a reward model's directory, `module:function` or `file.py:function`")
    try:
        if target.endswith(".py"):
            path = Path(target)
            module_spec = importlib.util.spec_from_file_location(path.stem, path)
            if module_spec is None or module_spec.loader is None or not path.is_file():
                raise InputError(field, spec, f"expected a file at {path}")
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[path.stem] = module
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(target)
    except ImportError as error:
        raise InputError(field, spec, f"expected an importable module: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(field, spec, f"expected a callable named {name!r} in {target}")
    return function


def load_scorer(spec: str, policy_tokenizer: Any, *, micro_batch_size: int, device: Any) -> tuple[Scorer, nn.Module | None]:
    """`(scorer, the reward model or None)` from what `--reward` says."""
    if Path(spec).is_dir():
        model = load_scalar_model(spec, dropout=0.0, trained_as="--reward").to(device).eval()
        model.requires_grad_(False)
        tokenizer = load_tokenizer(spec, "--reward")
        check_fits(model, tokenizer)
        return model_scorer(model, policy_tokenizer, tokenizer, micro_batch_size=micro_batch_size), model
    return function_scorer(load_function(spec), policy_tokenizer, name=spec), None
