"""The one exception that means: the input is wrong, and here is how to mend it.

Recipes print its message as a single line and leave with status 2; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class InputError(ValueError):
    """Wrong input from the user: a file, a column, a config value, a model that does not fit.

    The message names the field, the value it got, and the mend:
    `reward_model.num_labels is 2, expected 1: pass a model with a single scalar head`.

    Args:
        field: what is wrong, as the user knows it (`sft.jsonl line 12, column 'messages'`, `--learning_rate`).
        value: what was found there; shown with `repr`, shortened in the middle to 200 characters (a path should stay whole).
        mend: what was expected and what to do about it.
    """

    def __init__(self, field: str, value: object, mend: str) -> None:
        self.field, self.value, self.mend = field, value, mend
        shown = repr(value)
        super().__init__(f"{field} is {shown if len(shown) <= 200 else shown[:98] + '...' + shown[-99:]}, {mend}")
