"""Published human preference labels, each in the form in which it was released, one reader a form.

A reader takes rows (dicts, as `read_rows` gives them) and yields records as `annotate.imports` describes them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf_kit.errors import InputError

Row = dict[str, Any]
Record = dict[str, Any]

TULU_STRENGTHS = {
    "a-is-better": 2,
    "a-is-slightly-better": 1,
    "tie": 0,
    "b-is-slightly-better": -1,
    "b-is-better": -2,
}


def read_rows(path: Path | str) -> Iterator[Row]:
    """The rows of a JSONL file, gzipped or not.

    Raises:
        InputError: no such file, or a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("path", str(path), "expected a JSONL file, gzipped or not")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path.name} line {number}", line.strip(), "expected a JSON object")
            yield row


def _user(*parts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]


def _value(row: Row, field: str, meanings: dict[Any, int]) -> int:
    found = row[field]
    if found not in meanings:
        raise InputError(f"{row.get('id')}: {field}", found, f"expected one of {list(meanings)}")
    return meanings[found]


def read_pandalm(rows: Iterable[Row]) -> Iterator[Record]:
    """PandaLM's test set (Wang et al. 2023): two answers, and three people's 1 (first), 2 (second) or 0 (tie)."""
    for row in rows:
        models = row["models"].split("_")
        labels = [_value({"id": row["id"], "label": label}, "label", {0: 0, 1: 1, 2: -1}) for label in row["labels"]]
        yield {
            "id": row["id"],
            "prompt": _user(row["instruction"], row["input"]),
            # A few answers of one word were released as a JSON number or truth value.
            "responses": [{"text": str(row[f"output_{i}"]), "model": model} for i, model in enumerate(models, 1)],
            "labels": [{"annotator": f"annotator {i}", "strength": strength} for i, strength in enumerate(labels, 1)],
        }


def read_tulu_evaluation(rows: Iterable[Row]) -> Iterator[Record]:
    """Tulu 1's expert evaluation (Wang et al. 2023, "How far can camels go?"): five steps from "a is better" to "b is better".

    Rows of the same two answers are one record, whichever was a; an expert who saw the same two again is taken at the later word.
    """
    records: dict[tuple[str, ...], Record] = {}
    for row in rows:
        sides = [{"text": row[f"output_{side}"], "model": row[f"model_{side}"]} for side in "ab"]
        responses = sorted(sides, key=lambda side: side["model"])
        key = (row["instance_id"], *(response["model"] for response in responses))
        record = records.setdefault(
            key, {"id": "/".join(key), "prompt": _user(row["prompt"].strip()), "responses": responses, "labels": []}
        )
        if record["responses"] != responses:
            raise InputError(row["id"], row["instance_id"], "expected the same two answers in all rows of an instance")
        a = responses.index(sides[0])
        strength = _value(row, "preference", TULU_STRENGTHS) * (1 if a == 0 else -1)
        record["labels"] = [label for label in record["labels"] if label["annotator"] != row["evaluator"]]
        record["labels"].append({"annotator": row["evaluator"], "strength": strength, "left": a})
    yield from records.values()


def read_fine_grained_qa(rows: Iterable[Row]) -> Iterator[Record]:
    """Long answers to questions (Wu et al. 2023, fine-grained RLHF): four outputs of one model, all six pairs judged once.

    The passages that an answer may draw on are part of the prompt. The outputs differ by their place alone, `output 1` and so on.
    """
    for row in rows:
        passages = "\n".join(" ".join(passage) for passage in row["passages"])
        labels = [_value({"id": row["id"], "preference": p}, "preference", {0: 0, 1: 1, 2: -1}) for p in row["preference"]]
        yield {
            "id": row["id"],
            "prompt": _user(row["question"], passages),
            "responses": [{"text": text, "model": f"output {i}"} for i, text in enumerate(row["outputs"], 1)],
            "labels": [
                {"annotator": "the dataset's", "strength": strength, "pair": pair}
                for pair, strength in zip(row["pair_order"], labels)
            ],
        }


def read_ranked_replies(rows: Iterable[Row]) -> Iterator[Record]:
    """OpenAssistant's replies to a conversation, in the order that volunteers' rankings were merged to (Kopf et al. 2023).

    The file's order is the ranking; who wrote a reply, people or a model (`synthetic`), stands for its model.
    """
    for row in rows:
        replies = [
            {"text": text, "model": "model" if synthetic else "people"}
            for text, synthetic in zip(row["ranked_replies"], row["synthetic"])
        ]
        order = sorted(range(len(replies)), key=lambda i: replies[i]["text"])  # so that a place gives nothing away
        yield {
            "id": row["id"],
            "prompt": row["messages"],
            "responses": [replies[i] for i in order],
            "labels": [{"annotator": "volunteers", "ranking": [order.index(rank) for rank in range(len(order))]}],
        }


READERS: dict[str, Callable[[Iterable[Row]], Iterator[Record]]] = {
    "pandalm_3annotators": read_pandalm,
    "tulu1_human_eval": read_tulu_evaluation,
    "fgrlhf_qa": read_fine_grained_qa,
    "oasst_ranked": read_ranked_replies,
}
