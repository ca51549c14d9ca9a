"""Wrong input at every stage: status 2, one line that names the field, its value and the mend, and nothing lost."""

from __future__ import annotations

import gzip
import json
import lzma
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from recipes import chat
from rlhf_kit.config import run_recipe
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import load_causal_lm
from rlhf_kit.training import checkpoint
from tests.recipes.conftest import CONFIGS

Refused = Callable[..., str]
USER, ANSWER = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi there."}
PAIR = {"prompt": "Hello.", "chosen": "Hi there.", "rejected": "No."}


@pytest.fixture
def refused(flags: Any, capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(recipe, **overrides)` runs it as from the shell and returns the one line it leaves with status 2."""

    def run(name: str, *more: str, **overrides: Any) -> str:
        recipe, cls, _ = CONFIGS.get(name) or (chat, chat.ChatConfig, {})
        capsys.readouterr()
        words = flags(name, **overrides) if name in CONFIGS else [w for k, v in overrides.items() for w in (f"--{k}", str(v))]
        with pytest.raises(SystemExit) as stop:
            run_recipe(recipe.main, cls, [*more, *words])  # type: ignore[attr-defined]
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
        assert stop.value.code == 2
        assert len(said) == 1, said
        assert said[0].startswith("error: ")
        assert len(said[0]) < 600
        return said[0]

    return run


def rows(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def cut_short(path: Path, opener: Any, *records: Any) -> Path:
    with opener(path, "wt") as file:
        file.writelines(json.dumps({**record, "id": str(i) * 9}) + "\n" for i in range(200) for record in records)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- data ---------------------------------------------------------------------------------------------------------

GOOD = {"text": "Once."}, {"messages": [USER, ANSWER]}, PAIR, {"prompt": "Hello."}
STAGES = [*zip(("pretrain", "sft", "reward", "ppo"), GOOD), ("dpo", PAIR)]


def reads(stage: str, road: Path) -> dict[str, Any]:
    """What a stage needs beside its data."""
    if stage == "pretrain":
        return {"tokenizer": road / "tokenizer"}
    before = {"model": road / ("pretrain" if stage == "sft" else "sft")}
    return before | ({"reward": road / "reward"} if stage == "ppo" else {"eval_fraction": 0.0})


@pytest.mark.parametrize(("stage", "good"), STAGES)
def test_data_that_cannot_be_read_is_named_by_file_and_line(
    stage: str, good: dict[str, Any], road: Path, refused: Refused, tmp_path: Path
) -> None:
    cases = [
        (rows(tmp_path / "columns.jsonl", good, {"body": "x"}), "columns.jsonl line 2"),
        (rows(tmp_path / "empty.jsonl"), "empty.jsonl"),
        (rows(tmp_path / "broken.jsonl", good, good, '{"text": "no end'), "broken.jsonl line 3"),
        (rows(tmp_path / "list.jsonl", good, [1, 2]), "list.jsonl line 2"),
        (cut_short(tmp_path / "cut.jsonl.gz", gzip.open, good), "cut.jsonl.gz after line"),
        (cut_short(tmp_path / "cut.jsonl.xz", lzma.open, good), "cut.jsonl.xz after line"),
        (rows(tmp_path / "table.csv", "a,b"), "table.csv"),
        (tmp_path / "nowhere.jsonl", "nowhere.jsonl"),
    ]
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(good).encode() * 99)[:12] + bytes(50))
    half = json.dumps({**good, "id": "\ud83d"})
    cases += [
        (damaged, "damaged.jsonl.gz after line 0"),
        (rows(tmp_path / "half.jsonl", good, half), "half.jsonl line 2, column 'id'"),
        (rows(tmp_path / "digits.jsonl", good, '{"id": ' + "9" * 5001 + "}"), "digits.jsonl line 2"),
        (rows(tmp_path / "deep.jsonl", good, "[" * 99_999), "deep.jsonl line 2"),
        (Path("  "), "data is '  ', expected a file"),
    ]
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(good).encode() + b'\n{"text": "caf\xe9"}\n')
    for path, said in [*cases, (latin, "latin.jsonl line 2")]:
        assert said in refused(stage, **reads(stage, road), data=path, output_dir=tmp_path / "out"), path
        assert not (tmp_path / "out" / "run_config.yaml").exists()


def test_empty_texts_and_wrong_values_are_named_by_column(road: Path, refused: Refused, tmp_path: Path) -> None:
    nan = json.dumps({**PAIR, "margin": float("nan")})
    cases = [
        ("pretrain", [{"text": "Once."}, {"text": " "}], "line 2, column 'text'"),
        (
            "sft",
            [{"messages": [USER, {"role": "assistant", "content": ""}]}],
            "line 1, column 'messages', message 2: content is ''",
        ),
        ("sft", [{"messages": [USER]}], "expected an assistant message"),
        ("sft", [{"messages": [{"role": "robot", "content": "x"}]}], "role is 'robot', expected one of"),
        ("sft", [{"messages": "Hello."}], "column 'messages' is 'Hello.', expected a list"),
        ("reward", [PAIR, {**PAIR, "chosen": None}], "line 2, column 'chosen' is None"),
        ("reward", [nan], "column 'margin' is nan, expected a finite number"),
        ("reward", [{**PAIR, "margin": "much"}], "column 'margin' is 'much'"),
        ("reward", [{**PAIR, "rejected": "Hi there."}], "kept is 0"),
        ("sft", [{"text": "Once."}], "column 'text' is 'Once.', expected a chat: pretrain on plain texts"),
        ("sft", [{"prompt": "Hi.", "completion": "No.", "label": False}], "the answers of all 1 rows are rejected ones"),
        ("sft", [{"messages": [USER, {**ANSWER, "content": "<|end|>"}]}], "remove the control tokens from the messages"),
        ("dpo", [{**PAIR, "rejected": "Hi there."}], "kept is 0"),
        ("ppo", [{"prompt": ""}], "line 1, column 'prompt'"),
    ]
    for stage, records, said in cases:
        path = rows(tmp_path / "data.jsonl", *records)
        assert said in refused(stage, **reads(stage, road), data=path, output_dir=tmp_path / "out"), said


def test_judged_answers_that_teach_nothing_are_named(road: Path, refused: Refused, tmp_path: Path) -> None:
    judged = {"prompt": "Hello.", "completion": "Hi there.", "label": True}
    cases = [
        ([judged, judged], "column 'label' is True, in every row"),
        ([judged, {**judged, "label": 0}], "line 2, column 'label' is 0, expected true"),
        ([judged, {**judged, "completion": ""}], "line 2, column 'completion' is ''"),
        ([judged, {"prompt": "Hello.", "completion": "No."}], "expected prompt + completion + label, or chosen + rejected"),
    ]
    for records, said in cases:
        path = rows(tmp_path / "data.jsonl", *records)
        assert said in refused("dpo", loss="kto", model=road / "sft", data=path, output_dir=tmp_path / "out"), said
    both = rows(tmp_path / "data.jsonl", judged, {**judged, "label": False})
    assert "batch_size is 1, expected 2 or more" in refused(
        "dpo", loss="kto", model=road / "sft", data=both, batch_size=1, eval_fraction=0.0, output_dir=tmp_path / "out"
    )


def test_a_corpus_of_one_document_is_told_how_to_hold_something_out(road: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("One long book.\n" * 50)
    said = refused("pretrain", **reads("pretrain", road), data=tmp_path / "book.txt", output_dir=tmp_path / "out")
    assert "--eval_data" in said
    assert "book.txt" in said


def test_prompts_that_are_all_too_long_are_counted(road: Path, refused: Refused, tmp_path: Path) -> None:
    path = rows(tmp_path / "long.jsonl", {"prompt": "word " * 300}, {"prompt": "word " * 300})
    said = refused("ppo", **reads("ppo", road), data=path, output_dir=tmp_path / "out")
    assert "kept is 0" in said
    assert "'too_long': 2" in said
    assert "max_prompt_length" in said


# ---- settings -----------------------------------------------------------------------------------------------------


def test_settings_are_refused_by_name_with_the_nearest_or_the_type(road: Path, refused: Refused, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("learning_rat: 0.1\n")
    assert "did you mean learning_rate?" in refused("sft", "--config", str(config))
    config.write_text("learning_rate: fast\n")
    assert "learning_rate is 'fast', expected float" in refused("sft", "--config", str(config))
    assert "expected a readable YAML file" in refused("sft", "--config", str(tmp_path / "none.yaml"))
    assert "did you mean --batch_size?" in refused("sft", batchsize=3)
    assert "--max_steps is 'many', expected int" in refused("sft", max_steps="many")
    assert "--schedule is 'step', expected one of cosine" in refused("sft", schedule="step")


@pytest.mark.parametrize(
    ("stage", "field", "value", "said"),
    [
        ("sft", "batch_size", 0, "1 or more"),
        ("sft", "micro_batch_size", 0, "1 or more"),
        ("sft", "log_every", 0, "at least 1"),
        ("sft", "max_steps", 0, "at least 1"),
        ("sft", "learning_rate", -1, "at least 0"),
        ("sft", "learning_rate", "inf", "a finite number"),
        ("sft", "seed", -1, "at least 0"),
        ("sft", "max_length", -1, "at least 2"),
        ("sft", "lora_rank", -1, "at least 0"),
        ("sft", "world_demonstrations", 0, "at least 1"),
        ("sft", "precision", "fp16", "expected one of auto"),
        ("sft", "learning_rate", ".nan", "expected float"),
        ("sft", "warmup_fraction", 1, "below 1"),
        ("sft", "adam_beta2", 1, "below 1"),
        ("sft", "keep_checkpoints", 0, "at least 1"),
        ("sft", "eval_fraction", 1, "below 1"),
        ("sft", "lora_target_modules", "nothing", "expected modules of the model"),
        ("sft", "trackers", "wandbb", "expected any of"),
        ("reward", "label_smoothing", 0.7, "expected"),
        ("reward", "max_length", 3, "raise max_length"),
        ("dpo", "loss", "cpo", "expected one of dpo, robust, hinge, ipo, simpo, orpo, kto"),
        ("dpo", "beta", 0, "above 0"),
        ("dpo", "gamma", 1, "but dpo has no such setting"),
        ("dpo", "label_smoothing", 0.5, "less than 0.5"),
        ("dpo", "max_length", 3, "raise max_length"),
        ("dpo", "lora_target_modules", "nothing", "expected modules of the model"),
        ("ppo", "num_epochs", 0, "at least 1"),
        ("ppo", "num_minibatches", 9, "at most the 8 answers"),
        ("ppo", "log_every", 0, "at least 1"),
        ("ppo", "group_size", 0, "1 or more"),
        ("ppo", "group_size", 3, "multiple of group_size"),
        ("ppo", "temperature", 0, "positive"),
        ("ppo", "gamma", 2, "from 0 to 1"),
        ("ppo", "max_new_tokens", 0, "at least 1"),
        ("ppo", "max_new_tokens", 5000, "256, the model's positions"),
        ("pretrain", "sequence_length", 300, "256, the model's positions"),
        ("pretrain", "sequence_length", 1, "2 or more"),
        ("pretrain", "n_heads", 5, "n_heads"),
        ("pretrain", "preset", "gpt-9", "expected one of gpt-1m"),
        ("tokenizer", "vocab_size", 10, "expected 300 to"),
        ("tokenizer", "world_documents", 0, "at least 1"),
        ("sample_pairs", "temperature", -1, "expected 0"),
        ("evaluate", "prompts", 0, "expected"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_name(
    stage: str, field: str, value: Any, said: str, road: Path, refused: Refused, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"output_dir": tmp_path / "out"}
    if stage == "sample_pairs":
        options = {"model": road / "sft", "output": tmp_path / "out" / "pairs.jsonl"}
    elif stage == "evaluate":
        options |= {"model": road / "ppo", "reference": road / "sft"}
    elif stage in ("reward", "dpo"):
        options |= {"model": road / "sft", "data": road / "pairs.jsonl"}
    elif stage != "tokenizer":
        options |= reads(stage, road)
    if field == "lora_target_modules":
        options["lora_rank"] = 2
    message = refused(stage, **(options | {field: value}))
    assert field in message or "longest sequence" in message
    assert said in message
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_stands_in_a_folder_survives_a_stage_that_is_refused(
    road: Path, recipe: Any, refused: Refused, tmp_path: Path
) -> None:
    recipe("pretrain", tokenizer=road / "tokenizer", output_dir=tmp_path / "pretrain", max_steps=2, save_every=0)
    before = snapshot(tmp_path / "pretrain")
    empty = rows(tmp_path / "bad.jsonl", {"a": 1})
    refused("pretrain", tokenizer=road / "tokenizer", output_dir=tmp_path / "pretrain", data=empty, save_every=0)
    assert snapshot(tmp_path / "pretrain") == before  # and no half of a corpus is left beside it
    assert not (tmp_path / "pretrain" / "shards.new").exists()
    assert "which holds a stage's run" in refused("export", model=road / "sft", output_dir=tmp_path / "pretrain")


def test_sft_examples_longer_than_the_model_are_refused(road: Path, refused: Refused, tmp_path: Path) -> None:
    path = rows(tmp_path / "long.jsonl", {"messages": [USER, {"role": "assistant", "content": "word " * 400}]})
    said = refused("sft", **reads("sft", road), data=path, max_length=1000, output_dir=tmp_path / "out")
    assert "expected at most 256, the model's positions: lower --max_length" in said


# ---- models -------------------------------------------------------------------------------------------------------


def broken_copy(road: Path, target: Path, what: str) -> Path:
    shutil.copytree(road / "sft", target, ignore=shutil.ignore_patterns("trainer_state"))
    if what == "cut weights":
        weights = (target / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif what == "no weights":
        (target / "model.safetensors").unlink()
    elif what == "broken config":
        (target / "config.json").write_text('{"model_type": ')
    elif what == "a config of other kinds":
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"architectures": 3, "dtype": "float99"}))
    elif what == "a tokenizer of other kinds":
        (target / "tokenizer.json").write_text("[]")
    elif what == "no tokenizer":
        for path in target.glob("token*"):
            path.unlink()
    elif what == "large vocabulary":
        AutoTokenizer.from_pretrained(target)
        GPTForCausalLM(GPTConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=2)).save_pretrained(target)
    elif what == "a scalar head":
        GPTForSequenceClassification(GPTConfig(vocab_size=400, d_model=32, n_layers=2, n_heads=2, num_labels=1)).save_pretrained(
            target
        )
    elif what == "no base":
        (target / "model.safetensors").unlink()
        adapter = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "runs/gone", "task_type": "CAUSAL_LM"}
        (target / "adapter_config.json").write_text(json.dumps(adapter))
    return target


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut weights", "expected sound weights"),
        ("no weights", "expected sound weights"),
        ("broken config", "config.json"),
        ("a config of other kinds", "float99"),
        ("no tokenizer", "tokenizer"),
        ("a tokenizer of other kinds", "whose tokenizer cannot be loaded"),
        ("large vocabulary", "tokens of the tokenizer is 400, expected at most the 300 rows"),
        ("a scalar head", "expected a language model"),
        ("no base", "'runs/gone'"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_wherever_it_is_asked_for(
    what: str, said: str, road: Path, refused: Refused, tmp_path: Path
) -> None:
    path = broken_copy(road, tmp_path / "model", what)
    out = tmp_path / "out"
    asked: list[tuple[str, dict[str, Any]]] = [
        ("sft", {"model": path, "output_dir": out}),
        ("dpo", {"model": path, "output_dir": out}),
        ("ppo", {"model": path, "reward": road / "reward", "output_dir": out}),
        ("sample_pairs", {"model": path, "output": out / "pairs.jsonl"}),
        ("export", {"model": path, "output_dir": out}),
        ("chat", {"model": path, "prompt": "Hello."}),
        ("evaluate", {"model": path, "reference": road / "sft", "output_dir": out}),
        ("evaluate", {"model": road / "sft", "reference": path, "output_dir": out}),
    ]
    if what != "a scalar head":
        asked.append(("reward", {"model": path, "data": road / "pairs.jsonl", "output_dir": out}))
    if "tokenizer" in what:
        asked = [entry for entry in asked if entry[1].get("reference") != path]  # the policy's is used
    for recipe, options in asked:
        message = refused(recipe, **options)
        assert said in message, (recipe, message)
        assert what == "large vocabulary" or str(path) in message or "runs/gone" in message, (recipe, message)


def test_a_model_that_does_not_exist_is_named_as_it_was_given(road: Path, refused: Refused, tmp_path: Path) -> None:
    for name in ("runs/nowhere", str(tmp_path / "nowhere")):
        for recipe in ("sft", "reward", "dpo", "ppo", "sample_pairs", "export", "chat"):
            message = refused(recipe, model=name)
            assert "--model" in message, message
            assert name in message, message
        assert "--tokenizer" in (message := refused("pretrain", tokenizer=name, output_dir=tmp_path / "out"))
        assert name in message


def test_a_reward_that_cannot_judge_is_refused(road: Path, refused: Refused, tmp_path: Path) -> None:
    torch.manual_seed(0)
    two = tmp_path / "two"
    GPTForSequenceClassification(GPTConfig(vocab_size=400, d_model=32, n_layers=2, n_heads=2, num_labels=2)).save_pretrained(two)
    AutoTokenizer.from_pretrained(road / "sft").save_pretrained(two)
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def nan(prompts, responses): return [float('nan')] * len(responses)\n"
        "def few(prompts, responses): return [1.0]\n"
        "def word(prompts, responses): return ['good'] * len(responses)\n"
        "number = 3\n"
    )
    cases = [
        (two, "num_labels is 2, expected 1"),
        (f"{rewards}:nan", "nan, expected a finite number"),
        (f"{rewards}:few", "number of scores is 1, expected 8"),
        (f"{rewards}:word", "'good', expected a finite number"),
        (f"{rewards}:none", "expected a callable named 'none'"),
        (f"{rewards}:number", "expected a callable named 'number'"),
        (f"{tmp_path}/nothing.py:f", "expected a file at"),
        ("no_such_module:f", "expected an importable module"),
        ("runs/nowhere", "expected a reward model's directory, `module:function`"),
        (road / "sft", "has no scalar head"),  # a language model has no head to judge with
    ]
    for reward, said in cases:
        assert said in refused("ppo", model=road / "sft", reward=reward, output_dir=tmp_path / "out"), reward
        assert not (tmp_path / "out" / "model.safetensors").exists()


# ---- places -------------------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_named(road: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        for stage, _ in STAGES:
            options = reads(stage, road) | ({"data": road / "pairs.jsonl"} if stage in ("reward", "dpo") else {})
            assert f"--output_dir is '{place}'" in refused(stage, **options, output_dir=place)
        for name, options in (
            ("tokenizer", {"output_dir": place}),
            ("export", {"model": road / "sft", "output_dir": place}),
            ("evaluate", {"model": road / "ppo", "reference": road / "sft", "output_dir": place}),
        ):
            assert str(tmp_path / "file") in refused(name, **options), name
    assert "file" in refused("sample_pairs", model=road / "sft", output=tmp_path / "file" / "pairs.jsonl")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_a_fresh_run_into_another_runs_folder_touches_nothing(stage: str, road: Path, refused: Refused) -> None:
    before = snapshot(road / stage)
    said = refused(stage, **reads(stage, road), output_dir=road / stage, seed=5)
    assert "go on with --resume true, or choose another --output_dir" in said
    assert snapshot(road / stage) == before


def test_wrong_data_for_a_finished_run_touches_nothing(road: Path, recipe: Any, refused: Refused, tmp_path: Path) -> None:
    recipe("sft", model=road / "pretrain", output_dir=tmp_path / "sft", save_every=0)
    before = snapshot(tmp_path / "sft")
    refused("sft", model=road / "pretrain", output_dir=tmp_path / "sft", data=rows(tmp_path / "bad.jsonl", {"a": 1}))
    assert snapshot(tmp_path / "sft") == before


def test_a_resume_needs_a_checkpoint_and_the_settings_it_was_begun_with(
    road: Path, recipe: Any, refused: Refused, tmp_path: Path
) -> None:
    options = {"model": road / "pretrain", "output_dir": tmp_path / "sft"}
    assert "--resume is True, but there is no checkpoint in" in refused("sft", **options, resume=True)
    recipe("sft", **options)
    before = snapshot(tmp_path / "sft")
    for name, value in (("learning_rate", 0.5), ("batch_size", 4), ("seed", 3), ("lora_rank", 2), ("data", "other.jsonl")):
        said = refused("sft", **options | {name: value}, resume=True)
        assert f"--{name} is " in said
        assert "was begun with" in said
    assert snapshot(tmp_path / "sft") == before
    recipe("sft", **options, resume=True, max_steps=7, log_every=2)  # how long and how often may change
    for state in (tmp_path / "sft" / "trainer_state").glob("step-*/shared.pt"):
        state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(SystemExit):
        run_recipe(CONFIGS["sft"][0].main, CONFIGS["sft"][1], ["--config", str(tmp_path / "sft" / "run_config.yaml"), "--resume"])


def test_a_full_disk_costs_a_better_model_in_the_midst_and_ends_the_run_only_at_the_last_save(
    road: Path, recipe: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint._replace_files, []

    def fills_up(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(checkpoint, "_replace_files", fills_up)
    options = {"model": road / "pretrain", "output_dir": tmp_path / "sft", "save_every": 0, "eval_every": 1, "max_steps": 4}
    with pytest.raises(InputError, match=r"No space left on device.*what was there is untouched"):
        recipe("sft", **options)
    assert capsys.readouterr().err.count("Training goes on") == 2
    rows = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [1, 2, 3]  # two better models found no room, and it went on
    assert len(calls) > 2
    assert load_causal_lm(tmp_path / "sft") is not None  # the model of step 1
    assert not list((tmp_path / "sft").glob(".tmp*"))


def test_a_disk_that_takes_no_more_costs_checkpoints_but_not_the_run_and_the_last_save_is_one_line(
    road: Path, flags: Any, tmp_path: Path
) -> None:
    """The system refuses every file over 60 kB: the weights alone need more."""
    words = flags("sft", model=road / "pretrain", output_dir=tmp_path / "sft", eval_fraction=0.0)
    run = subprocess.run(
        [sys.executable, "-m", "recipes.sft", *words],
        capture_output=True, text=True, timeout=300, cwd=Path(chat.__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    lines = run.stderr.splitlines()
    assert run.returncode == 2, run.stderr
    assert sum(line.startswith("warning: the checkpoint of step") for line in lines) == 2
    assert lines[-1].startswith("error: output_dir is "), run.stderr
    assert "File too large" in lines[-1]
    assert "Traceback" not in run.stderr
    assert len((tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()) == 5
    assert not list((tmp_path / "sft").glob("*.safetensors"))
