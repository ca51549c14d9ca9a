"""Judged answers: from rows to records, to tokens, to batches with a partner for every answer."""

import json
from itertools import chain

import numpy as np
import pytest

from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import preference_examples
from rlhf_kit.data.feedback import FeedbackBatches, FeedbackExample, feedback_examples, load_feedback, unpair
from rlhf_kit.data.tokenizer import encode_chat, encode_prompt, train_tokenizer
from rlhf_kit.errors import InputError

PAD = 0


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes rows to data.jsonl in the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(*rows):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return "data.jsonl"

    return write


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog sat on the cat"] * 20, vocab_size=300)


BAD = {"prompt": "q", "completion": "no", "label": False}
GOOD_RECORD = {"prompt": [user("q")], "completion": [assistant("yes")], "label": True}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "yes", "label": True},
        {"prompt": [user("q")], "completion": [assistant("yes")], "label": True},
        {"prompt": "q", "completion": [user("q"), assistant("yes")], "label": True},
        {"question": "q", "completion": "yes", "label": True},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " yes", "label": True},
    ],
)
def test_every_format_of_judged_answers_becomes_prompt_completion_label(file, row):
    first, second = load_feedback(file(row, BAD))
    assert first == GOOD_RECORD
    assert second == {"prompt": [user("q")], "completion": [assistant("no")], "label": False}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no", "margin": 2},
        {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
    ],
)
def test_a_comparison_is_one_liked_and_one_disliked_answer(file, row):
    assert load_feedback(file({**row, "id": 7})) == [
        {"id": 7, **GOOD_RECORD},
        {"id": 7, "prompt": [user("q")], "completion": [assistant("no")], "label": False},
    ]


def test_unpairing_equals_trl():
    from datasets import Dataset
    from trl.data_utils import unpair_preference_dataset

    rows = [{"prompt": [user(f"q{i}")], "chosen": [assistant("a")], "rejected": [assistant("b")], "id": i} for i in range(3)]
    theirs = unpair_preference_dataset(Dataset.from_list(rows)).to_list()

    def in_order(records):
        return sorted(records, key=lambda r: (r["id"], r["label"]))

    assert in_order(unpair(rows)) == in_order(theirs)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "q", "completion": "a"},
            r"line 3: columns is \['completion', 'prompt'\], expected prompt \+ completion \+ label",
        ),
        (
            {"prompt": "q", "label": True},
            r"line 3: columns is \['label', 'prompt'\], expected prompt \+ completion \+ label, or chosen",
        ),
        (
            {"completion": "a", "label": True},
            r"line 3: columns is \['completion', 'label'\], expected prompt \+ completion \+ label",
        ),
        ({"prompt": "q", "chosen": "a"}, r"line 3: columns is \['chosen', 'prompt'\], expected prompt \+ completion \+ label"),
        (
            {"prompt": "q", "completion": "a", "label": 1},
            r"column 'label' is 1, expected true \(people liked the answer\) or false",
        ),
        ({"prompt": "q", "completion": "a", "label": "good"}, r"column 'label' is 'good', expected true"),
        ({"prompt": "q", "completion": "a", "label": None}, r"column 'label' is None, expected true"),
        ({"prompt": "q", "completion": " ", "label": True}, r"column 'completion' is ' ', expected an answer that is not empty"),
        (
            {"prompt": "q", "completion": None, "label": True},
            r"column 'completion' is None, expected a text or a list of messages",
        ),
        ({"prompt": "", "completion": "a", "label": True}, r"column 'prompt', message 1: content is ''"),
        (
            {"prompt": "q", "completion": [assistant("a"), user("b")], "label": True},
            r"column 'completion' is .*, expected an assistant message at the end",
        ),
        (
            {"prompt": "q", "completion": [user("other"), assistant("a")], "label": True},
            r"column 'completion' is .*, expected an assistant message, or the prompt repeated",
        ),
    ],
)
def test_a_wrong_row_is_named_by_line_and_column(file, row, message):
    with pytest.raises(InputError, match=message) as error:
        load_feedback(file({"prompt": "q", "completion": "yes", "label": True}, BAD, row))
    assert str(error.value).startswith("data.jsonl line 3")


def test_one_label_alone_and_an_empty_file_are_refused(file):
    with pytest.raises(InputError, match=r"data\.jsonl: column 'label' is False, in every row, expected both"):
        load_feedback(file(BAD, BAD))
    with pytest.raises(InputError, match=r"data\.jsonl: rows is 0"):
        load_feedback(file())


def test_an_example_is_prompt_and_answer_up_to_the_stop_token_and_the_rest_is_counted(tokenizer):
    def record(text, label=True):
        return {"prompt": [user("the cat")], "completion": [assistant(text)], "label": label}

    records = [record("sat"), record("on the mat", False), record("sat " * 40), record("<|pad|>")]
    examples, stats = feedback_examples(records, tokenizer, 30)
    assert (stats.records, stats.kept, stats.too_long, stats.control_tokens) == (4, 2, 1, 1)
    assert [e.desirable for e in examples] == [True, False]
    assert examples[0].prompt.tolist() == encode_prompt(tokenizer, records[0]["prompt"])
    whole = encode_chat(tokenizer, records[0]["prompt"] + records[0]["completion"])[0]
    assert [*examples[0].prompt, *examples[0].completion] == whole
    assert examples[0].answer.all()
    assert len(examples[0]) == len(whole)
    assert stats.tokens == sum(map(len, examples))
    assert stats.trained_tokens == sum(len(e.completion) for e in examples)


TURNS = [assistant("sat"), user("on"), assistant("the mat")]


def test_words_of_others_inside_an_answer_are_not_the_assistants(tokenizer):
    """A second question belongs to neither side's credit: only what the assistant wrote is trained."""
    whole, mask = encode_chat(tokenizer, [user("the cat"), *TURNS])
    start = len(encode_prompt(tokenizer, [user("the cat")]))
    (example,), _ = feedback_examples([{"prompt": [user("the cat")], "completion": TURNS, "label": True}], tokenizer, 50)
    assert example.answer.tolist() == mask[start:]
    assert not all(mask[start:])
    pair = {"prompt": [user("the cat")], "chosen": TURNS, "rejected": [assistant("dog")]}
    examples, stats = preference_examples([pair], tokenizer, 50)
    (batch,) = PreferenceBatches(examples, 1, 1, 0, PAD).micro_batches(0, 0, 1)
    assert batch.chosen_ids[0].tolist() == whole
    assert batch.chosen_answer[0].tolist() == mask
    length = len(examples[0].rejected)
    assert batch.rejected_answer[0, :length].tolist() == [i >= start for i in range(length)]
    assert stats.trained_tokens == int(batch.chosen_answer.sum() + batch.rejected_answer.sum())


def judged(count, prompts=None, seed=0):
    """Answers whose prompt tokens are 100 + prompt and whose answer tokens 1000 + number, of many lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prompt = i if prompts is None else prompts[i]
        shape = np.random.default_rng(prompt).integers(1, 5), rng.integers(1, 9)
        sides = (np.full(n, base, dtype=np.int32) for n, base in zip(shape, (100 + prompt, 1000 + i)))
        begin, end = sides
        made.append(FeedbackExample(begin, end, np.ones(len(end), dtype=bool), bool(i % 2)))
    return made


def rows_of(batches, step, world):
    """`(prompt, answer, desirable, kl prompt, kl answer or None)` of every real row of a step, on all ranks."""
    ranks = [batches.micro_batches(step, rank, world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    found = []
    for batch in chain.from_iterable(ranks):
        for i in range(len(batch.input_ids)):
            if not batch.answer[i].any():
                assert not batch.attention_mask[i].any() and not batch.kl_answer[i].any()
                continue
            ids, kl_ids = batch.input_ids[i], batch.kl_ids[i]
            assert set(ids[batch.answer[i]].tolist()) == {int(ids[batch.answer[i]][0])}
            assert set(ids[~batch.attention_mask[i]].tolist()) <= {PAD}
            assert not (batch.answer[i] & ~batch.attention_mask[i]).any()
            partner = kl_ids[batch.kl_answer[i]]
            kl = int(partner[0]) - 1000 if len(partner) else None
            row = int(ids[0]) - 100, int(ids[batch.answer[i]][0]) - 1000, bool(batch.desirable[i]), int(kl_ids[0]) - 100, kl
            found.append(row)
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_answer_stands_once_in_an_epoch_with_another_ones_answer_behind_its_prompt(world):
    batches = FeedbackBatches(judged(29), 8, 3, 0, PAD)
    whole = []
    for step in range(batches.steps_per_epoch):
        rows = rows_of(batches, step, world)
        whole += rows
        assert sorted(r[:3] for r in rows) == sorted(r[:3] for r in rows_of(batches, step, 1))
        assert sorted(r[3:] for r in rows) == sorted(r[3:] for r in rows_of(batches, step, 1))  # one circle on all ranks
        assert sorted(kl for *_, kl in rows) == sorted(answer for _, answer, *_ in rows)  # the same answers, moved on
        assert all(prompt == kl_prompt and kl != answer for prompt, answer, _, kl_prompt, kl in rows)
    assert sorted(answer for _, answer, *_ in whole) == list(range(29))
    assert all(prompt == answer and desirable == bool(answer % 2) for prompt, answer, desirable, *_ in whole)


def test_the_two_answers_of_a_pair_never_meet():
    prompts = [i // 2 for i in range(8)]
    for seed in range(5):
        batches = FeedbackBatches(judged(8, prompts), 8, 8, seed, PAD)
        rows = rows_of(batches, 0, 1)
        assert sorted(kl for *_, kl in rows) == list(range(8))
        assert all(prompts[kl] != prompt for prompt, _, _, _, kl in rows)


def test_a_partner_that_answers_the_same_prompt_counts_for_nothing():
    prompts = [0, 0, 0, 1]  # three of four answers to one prompt: some must meet
    kls = [kl for *_, kl in rows_of(FeedbackBatches(judged(4, prompts), 4, 4, 0, PAD), 0, 1)]
    assert kls.count(None) == 2
    alone = FeedbackBatches(judged(3), 2, 2, 0, PAD)  # the last step holds one answer
    assert sorted(kl is None for step in (0, 1) for *_, kl in rows_of(alone, step, 1)) == [False, False, True]


def test_a_prompt_with_a_long_partner_is_cut_to_the_longest_example():
    long_prompt = FeedbackExample(np.full(9, 100, np.int32), np.full(2, 1000, np.int32), np.ones(2, bool), True)
    long_answer = FeedbackExample(np.full(2, 101, np.int32), np.full(10, 1001, np.int32), np.ones(10, bool), False)
    (batch,) = FeedbackBatches([long_prompt, long_answer], 2, 2, 0, PAD).micro_batches(0, 0, 1)
    assert batch.kl_ids.shape == (2, 12)
    assert sorted(batch.kl_answer.sum(1).tolist()) == [2, 3]


def test_what_cannot_be_batched_is_refused_by_name():
    with pytest.raises(InputError, match=r"batch_size is 1, expected 2 or more: KTO compares"):
        FeedbackBatches(judged(4), 1, 1, 0, PAD)
    with pytest.raises(InputError, match=r"micro_batch_size is 0"):
        FeedbackBatches(judged(4), 2, 0, 0, PAD)
    with pytest.raises(InputError, match=r"examples is 0"):
        FeedbackBatches([], 2, 1, 0, PAD)
