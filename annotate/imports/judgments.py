"""Records of labels as judgments of pairs, which is what quality is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from annotate.quality.labels import Judgment
from annotate.quality.ranking import ranking_pairs


def pair_judgments(records: Iterable[dict[str, Any]]) -> Iterator[Judgment]:
    """A judgment for each label of two answers, and one for each pair of a ranking; `group` is the record's id.

    Args:
        records: as `annotate.imports` describes them. The pair (i, j) is written with i < j whichever way it was judged.
    """
    for record in records:
        answers = record["responses"]
        words = [len(answer["text"].split()) for answer in answers]
        prompt_words = sum(len(message["content"].split()) for message in record["prompt"])
        for label in record["labels"]:
            pairs = ranking_pairs(label["ranking"]) if "ranking" in label else [tuple(label.get("pair", (0, 1)))]
            strength = 1 if "ranking" in label else label["strength"]
            for first, second in pairs:
                i, j = min(first, second), max(first, second)
                yield Judgment(
                    item=f"{record['id']}/{i}-{j}",
                    annotator=label["annotator"],
                    strength=strength if first < second else -strength,
                    first_on_left=label["left"] == i if "left" in label else None,
                    words=(words[i], words[j]),
                    prompt_words=prompt_words,
                    models=(answers[i]["model"], answers[j]["model"]),
                    group=record["id"],
                )
