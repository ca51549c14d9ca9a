"""Rewards that check answers, and the columns that a reward callable may ask for."""

from fractions import Fraction

import pytest
import torch

from rlhf_kit.batches import Rollout
from rlhf_kit.errors import InputError
from rlhf_kit.rewards import final_number, gsm8k_correct
from rlhf_kit.rollout.scoring import columns_asked, function_scorer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = <<2+3=5>>5 eggs\n#### 5", 5),
        ("#### 1,200", 1200),
        ("so it is $1,200.00.", 1200),
        ("The answer is 18.", 18),
        ("A: 18\n", 18),
        ("first \\boxed{3}, no: \\boxed{-4}", -4),
        ("it falls by \u22127 degrees", -7),
        ("16 - 3", 3),
        ("pages 5-9", 9),
        ("he owes -$5", -5),
        ("half of it, 1/2", Fraction(1, 2)),
        ("0.50", Fraction(1, 2)),
        ("25% of them", 25),
        ("#### nothing, though 7 were there", 7),
        ("a division by 1/0", None),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_number_that_a_worked_answer_ends_with(text, number):
    assert final_number(text) == number


def test_a_response_is_right_if_it_ends_with_the_rows_number():
    answers = ["two and two\n#### 4", "#### 1,000", "#### -3", "#### 0.5"]
    assert gsm8k_correct([""] * 4, ["I say 4.00.", "999", "so \\boxed{-3}", "1/2 of it"], answers) == [1.0, 0.0, 1.0, 1.0]
    with pytest.raises(InputError, match="column 'answer' is 'no idea', expected a worked answer that ends with a number"):
        gsm8k_correct([""], ["4"], ["no idea"])


class Numbers:
    """Decodes ids as themselves."""

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row)) for row in rows]


def rollout(*answers):
    ids = torch.tensor(answers)
    whole = torch.ones_like(ids, dtype=torch.bool)
    return Rollout(ids, whole, ids, whole, whole[:, 0], torch.arange(len(ids)), torch.zeros(ids.shape))


def test_a_callable_gets_the_columns_that_it_names():
    score = function_scorer(gsm8k_correct, Numbers())
    rows = [{"prompt": "?", "answer": "#### 7"}, {"prompt": "?", "answer": "#### 8"}]
    assert score(rollout([5, 7], [5, 7]), rows).tolist() == [1.0, 0.0]


def test_a_column_that_a_row_lacks_is_named():
    score = function_scorer(gsm8k_correct, Numbers(), name="rlhf_kit.rewards:gsm8k_correct")
    with pytest.raises(InputError, match=r"columns of row 1 is .*prompt.*, expected a column 'answer'"):
        score(rollout([5, 7], [5, 7]), [{"prompt": "?", "answer": "#### 7"}, {"prompt": "?"}])


def test_a_row_that_cannot_be_checked_is_named_with_its_response():
    score = function_scorer(gsm8k_correct, Numbers())
    with pytest.raises(InputError, match=r"for row 1, the response '6 9',"):
        score(rollout([5, 7], [6, 9]), [{"prompt": "?", "answer": "#### 7"}, {"prompt": "?", "answer": "none"}])


def test_parameters_with_a_default_and_catch_alls_ask_for_nothing():
    assert columns_asked(lambda prompts, responses, answer, scale=2.0, **rest: []) == ("answer",)
    assert columns_asked(lambda prompts, responses: []) == ()
