"""Chat data from what people have: the dataset formats of TRL, and a few older ones, to one form.

Whatever comes in, what goes out is conversational: `messages`, or `prompt` / `chosen` / `rejected` as lists of
messages. Columns that are not needed stay in the record, so that a reward function can read them. A wrong row stops
the loading, named by file, line and column.

Read: `messages`; `prompt` + `completion`, also with TRL's `label`; `instruction` / `input` / `output` (Alpaca; also with
the `instances` of Self-Instruct); `question` + `answer`; `prompt` / `chosen` / `rejected`, or `chosen` / `rejected` that
share their beginning; `prompt` alone; Anthropic HH dialogues ("\\n\\nHuman: ... \\n\\nAssistant: ...") wherever a text
stands; OpenAssistant message trees. Texts may be plain strings or lists of messages. `examples.py` turns records into ids.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

from rlhf_kit.data.files import iter_rows
from rlhf_kit.errors import InputError

Record = dict[str, Any]
Message = dict[str, str]
ROLES = ("user", "assistant", "system")
Messages = list[Message]
logger = logging.getLogger(__name__)
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def load_sft(source: str | Path) -> list[Record]:
    """Demonstrations: `{"messages": [...], ...}`, the assistant speaking at least once in each.

    Preference data is read as its chosen answers, unpaired answers as those labelled true, a message tree as its
    best-ranked path. A warning counts the rows that hold no demonstration: a label of false, an empty chosen answer.

    Raises:
        InputError: unreadable source, unknown columns, a wrong value.
    """
    records: list[Record] = []
    rejected = 0
    for where, row in iter_rows(source):
        found = _demonstrations(where, row)
        records.extend(found)
        rejected += not found
    if rejected:
        logger.warning("%s: %d rows left out, whose answers are labelled false or empty", source, rejected)
        if not records:
            raise InputError(
                f"{source}: demonstrations", 0, f"expected one: the answers of all {rejected} rows are rejected ones"
            )
    return at_least_one(records, source)


def load_preferences(source: str | Path) -> list[Record]:
    """Comparisons: `{"prompt": [...], "chosen": [...], "rejected": [...], "margin": float where given, ...}`.

    `prompt` ends before the answers, `chosen` and `rejected` begin and end with an assistant message. An empty answer
    is allowed: people do reject (and, in HH, choose) silence.

    Raises:
        InputError: unreadable source, unknown columns, a wrong value, answers to different prompts.
    """
    return at_least_one([read_preference(where, row) for where, row in iter_rows(source)], source)


def load_prompts(source: str | Path) -> list[Record]:
    """Prompts to be answered: `{"prompt": [...], ...}`, from any of the formats; `messages` up to the last user turn.

    Raises:
        InputError: unreadable source, unknown columns, a wrong value.
    """
    return at_least_one([_prompt_record(where, row) for where, row in iter_rows(source)], source)


def at_least_one(records: list[Record], source: str | Path) -> list[Record]:
    """The records of a source that must not be empty."""
    if not records:
        raise InputError(f"{source}: rows", 0, "expected at least one: the file is empty")
    return records


def _demonstrations(where: str, row: Record) -> list[Record]:
    if "messages" in row:
        return [_demonstration(where, "messages", row, _messages(where, "messages", row["messages"]), ())]
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return [_demonstration(where, "prompt", row, _best_path(where, row["prompt"]), ("prompt",))]
    if "instances" in row and "instruction" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not all(isinstance(i, dict) and "output" in i for i in instances):
            raise InputError(f"{where}, column 'instances'", instances, "expected a list of {input, output}")
        shared = {k: v for k, v in row.items() if k != "instances"}
        return [record for instance in instances for record in _demonstrations(where, {**shared, **instance})]
    if "chosen" in row:
        pair = read_preference(where, row)
        if not all(message["content"].strip() for message in pair["prompt"] + pair["chosen"]):
            return []  # silence can be the better answer of two, and is nothing to imitate
        extras = {k: v for k, v in pair.items() if k not in ("prompt", "chosen", "rejected")}
        return [_demonstration(where, "chosen", extras, [*pair["prompt"], *pair["chosen"]], ())]
    for column in ("completion", "output", "answer"):
        if column in row and (prompt := read_prompt(where, row)) is not None:
            messages, used = prompt
            answer = _messages(where, column, said_in(row, column), role="assistant")
            if column == "completion" and row.get("label") is False:
                return []
            return [_demonstration(where, column, row, [*messages, *answer], (*used, column))]
    if isinstance(row.get("text"), str) and _is_hh(row["text"]):
        return [_demonstration(where, "text", row, _messages(where, "text", row["text"]), ("text",))]
    if isinstance(row.get("text"), str):
        mend = "expected a chat: pretrain on plain texts, or part them into the columns prompt and completion"
        raise InputError(f"{where}, column 'text'", row["text"], mend)
    raise unknown_columns(where, row, "messages; prompt + completion; instruction + output; question + answer")


def _demonstration(where: str, column: str, row: Record, messages: Messages, used: tuple[str, ...]) -> Record:
    if not any(m["role"] == "assistant" for m in messages):
        raise InputError(f"{where}, column {column!r}", messages, "expected an assistant message: there is nothing to learn")
    return {**{k: v for k, v in row.items() if k not in used}, "messages": messages}


def read_preference(where: str, row: Record) -> Record:
    """A comparison in any of its formats as prompt, chosen and rejected messages."""
    for column in ("chosen", "rejected"):
        if column not in row:
            raise unknown_columns(where, row, "chosen + rejected, with or without prompt")
    explicit = read_prompt(where, row)
    sides: dict[str, Messages]
    if explicit is None:
        prompt, sides = _common_prompt(where, row)
        used: tuple[str, ...] = ()
    else:
        prompt, used = explicit
        sides = {c: read_answer(where, c, said_in(row, c), prompt) for c in ("chosen", "rejected")}
    for column, answer in sides.items():
        if answer[-1]["role"] != "assistant":
            raise InputError(f"{where}, column {column!r}", answer[-1], "expected an assistant message at the end")
    record = {k: v for k, v in row.items() if k not in used}
    record |= {"prompt": prompt, **sides}
    margin = record.pop("margin", None)
    if margin is not None:
        if not _is_finite(margin):
            raise InputError(f"{where}, column 'margin'", margin, "expected a finite number, or no such column")
        record["margin"] = float(margin)
    return record


def _is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_answer(where: str, column: str, value: Any, prompt: Messages) -> Messages:
    """The messages after the prompt, where the prompt is known; `value` may repeat it."""
    answer = _messages(where, column, value, role="assistant", may_be_empty=True)
    if answer[0]["role"] != "assistant":
        if answer[: len(prompt)] != prompt or len(answer) <= len(prompt) or answer[len(prompt)]["role"] != "assistant":
            raise InputError(f"{where}, column {column!r}", answer[0], "expected an assistant message, or the prompt repeated")
        answer = answer[len(prompt) :]
    return answer


def _common_prompt(where: str, row: Record) -> tuple[Messages, dict[str, Messages]]:
    """The prompt that `chosen` and `rejected` share, and what follows it in each."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and not (_is_hh(chosen) and _is_hh(rejected)):
        # Plain texts, as TRL splits them: at the last space of their common beginning.
        length = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
        shared = chosen[:length]
        if shared in (chosen, rejected) or not shared[-1:].isspace():
            shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
        prompt = _messages(where, "chosen", shared, role="user") if shared.strip() else []
        answers = {
            column: _messages(where, column, row[column][len(shared) :], role="assistant", may_be_empty=True)
            for column in ("chosen", "rejected")
        }
    else:
        whole = {c: _messages(where, c, row[c], may_be_empty=True) for c in ("chosen", "rejected")}
        a, b = whole["chosen"], whole["rejected"]
        most = min(len(a), len(b)) - 1
        split = next((i for i in range(most) if a[i] != b[i]), most)
        prompt, answers = a[:split], {column: messages[split:] for column, messages in whole.items()}
        for column, answer in answers.items():
            if prompt and answer[0]["role"] != "assistant":
                raise InputError(f"{where}, column {column!r}", answer[0], "expected the answers to differ, not the prompts")
    if not prompt:
        raise InputError(f"{where}, column 'chosen'", chosen, "which shares no prompt with 'rejected': add a column 'prompt'")
    return prompt, answers


def _prompt_record(where: str, row: Record) -> Record:
    used: tuple[str, ...]
    if "messages" in row:
        messages, used = _messages(where, "messages", row["messages"]), ("messages",)
    elif isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        messages, used = _messages(where, "prompt", row["prompt"].get("text"), role="user"), ("prompt",)
    elif (prompt := read_prompt(where, row)) is not None:
        messages, used = prompt
    elif "chosen" in row:
        messages, used = read_preference(where, row)["prompt"], ()
    else:
        raise unknown_columns(where, row, "prompt; messages; instruction; question; chosen + rejected")
    while messages and messages[-1]["role"] == "assistant" and "messages" in used:
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise InputError(f"{where}, column {(used or ('chosen',))[0]!r}", messages[-1:], "expected a user message at the end")
    return {**{k: v for k, v in row.items() if k not in used}, "prompt": messages}


def read_prompt(where: str, row: Record) -> tuple[Messages, tuple[str, ...]] | None:
    """The prompt of a row that has one in columns of its own, and those columns."""
    if "prompt" in row:
        return _messages(where, "prompt", row["prompt"], role="user"), ("prompt",)
    if "instruction" in row:
        messages = _messages(where, "instruction", row["instruction"], role="user")
        more = row.get("input") or ""
        if not isinstance(more, str):
            raise InputError(f"{where}, column 'input'", more, "expected a text or nothing")
        if more.strip():
            messages[-1]["content"] += "\n\n" + more
        return messages, ("instruction", "input")
    if "question" in row:
        return _messages(where, "question", row["question"], role="user"), ("question",)
    return None


def _messages(where: str, column: str, value: Any, role: str | None = None, may_be_empty: bool = False) -> Messages:
    """A checked list of messages from a list of them, an HH dialogue, or a plain text said by `role`."""
    field = f"{where}, column {column!r}"
    if isinstance(value, str):
        # Answers in HH do begin with the words "Human:"; only a blank line before makes them a dialogue.
        if _is_hh(value) and (role != "assistant" or value.startswith("\n\n")):
            value = parse_hh(value, drop_cue=role == "user")
        elif role is not None:
            value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        expected = "a list of messages" if role is None else "a text or a list of messages"
        raise InputError(field, value, f"expected {expected}, not empty: mend or remove the row")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"{field}, message {number}", message, 'expected {"role": ..., "content": ...}')
        if message["role"] not in ROLES:
            raise InputError(f"{field}, message {number}: role", message["role"], f"expected one of {', '.join(ROLES)}")
        content = message["content"]
        empty_ok = may_be_empty and message["role"] == "assistant"
        if not isinstance(content, str) or not (content.strip() or empty_ok):
            raise InputError(
                f"{field}, message {number}: content", content, "expected a text that is not empty: mend or remove it"
            )
        messages.append({"role": message["role"], "content": content})
    return messages


def said_in(row: Record, column: str) -> Any:
    """An answer; one to an HH dialogue without the space that follows `Assistant:`."""
    value, prompt = row[column], row.get("prompt")
    return value.strip() if isinstance(value, str) and isinstance(prompt, str) and _is_hh(prompt) else value


def _is_hh(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def parse_hh(text: str, drop_cue: bool = True) -> Messages:
    """An Anthropic HH dialogue (Bai et al. 2022) as messages, each stripped.

    Args:
        text: turns that open with a blank line and `Human:` or `Assistant:`.
        drop_cue: leave out a last `Assistant:` with nothing behind it, which only asks for an answer.
    """
    parts = _HH_TURN.split(text)[1:]
    messages = [{"role": _HH_ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if drop_cue and messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages


def _best_path(where: str, root: Record) -> Messages:
    """The conversation down an OpenAssistant tree (Köpf et al. 2023): at each step the best-ranked reply.

    Rank 0 is the best; unranked replies come last, in their order. A path ends with an assistant message.
    """
    roles = {"prompter": "user", "assistant": "assistant"}
    path, node = [], root
    while True:
        if not isinstance(node, dict) or node.get("role") not in tuple(roles):
            raise InputError(f"{where}, column 'prompt'", node, "expected an OpenAssistant message with a role, text and replies")
        path.append({"role": roles[node["role"]], "content": node.get("text")})
        replies = node.get("replies") or []
        dicts = isinstance(replies, list) and all(isinstance(reply, dict) for reply in replies)
        if not dicts or not all(_is_finite(reply.get("rank") or 0) for reply in replies):
            raise InputError(f"{where}, column 'prompt': replies", replies, "expected messages whose rank is a number or null")
        if not replies:
            break
        node = min(replies, key=lambda reply: math.inf if reply.get("rank") is None else reply["rank"])
    while path and path[-1]["role"] != "assistant":
        path.pop()
    return _messages(where, "prompt", path)


def unknown_columns(where: str, row: Record, expected: str) -> InputError:
    """The error of a row whose columns are of no format."""
    return InputError(f"{where}: columns", sorted(row), f"expected {expected}")
