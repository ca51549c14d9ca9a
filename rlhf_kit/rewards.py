"""Rewards that check the answer instead of judging it: RLVR, verifiable rewards (Lambert et al. 2024).

python recipes/ppo.py --algorithm rloo --group_size 4 --data gsm8k.jsonl --reward rlhf_kit.rewards:gsm8k_correct
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlhf_kit.errors import InputError

# A minus behind a number takes away: it is no sign.
_NUMBER = re.compile(r"(?:(?<![\d)])(?<![\d)] )[-\u2212])?\s*\$?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
_STATED = (re.compile(r"####\s*(.*)"), re.compile(r"\\boxed\{([^{}]*)\}"), re.compile(r"(?m)^A:\s*(.*)$"))


def final_number(text: str) -> Fraction | None:
    """The number that a worked answer ends with, exactly; None where it has none.

    What stands behind `####` or `A:` or in `\\boxed{}` counts, the last of them; else the last number of all.
    Commas, currency and percent signs and a final full stop are no part of it: `$1,200.00.` is 1200.
    """
    for stated in _STATED:
        found = stated.findall(text)
        if found and _NUMBER.search(found[-1]):
            return _exact(_NUMBER.findall(found[-1])[0])
    numbers = _NUMBER.findall(text)
    return _exact(numbers[-1]) if numbers else None


def _exact(number: str) -> Fraction | None:
    plain = re.sub(r"[\s,$]", "", number.replace("\u2212", "-"))
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        top, _, bottom = plain.partition("/")
        return Fraction(top) / Fraction(bottom) if bottom.strip("0") else None


def gsm8k_correct(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """1 where a response ends with the number that the row's `answer` ends with (Cobbe et al. 2021, GSM8K), else 0.

    Raises:
        InputError: an `answer` without a number.
    """
    scores = []
    for response, worked in zip(responses, answer, strict=True):
        wanted = final_number(str(worked))
        if wanted is None:
            raise InputError(
                "column 'answer'", str(worked)[:60], "expected a worked answer that ends with a number: mend the row"
            )
        scores.append(float(final_number(response) == wanted))
    return scores
