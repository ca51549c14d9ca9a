"""Judging answers: a reward model's directory, any Python callable `(prompts, responses) -> scores`, or several of them.

All become one thing, a `Scorer`: `(rollout, rows) -> (B,) fp32`. Scores that are missing or not finite stop the run
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
from dataclasses import dataclass
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
from rlhf_kit.objectives.ensemble import VARIANCE_COEF, Combination, combine, score_spread
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


def model_scorer(
    model: nn.Module, policy_tokenizer: Any, reward_tokenizer: Any, *, micro_batch_size: int, name: str = "reward model"
) -> Scorer:
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
            raise InputError(f"{name}: score of row {row}", float(scores[row]), "expected finite scores: check its weights")
        return scores

    return score


@dataclass(frozen=True)
class Ensemble:
    """Several judges as one `Scorer`, combined as `rlhf_kit.objectives.ensemble.combine` says."""

    members: Sequence[Scorer]
    how: Combination = "mean"
    variance_coef: float = VARIANCE_COEF

    def __call__(self, rollout: Rollout, rows: list[Row]) -> Tensor:
        """(B,) combined scores."""
        return self.with_spread(rollout, rows)[0]

    def with_spread(self, rollout: Rollout, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Combined scores, and how far the members are apart, (B,) each."""
        scores = self.member_scores(rollout, rows)
        return combine(scores, self.how, variance_coef=self.variance_coef), score_spread(scores)

    def member_scores(self, rollout: Rollout, rows: list[Row]) -> Tensor:
        """(M, B): what each member says of each answer. Where they part, people's judgement would teach them most."""
        return torch.stack([score(rollout, rows) for score in self.members])


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


def reward_members(spec: str) -> list[str]:
    """What stands between the commas of `--reward`: directories and callables.

    Raises:
        InputError: an empty name, or the same one twice.
    """
    members = [spec] if Path(spec).is_dir() else [member.strip() for member in spec.split(",")]
    if len(members) > 1 and "" in members:
        raise InputError("--reward", spec, f"expected a name around every comma: number {members.index('') + 1} is empty")
    twice = [member for member in members if members.count(member) > 1]
    if twice:
        raise InputError("--reward", spec, f"expected different ones: {twice[0]} stands there twice, and agrees with itself")
    return members


def load_scorer(
    spec: str,
    policy_tokenizer: Any,
    *,
    micro_batch_size: int,
    device: Any,
    ensemble: Combination = "mean",
    variance_coef: float = VARIANCE_COEF,
) -> tuple[Scorer, nn.Module | None]:
    """`(scorer, the first reward model or None)` from what `--reward` says: one judge, or an `Ensemble` of several.

    Raises:
        InputError: a member that is empty, named twice, or neither a reward model nor a callable.
    """

    def load(member: str) -> tuple[Scorer, nn.Module | None]:
        if not Path(member).is_dir():
            return function_scorer(load_function(member), policy_tokenizer, name=member), None
        model = load_scalar_model(member, dropout=0.0, trained_as="--reward").to(device).eval()
        model.requires_grad_(False)
        tokenizer = load_tokenizer(member, "--reward")
        check_fits(model, tokenizer)
        name, size = f"reward model {member}", micro_batch_size
        return model_scorer(model, policy_tokenizer, tokenizer, micro_batch_size=size, name=name), model

    scorers, models = zip(*map(load, reward_members(spec)))
    scorer = scorers[0] if len(scorers) == 1 else Ensemble(scorers, ensemble, variance_coef)
    return scorer, next((model for model in models if model is not None), None)
