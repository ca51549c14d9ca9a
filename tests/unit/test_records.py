import gzip
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.examples import preference_examples, prompt_examples, sft_examples
from rlhf_kit.data.records import load_preferences, load_prompts, load_sft, parse_hh
from rlhf_kit.data.tokenizer import encode_chat, encode_prompt, train_tokenizer
from rlhf_kit.errors import InputError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


HH = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: Why?\n\nBecause?\n\nAssistant:"
HH_MESSAGES = [user("Hi there"), assistant("Hello!"), user("Why?\n\nBecause?")]
TREE = {
    "prompt": {
        "text": "Q",
        "role": "prompter",
        "replies": [
            {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "best",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "more?",
                        "role": "prompter",
                        "replies": [
                            {"text": "unranked", "role": "assistant", "replies": []},
                            {"text": "ranked", "role": "assistant", "rank": 3, "replies": [{"text": "ok", "role": "prompter"}]},
                        ],
                    }
                ],
            },
        ],
    },
    "message_tree_id": "t1",
}


def _tree(**changes):
    return {"prompt": {"text": "Q", "role": "prompter", "replies": []} | changes}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat, and the dog sat on the cat " * 20], 300)


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
        ({"messages": [{**user("q"), "extra": 1}, assistant("a")]}, [user("q"), assistant("a")]),
        ({"messages": HH + " So."}, [*HH_MESSAGES, assistant("So.")]),
        ({"text": HH + " So."}, [*HH_MESSAGES, assistant("So.")]),
        ({"prompt": "q", "completion": " a"}, [user("q"), assistant(" a")]),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, [user("q"), assistant("a")]),
        ({"prompt": HH, "completion": " So."}, [*HH_MESSAGES, assistant("So.")]),
        ({"instruction": "do", "input": "this", "output": "done"}, [user("do\n\nthis"), assistant("done")]),
        ({"instruction": "do", "input": "", "output": "done"}, [user("do"), assistant("done")]),
        ({"instruction": "do", "output": "done"}, [user("do"), assistant("done")]),
        ({"question": "1+1", "answer": "2"}, [user("1+1"), assistant("2")]),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [user("q"), assistant("good")]),
        (TREE, [user("Q"), assistant("best"), user("more?"), assistant("ranked")]),
    ],
)
def test_every_format_of_demonstrations_becomes_messages(file, row, expected):
    (record,) = load_sft(file(row))
    assert record["messages"] == expected


def test_each_instance_of_a_self_instruct_task_is_a_demonstration(file):
    row = {"id": 7, "instruction": "do", "instances": [{"input": "x", "output": "y"}, {"input": "", "output": "z"}]}
    assert load_sft(file(row)) == [
        {"id": 7, "messages": [user("do\n\nx"), assistant("y")]},
        {"id": 7, "messages": [user("do"), assistant("z")]},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    ],
)
def test_every_format_of_comparisons_becomes_prompt_chosen_rejected(file, row):
    assert load_preferences(file(row)) == [{"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}]


def test_plain_answers_without_prompt_are_split_at_the_last_common_space(file):
    (record,) = load_preferences(file({"chosen": "The sky is blue.", "rejected": "The sky is black."}))
    assert (record["prompt"], record["chosen"][0]["content"]) == ([user("The sky is ")], "blue.")
    (record,) = load_preferences(file({"chosen": "The sky", "rejected": "The sky falls"}))
    assert (record["prompt"], record["rejected"][0]["content"]) == ([user("The ")], "sky falls")


def test_answers_of_several_turns_are_split_where_they_part(file):
    begin = [user("a"), assistant("b"), user("c")]
    row = {"chosen": [*begin, assistant("x"), user("y"), assistant("z")], "rejected": [*begin, assistant("w")]}
    (record,) = load_preferences(file(row))
    assert record["prompt"] == begin
    assert record["chosen"] == row["chosen"][3:]
    same = [*begin, assistant("x")]
    (record,) = load_preferences(file({"chosen": same, "rejected": same}))
    assert (record["prompt"], record["rejected"]) == (begin, [assistant("x")])


def test_an_hh_answer_may_be_empty_or_speak_of_humans(file):
    row = {"prompt": HH, "chosen": "", "rejected": " Human: is what I am.\n\nAssistant: is what you are."}
    (record,) = load_preferences(file(row))
    assert record["prompt"] == HH_MESSAGES
    assert record["chosen"] == [assistant("")]
    assert record["rejected"] == [assistant("Human: is what I am.\n\nAssistant: is what you are.")]


def test_an_hh_dialogue_is_cut_at_its_turns_only():
    assert parse_hh(HH) == HH_MESSAGES
    assert parse_hh(HH, drop_cue=False) == [*HH_MESSAGES, assistant("")]
    assert parse_hh("\n\nHuman: the word Human: in a line\nAssistant: too\n\nAssistant: yes")[0]["content"].endswith("too")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, [user("q")]),
        ({"prompt": [{"role": "system", "content": "s"}, user("q")]}, [{"role": "system", "content": "s"}, user("q")]),
        ({"prompt": HH}, HH_MESSAGES),
        ({"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}, [user("q"), assistant("a"), user("r")]),
        ({"question": "q", "answer": "a"}, [user("q")]),
        ({"instruction": "q", "input": "more", "output": "a"}, [user("q\n\nmore")]),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, [user("q")]),
        (TREE, [user("Q")]),
    ],
)
def test_every_format_of_prompts_ends_with_the_user(file, row, expected):
    (record,) = load_prompts(file(row))
    assert record["prompt"] == expected


def test_columns_that_are_not_needed_stay_in_the_record(file):
    path = file({"question": "1+1", "answer": "2", "level": 3})
    assert load_prompts(path) == [{"answer": "2", "level": 3, "prompt": [user("1+1")]}]
    assert load_sft(path) == [{"level": 3, "messages": [user("1+1"), assistant("2")]}]
    (record,) = load_preferences(file({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "id": "x"}))
    assert (record["margin"], record["id"]) == (2.0, "x")


def test_rows_come_from_compressed_lines_parquet_and_saved_datasets_alike(tmp_path):
    rows = [{"messages": [user(f"q{i}"), assistant("a")]} for i in range(300)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    data = Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "a.parquet"))
    DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    for source in ("a.jsonl.gz", "a.parquet", "saved"):
        assert load_sft(tmp_path / source) == rows
    assert len(load_sft(f"{tmp_path}/saved@test")) == 3
    with pytest.raises(InputError, match=r"split is 'dev', expected one of \['test', 'train'\]"):
        load_sft(f"{tmp_path}/saved@dev")


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (load_sft, {"foo": 1}, r"line 2: columns is \['foo'\], expected messages; prompt \+ completion"),
        (load_sft, {"messages": []}, r"line 2, column 'messages' is \[\], expected a list of messages"),
        (load_sft, {"messages": "plain"}, r"line 2, column 'messages' is 'plain', expected a list of messages"),
        (load_sft, {"messages": [user("q")]}, r"line 2, column 'messages' is .*, expected an assistant message"),
        (
            load_sft,
            {"messages": [user("q"), {"role": "tool", "content": "x"}]},
            r"message 2: role is 'tool', expected one of user",
        ),
        (load_sft, {"messages": [user("q"), assistant(" ")]}, r"message 2: content is ' ', expected a text that is not empty"),
        (load_sft, {"messages": [user("q"), assistant(None)]}, r"message 2: content is None, expected a text"),
        (load_sft, {"messages": [{"from": "human", "value": "q"}]}, r'message 1 is .*, expected {"role"'),
        (load_sft, {"prompt": "q", "completion": 3}, r"line 2, column 'completion' is 3, expected a text or a list of messages"),
        (load_sft, {"instruction": "q", "input": 3, "output": "a"}, r"column 'input' is 3, expected a text or nothing"),
        (load_sft, {"instruction": "q", "instances": [{}]}, r"column 'instances' is \[{}\], expected a list"),
        (load_sft, {"prompt": {"text": "q", "role": "boss", "replies": []}}, r"expected an OpenAssistant message"),
        (
            load_preferences,
            {"prompt": "q", "chosen": "a"},
            r"line 2: columns is \['chosen', 'prompt'\], expected chosen \+ rejected",
        ),
        (load_preferences, {"prompt": " ", "chosen": "a", "rejected": "b"}, r"column 'prompt', message 1: content is ' '"),
        (load_preferences, {"chosen": "a", "rejected": "b"}, r"column 'chosen' is 'a', which shares no prompt with 'rejected'"),
        (
            load_preferences,
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("b"), user("e")],
            },
            r"column 'chosen' is .*, expected the answers to differ, not the prompts",
        ),
        (
            load_preferences,
            {"prompt": "q", "chosen": [user("other"), assistant("a")], "rejected": "b"},
            r"column 'chosen' is .*, expected an assistant message, or the prompt repeated",
        ),
        (
            load_preferences,
            {"prompt": "q", "chosen": [assistant("a"), user("b")], "rejected": "b"},
            r"column 'chosen' is .*, expected an assistant message at the end",
        ),
        (
            load_preferences,
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "2"},
            r"column 'margin' is '2', expected a fin",
        ),
        (load_preferences, {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, r"column 'margin' is nan"),
        (load_prompts, {"prompt": [user("q"), assistant("a")]}, r"column 'prompt' is .*, expected a user message at the end"),
        (load_preferences, {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, r"column 'margin' is 1000"),
        (load_prompts, {"completion": "a"}, r"line 2: columns is \['completion'\], expected prompt"),
        (load_sft, {"text": "Once upon a time."}, r"column 'text' is 'Once.*', expected a chat: pretrain on plain texts"),
        (load_sft, _tree(replies="x"), r"column 'prompt': replies is 'x', expected messages whose rank is a number"),
        (load_sft, _tree(replies=[1]), r"column 'prompt': replies is \[1\]"),
        (load_sft, _tree(replies={"rank": 1}), r"column 'prompt': replies is {'rank': 1}"),
        (load_sft, _tree(replies=[{"role": "assistant", "rank": "1"}] * 2), r"column 'prompt': replies is .*'rank': '1'"),
        (load_sft, _tree(role=["prompter"]), r"column 'prompt' is .*, expected an OpenAssistant message"),
    ],
)
def test_a_wrong_row_is_named_by_line_and_column(file, load, row, message):
    good = {"prompt": "q", "completion": "c", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match=message) as error:
        load(file(good, row))
    assert str(error.value).startswith("data.jsonl line 2")


def test_an_empty_file_is_an_error(file):
    with pytest.raises(InputError, match=r"data\.jsonl: rows is 0, expected at least one"):
        load_sft(file())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"prompt": "q", "completion": "\ud83d"}', r"line 2, column 'completion' is .*\\ud83d.*, expected no lone surrogate"),
        (r'{"prompt": "q", "completion": "a", "\uDE00": 1}', r"line 2, column '\\ude00' is"),
        (r'{"prompt": "q", "completion": [{"x": "\ude00\ud83d"}]}', r"line 2, column 'completion' is"),
        ('{"prompt": ' + "9" * 5001 + "}", r"line 2 is .*, expected JSON \(Exceeds the limit"),
        ('{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}", r"line 2 is .*, expected JSON \(maximum recursion"),
    ],
)
def test_a_line_that_only_json_can_hold_is_named(file, line, said):
    path = file({"prompt": "q", "completion": "a \U0001f600"}, {"prompt": "q", "completion": "a"})
    assert load_sft(path)[0]["messages"][1]["content"] == "a \U0001f600"  # two escaped halves are a character
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(InputError, match=rf"^data\.jsonl {said}"):
        load_sft(path)


@pytest.mark.parametrize("depth", [500, 900, 1_100, 5_000])
def test_however_deep_a_row_is_nested_the_error_is_one_line(tmp_path, depth):
    (tmp_path / "data.jsonl").write_text('{"messages": ' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(InputError, match=r"^data\.jsonl line 1"):
        load_sft(tmp_path / "data.jsonl")


def test_answers_that_are_rejected_or_silent_are_no_demonstrations_and_are_counted(file, caplog):
    unpaired = [{"prompt": "q", "completion": "good", "label": True}, {"prompt": "q", "completion": "bad", "label": False}]
    silent = {"prompt": "q", "chosen": "", "rejected": "bad"}
    records = load_sft(file(*unpaired, silent))
    assert [record["messages"] for record in records] == [[user("q"), assistant("good")]]
    assert "2 rows left out, whose answers are labelled false or empty" in caplog.text
    assert len(load_preferences(file(silent))) == 1
    with pytest.raises(InputError, match=r"demonstrations is 0, expected one: the answers of all 2 rows are rejected ones"):
        load_sft(file(unpaired[1], silent))


def test_a_byte_order_mark_is_no_part_of_the_first_line(file):
    path = file({"prompt": "q", "completion": "a"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_sft(path)) == 1


def test_what_a_folder_holds_beside_rows_is_named(file, tmp_path, caplog):
    path = file({"prompt": "q", "completion": "a"})
    assert len(load_sft(tmp_path)) == 1
    assert not caplog.text
    (tmp_path / "more.json").write_text("[]")
    (tmp_path / "part.jsonl.zst").write_bytes(b"")
    (tmp_path / "old").mkdir()
    (tmp_path / ".cache").mkdir()
    assert len(load_sft(tmp_path)) == 1
    assert "more.json, old/, part.jsonl.zst not read" in caplog.text
    path.unlink()
    with pytest.raises(InputError, match=r"is \['more.json', 'old/', 'part.jsonl.zst'\], expected files"):
        load_sft(tmp_path)


@pytest.mark.parametrize("source", ["", " "])
def test_no_source_is_not_the_current_directory(file, monkeypatch, source):
    monkeypatch.chdir(file({"prompt": "q", "completion": "a"}).parent)
    with pytest.raises(InputError, match=r"data is ' ?', expected a file, a folder or the name"):
        load_sft(source)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data-00000-of-00001.arrow", _cut),
        ("data-00000-of-00001.arrow", lambda path: path.unlink()),
        ("dataset_info.json", lambda path: path.write_text("{")),
        ("dataset_info.json", lambda path: path.write_text("[]")),
        ("dataset_info.json", lambda path: path.unlink()),
        ("state.json", lambda path: path.unlink()),
        ("state.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_saved_dataset_is_one_error(tmp_path, name, damage):
    Dataset.from_list([{"messages": [user(f"q{i}"), assistant("a")]} for i in range(300)]).save_to_disk(str(tmp_path / "saved"))
    damage(tmp_path / "saved" / name)
    with pytest.raises(InputError, match=r"saved is .*, expected a whole folder of save_to_disk"):
        load_sft(tmp_path / "saved")


def test_a_dataset_is_named_with_its_configuration_and_split(monkeypatch):
    asked = []

    def stream(*arguments, **options):
        asked.append((*arguments, options["split"]))
        return [{"prompt": "q", "completion": "a"}]

    monkeypatch.setattr("datasets.load_dataset", stream)
    for name in ("someone/data", "someone/data@test", "someone/data:en", "someone/data:en@train[:10%]"):
        assert load_sft(name) == [{"messages": [user("q"), assistant("a")]}]
    assert asked == [
        ("someone/data", None, "train"),
        ("someone/data", None, "test"),
        ("someone/data", "en", "train"),
        ("someone/data", "en", "train[:10%]"),
    ]


def test_a_stream_that_breaks_off_is_one_error(monkeypatch):
    def stream(*_, **__):
        yield {"prompt": "q", "completion": "a"}
        raise ConnectionError("the line went dead\nat once")

    monkeypatch.setattr("datasets.load_dataset", stream)
    with pytest.raises(InputError, match=r"^someone/data after row 1 is 'the line went dead', expected a dataset"):
        load_sft("someone/data")


def test_labels_are_the_ids_of_the_assistants_tokens(tokenizer):
    chat = [user("the cat"), assistant("sat"), user("on"), assistant("the mat")]
    ((ids, labels),), stats = sft_examples([{"messages": chat}], tokenizer, 100)
    expected, mask = encode_chat(tokenizer, chat)
    assert ids.tolist() == expected
    assert labels.tolist() == [i if m else IGNORE for i, m in zip(expected, mask)]
    assert (stats.records, stats.kept, stats.tokens, stats.trained_tokens) == (1, 1, len(ids), sum(mask))


def test_cut_and_untrainable_demonstrations_are_counted(tokenizer, caplog):
    records = [
        {"messages": [user("the cat"), assistant("sat")]},
        {"messages": [user("the cat"), assistant("sat on the mat, and the dog sat on the cat " * 5)]},
        {"messages": [user("the cat " * 50), assistant("sat")]},
        {"messages": [user("<|end|>"), assistant("sat")]},
    ]
    with caplog.at_level("INFO"):
        examples, stats = sft_examples(records, tokenizer, 20)
    assert [len(ids) for ids, _ in examples][1] == 20
    assert (stats.records, stats.kept, stats.truncated, stats.untrained, stats.control_tokens) == (4, 2, 1, 1, 1)
    assert stats.trained_tokens == sum(int((labels[1:] != IGNORE).sum()) for _, labels in examples)
    assert "1 truncated, 1 untrained, 1 control tokens" in caplog.text


def test_nothing_left_to_train_on_is_an_error(tokenizer):
    with pytest.raises(InputError, match="raise max_length"):
        sft_examples([{"messages": [user("the cat"), assistant("sat")]}], tokenizer, 3)


def test_the_mend_for_nothing_left_fits_its_cause(tokenizer):
    spelt = {"messages": [user("<|end|>"), assistant("sat")]}
    with pytest.raises(InputError, match=r"'control_tokens': 1}: remove the control tokens from the messages$"):
        sft_examples([spelt], tokenizer, 20)
    with pytest.raises(InputError, match=r": raise max_length from 3 tokens, remove the control tokens from the messages$"):
        sft_examples([spelt, {"messages": [user("the cat"), assistant("sat")]}], tokenizer, 3)
    same = {"prompt": [user("the cat")], "chosen": [assistant("sat")], "rejected": [assistant("sat")]}
    with pytest.raises(InputError, match=r": give pairs whose answers differ$"):
        preference_examples([same], tokenizer, 20)


def test_a_pair_holds_prompt_and_answer_up_to_the_stop_token(tokenizer):
    prompt, chosen, rejected = [user("the cat")], [assistant("sat on the mat")], [assistant("")]
    (pair,), stats = preference_examples([{"prompt": prompt, "chosen": chosen, "rejected": rejected}], tokenizer, 50)
    assert pair.chosen.tolist() == encode_chat(tokenizer, prompt + chosen)[0]
    assert pair.chosen[: pair.prompt_length].tolist() == encode_prompt(tokenizer, prompt)
    assert pair.rejected[pair.prompt_length :].tolist() == [tokenizer.eos_token_id]  # silence is the stop token alone
    assert pair.margin is None
    assert stats.tokens == len(pair.chosen) + len(pair.rejected)


def test_pairs_that_are_too_long_or_the_same_are_counted_and_left_out(tokenizer):
    def pair(chosen, rejected="dog", **more):
        return {"prompt": [user("the cat")], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)], **more}

    records = [pair("sat", margin=0.5), pair("sat " * 30), pair("dog"), pair("<|pad|>")]
    (kept,), stats = preference_examples(records, tokenizer, 30)
    assert kept.margin == 0.5
    assert (stats.records, stats.kept, stats.too_long, stats.identical, stats.control_tokens) == (4, 1, 1, 1, 1)


def test_prompts_that_are_too_long_are_counted_and_left_out(tokenizer):
    records = [{"prompt": [user("the cat")], "id": 1}, {"prompt": [user("the cat " * 30)]}, {"prompt": [user("<|end|>")]}]
    (kept,), stats = prompt_examples(records, tokenizer, 20)
    assert kept.row is records[0]
    np.testing.assert_array_equal(kept.ids, encode_prompt(tokenizer, records[0]["prompt"]))
    assert (stats.records, stats.kept, stats.too_long, stats.control_tokens) == (3, 1, 1, 1)
