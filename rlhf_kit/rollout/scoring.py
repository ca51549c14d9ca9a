"""One judge of answers: a reward model, a process reward model, or any Python callable `(prompts, responses) -> scores`.

All become one thing, a `Scorer`: `(rollout, rows) -> (B,) fp32`, or (B, R) where each token has a reward of its own
(`step_scorer`), of which the score is the sum. Scores that are missing or not finite stop the run
at once, by name: one NaN that reaches the optimiser costs the whole run. `judges.py` loads them, and makes one of several.
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
from rlhf_kit.data.stepwise import StepEnds, last_answer
from rlhf_kit.data.tokenizer import encode_chat
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores, step_logits
from rlhf_kit.objectives.process_reward import StepScore, score_so_far, token_rewards
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
    read = reader(policy_tokenizer, reward_tokenizer)

    @torch.no_grad()
    def score(rollout: Rollout, rows: list[Row]) -> Tensor:
        scores = torch.zeros(len(rollout.response_ids), device=rollout.response_ids.device)
        for index in by_length(rollout, micro_batch_size):
            ids, mask, _ = read(rollout.rows(index), [rows[i] for i in index.tolist()])
            scores[index] = scalar_scores(model, ids, mask)
        if not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).nonzero()[0])
            raise InputError(f"{name}: score of row {row}", float(scores[row]), "expected finite scores: check its weights")
        return scores

    return score


def step_scorer(
    model: nn.Module,
    policy_tokenizer: Any,
    reward_tokenizer: Any,
    *,
    micro_batch_size: int,
    how: StepScore = "min",
    each_token: bool = False,
    name: str = "process reward model",
) -> Scorer:
    """A scorer from a process reward model, read where the steps of the answer end (`data.stepwise.StepEnds`).

    Where the tokenizers agree, the very ids are scored; otherwise the conversation is encoded again as text.

    Args:
        how: what the steps add up to (`objectives.process_reward.score_so_far`).
        each_token: (B, R) instead of (B,), what each token adds to the score (`objectives.process_reward.token_rewards`).
    Raises:
        InputError: `each_token` where the tokenizers differ; (the scorer) a probability that is not finite.
    """
    read, step_ends = reader(policy_tokenizer, reward_tokenizer), StepEnds(reward_tokenizer)
    if each_token and not same_tokens(policy_tokenizer, reward_tokenizer):
        mend = "expected false: the reward model has another tokenizer, and its steps end at tokens that the policy did not write"
        raise InputError("--token_rewards", True, mend)

    @torch.no_grad()
    def score(rollout: Rollout, rows: list[Row]) -> Tensor:
        B, R = rollout.response_mask.shape
        scores = torch.zeros((B, R) if each_token else (B,), device=rollout.response_mask.device)
        for index in by_length(rollout, micro_batch_size):
            ids, mask, starts = read(rollout.rows(index), [rows[i] for i in index.tolist()])
            ends = torch.zeros_like(mask)
            for i, start in enumerate(starts):
                ends[i, [start + t for t in step_ends(ids[i, mask[i]].tolist()[start:])]] = True
            correct = torch.zeros(mask.shape, device=mask.device)
            correct[ends] = step_logits(model, ids, mask, ends).float().softmax(1)[:, 1]
            if each_token:
                for row, start, rewards in zip(index.tolist(), starts, token_rewards(correct, ends, how)):
                    answer = rewards[start : start + R]  # past its end an answer has no step
                    scores[row, : len(answer)] = answer
            else:
                scores[index] = score_so_far(correct, ends, how)[:, -1]
        if not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).nonzero()[0, 0])
            raise InputError(f"{name}: score of row {row}", "nan", "expected finite scores: check its weights")
        return scores

    return score


def same_tokens(policy_tokenizer: Any, reward_tokenizer: Any) -> bool:
    """Whether what one wrote can be read by the other as it is: one vocabulary and one chat template."""
    alike = policy_tokenizer.get_vocab() == reward_tokenizer.get_vocab()
    return bool(alike and policy_tokenizer.chat_template == reward_tokenizer.chat_template)


def reader(policy_tokenizer: Any, reward_tokenizer: Any) -> Callable[[Rollout, list[Row]], tuple[Tensor, Tensor, list[int]]]:
    """`(rollout, rows) -> (ids (B, T), mask (B, T), starts)`: prompts and answers as a reward model reads them.

    Padded on the right; the answer of row i begins at `starts[i]`. The very ids where the tokenizers agree, else encoded again.
    """
    same = same_tokens(policy_tokenizer, reward_tokenizer)

    def read(rollout: Rollout, rows: list[Row]) -> tuple[Tensor, Tensor, list[int]]:
        if same:
            joined = join(rollout)
            return joined.ids, joined.mask, rollout.query_mask.sum(1).tolist()
        texts = response_texts(rollout, policy_tokenizer)
        chats = [[*row["prompt"], {"role": "assistant", "content": text}] for row, text in zip(rows, texts)]
        found = [encode_chat(reward_tokenizer, chat) for chat in chats]
        return *pad([ids for ids, _ in found], device=rollout.response_ids.device), [last_answer(said) for _, said in found]

    return read


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
