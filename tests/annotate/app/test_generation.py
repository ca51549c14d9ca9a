"""Two live answers at a time: what is shown of them while they are written."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from annotate.app.generation import Speakers, second_body
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM
from rlhf_kit.rollout.chat import Speaker

ASKED = [{"role": "user", "content": "go"}]


class Voice:
    """Says its pieces; before each it waits for `go`, where there is one."""

    def __init__(self, pieces: list[str], go: threading.Semaphore | None = None, error: Exception | None = None) -> None:
        self.pieces, self.go, self.error = pieces, go, error

    def reply(self, messages: Any, *, on_text: Any, **_: Any) -> None:
        for piece in self.pieces:
            if self.go is not None:
                assert self.go.acquire(timeout=20)
            on_text(piece)
        if self.error is not None:
            raise self.error


def speakers(first: Voice, second: Voice) -> Speakers:
    return Speakers(("fast", "slow"), (first, second))  # type: ignore[arg-type]


def test_the_fast_answer_waits_for_the_slow_one() -> None:
    go = threading.Semaphore(0)
    answers = speakers(Voice(["abcdefgh"]), Voice(["12", "34", "5"], go)).answers([0, 1], ASKED)
    seen = []
    for _ in range(2):  # the fast one was whole before the slow one began
        go.release()
        seen.append(next(answers))
    assert seen == [("ab", "12"), ("abcd", "1234")]
    go.release()
    seen = list(answers)
    assert seen[0][0] in ("abcde", "abcdefgh")  # once the slow one is done nothing holds the fast one back
    assert seen[-1] == ("abcdefgh", "12345")


def test_the_order_says_whose_answer_is_first() -> None:
    both = speakers(Voice(["one"]), Voice(["two"]))
    assert list(both.answers([0, 1], ASKED))[-1] == ("one", "two")
    assert list(both.answers([1, 0], ASKED))[-1] == ("two", "one")


def test_what_stops_one_model_reaches_whoever_waits_and_the_next_conversation_goes_on() -> None:
    broken = speakers(Voice(["a"], error=InputError("prompt", 900, "expected at most 512 tokens")), Voice(["b"]))
    with pytest.raises(InputError, match="512"):
        list(broken.answers([0, 1], ASKED))
    broken.voices[0].error = None  # type: ignore[attr-defined]
    assert list(broken.answers([0, 1], ASKED))[-1] == ("a", "b")


def test_a_model_against_itself_shares_its_weights_and_nothing_else() -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["go on, and on, and back again"] * 5, 300)
    shape = GPTConfig(vocab_size=len(tokenizer), d_model=32, n_layers=2, n_heads=4, max_seq_len=64, init_std=0.3)
    one = Speaker(GPTForCausalLM(shape).eval(), tokenizer)
    two = second_body(one)
    assert all(a is b for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert all(a is not b for a, b in zip(one.model.modules(), two.model.modules(), strict=True))
    first, second = list(Speakers(("a", "a"), (one, two), max_new_tokens=24, temperature=0.0).answers([0, 1], ASKED))[-1]
    assert first
    assert first == second == one.reply(ASKED, max_new_tokens=24, temperature=0.0, generator=torch.Generator())
