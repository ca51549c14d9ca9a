"""What one stage leaves is what the next one takes: the contract between recipes, on the miniature road."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from recipes import chat, report
from rlhf_kit.config import parse_config, read_yaml, run_recipe
from rlhf_kit.data.records import load_preferences
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.training.metrics import read_metrics
from tests.recipes.conftest import CONFIGS

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "rloo")
IDS = torch.arange(3, 23).view(2, 10)


def same_weights(first: Any, second: Any) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def weights_at(path: Path) -> Any:
    return (load_scalar_model if path.name in ("reward", "critic") else load_causal_lm)(path)


def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports without the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "eps") and not k.endswith("per_second")} for row in rows]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_a_plain_model_directory_with_its_tokenizer_config_and_metrics(road: Path, stage: str) -> None:
    auto = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model = auto.from_pretrained(road / stage)
    tokenizer = AutoTokenizer.from_pretrained(road / stage)
    assert same_weights(model, weights_at(road / stage))
    assert len(tokenizer) == model.config.vocab_size == 400
    assert tokenizer.chat_template
    assert (road / stage / "run_config.yaml").is_file()
    assert [row["step"] for row in read_metrics(road / stage / "metrics.jsonl")][-1] in (5, 6)
    steps = sorted(path.name for path in (road / stage / "trainer_state").iterdir())
    assert steps == ["step-00000002", "step-00000004"]
    assert not list((road / stage).glob(".*"))


def test_each_stage_changes_what_it_starts_from(road: Path) -> None:
    chain = [load_causal_lm(road / name) for name in ("pretrain", "sft", "dpo", "ppo", "rloo")]
    assert not any(same_weights(chain[i], chain[j]) for i in range(5) for j in range(i))


def test_the_metrics_have_the_fields_of_their_loop(road: Path) -> None:
    for stage in ("pretrain", "sft"):
        names = {name for row in read_metrics(road / stage / "metrics.jsonl") for name in row}
        assert {"train/loss", "lr", "grad_norm", "eval/loss", "tokens_per_second"} <= names
    names = {name for row in read_metrics(road / "reward" / "metrics.jsonl") for name in row}
    assert {"train/loss", "train/accuracy", "eval/accuracy", "eval/margin", "pairs_per_second"} <= names
    names = {name for row in read_metrics(road / "dpo" / "metrics.jsonl") for name in row}
    of_trl: tuple[str, ...] = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")
    assert {f"{part}/{name}" for part in ("train", "eval") for name in ("loss", *of_trl)} <= names
    last = read_metrics(road / "ppo" / "metrics.jsonl")[-1]
    of_trl = (
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    )  # fmt: skip
    assert set(of_trl) <= last.keys()
    assert last["episode"] == 5 * 8
    assert last["eval/gold_score"] is not None
    assert "loss/value_avg" not in read_metrics(road / "rloo" / "metrics.jsonl")[-1]


def test_the_critic_starts_from_the_reward_model_and_is_saved(road: Path) -> None:
    critic = load_scalar_model(road / "ppo" / "critic")
    reward = load_scalar_model(road / "reward")
    assert critic.config.score_bias == reward.config.score_bias != 0.0
    assert not same_weights(critic, reward)
    assert len(AutoTokenizer.from_pretrained(road / "ppo" / "critic")) == 400
    assert not (road / "rloo" / "critic").exists()


def test_the_reward_models_offset_survives_in_plain_transformers(road: Path) -> None:
    ours = load_scalar_model(road / "reward").eval()
    plain = AutoModelForSequenceClassification.from_pretrained(road / "reward").eval()
    mask = torch.ones_like(IDS)
    scores = scalar_scores(ours, IDS, mask.bool())
    torch.testing.assert_close(plain(input_ids=IDS, attention_mask=mask).logits[:, 0], scores)
    ours.config.score_bias = 0.0
    moved = scores - scalar_scores(ours, IDS, mask.bool())
    torch.testing.assert_close(moved, torch.full((2,), plain.config.score_bias))


def test_sampled_pairs_are_preference_data(road: Path) -> None:
    pairs = load_preferences(road / "pairs.jsonl")
    assert len(pairs) > 20
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_the_saved_config_gives_the_same_run_again(road: Path, tmp_path: Path, stage: str) -> None:
    recipe, cls, _ = CONFIGS[stage]
    flags = ["--config", str(road / stage / "run_config.yaml"), "--output_dir", str(tmp_path / stage)]
    recipe.main(parse_config(cls, flags))  # type: ignore[attr-defined]
    assert same_weights(weights_at(tmp_path / stage), weights_at(road / stage))
    first, again = (read_metrics(folder / stage / "metrics.jsonl") for folder in (road, tmp_path))
    assert cut(first) == cut(again)
    before, after = (yaml.safe_load((folder / stage / "run_config.yaml").read_text()) for folder in (road, tmp_path))
    assert before | {"output_dir": ""} == after | {"output_dir": ""}


def test_another_seed_draws_another_reward_head(road: Path, recipe: Any, tmp_path: Path) -> None:
    heads = []
    for seed in (0, 1):
        recipe("reward", model=road / "sft", data=road / "pairs.jsonl", output_dir=tmp_path / f"{seed}", seed=seed, max_steps=1)
        heads.append(load_scalar_model(tmp_path / f"{seed}").score.weight)
    assert not torch.allclose(heads[0], heads[1], atol=0.05)


def test_the_evaluation_has_its_figures_and_samples(road: Path) -> None:
    found = json.loads((road / "evaluation" / "evaluation.json").read_text())
    for name in ("gold_win_rate", "proxy_win_rate", "gold_length_controlled_win_rate", "kl"):
        assert {"estimate", "low", "high", "n"} <= found[name].keys()
        assert found[name]["n"] == 16
    assert {"eos_rate", "mean_length", "baseline_mean_length", "gold_score", "proxy_score", "attributes"} <= found.keys()
    samples = [json.loads(line) for line in (road / "evaluation" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    fields = {"prompt", "before", "after", "gold_before", "gold_after", "proxy_before", "proxy_after"}
    assert all(sample.keys() == fields for sample in samples)


def test_a_reward_model_and_a_corpus_can_be_evaluated_alone(road: Path, recipe: Any, tmp_path: Path) -> None:
    found = recipe(
        "evaluate",
        model=None,
        reference=None,
        reward=road / "reward",
        preferences=road / "pairs.jsonl",
        output_dir=tmp_path / "a",
    )
    assert 0.0 <= found["accuracy"]["estimate"] <= 1.0
    (tmp_path / "held_out.txt").write_text("A fox ran home. It was warm there.\n<|endoftext|>\nA bird sang all day.\n")
    found = recipe(
        "evaluate", model=road / "sft", reference=None, texts=tmp_path / "held_out.txt", sequence_length=32, stride=16,
        output_dir=tmp_path / "b",
    )  # fmt: skip
    assert 2.0 < found["perplexity"] < 1000.0
    assert found["baselines"]["xz"] > 0.0


WITHOUT_US = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rlhf_kit", "recipes"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "Tell me a story."}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
print(type(model).__name__, text.count("<|assistant|>"))
torch.save(model(input_ids=torch.arange(3, 23).view(2, 10)).logits, sys.argv[2])
"""


def test_the_export_loads_where_our_package_does_not_exist_and_says_the_same(road: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(road / "exported"), str(tmp_path / "logits.pt")],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert (run.returncode, run.stdout.split()) == (0, ["LlamaForCausalLM", "1"]), run.stderr
    ours = load_causal_lm(road / "ppo").eval()(input_ids=IDS).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, rtol=1e-5, atol=1e-5)


def test_chat_answers_once_and_alike_for_a_seed(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in ("0", "0", "1"):
        flags = ["--model", str(road / "ppo"), "--prompt", "Tell me a story.", "--max_new_tokens", "20", "--seed", seed]
        chat.main(parse_config(chat.ChatConfig, flags))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert len(said[0].strip()) > 0


def test_chat_goes_on_until_told_to_stop(road: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "Hello.\n\nAnd then?\n/new\nI say <|end|> now\nHello.\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    chat.main(parse_config(chat.ChatConfig, ["--model", str(road / "ppo"), "--max_new_tokens", "8", "--temperature", "0"]))
    output = capsys.readouterr().out
    answers = [part.split("\n")[0] for part in output.split("model> ")[1:]]
    assert len(answers) == 4
    assert answers[0] == answers[3]  # /new forgot the turns between
    assert "which spells <|end|>" in answers[2]  # a line that cannot be said does not end the conversation
    assert sys.stdin.readline() == "never read\n"


def test_chat_ends_with_its_input(road: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    chat.main(parse_config(chat.ChatConfig, ["--model", str(road / "ppo")]))


def test_the_report_reads_the_whole_road(road: Path, tmp_path: Path) -> None:
    page = report.main(report.ReportConfig(road, tmp_path / "report.html")).read_text()
    assert all(f">{step}<" in page for step in ("Pretraining", "Supervised fine-tuning", "Reward model", "DPO", "PPO", "RLOO"))


def test_lora_adapters_build_on_one_another(road: Path, recipe: Any, tmp_path: Path) -> None:
    """SFT, reward model and PPO, each an adapter on the one before, and the last one is the sum of all."""
    recipe("sft", model=road / "pretrain", output_dir=tmp_path / "sft", lora_rank=2, learning_rate=1e-2)
    recipe("reward", model=tmp_path / "sft", data=road / "pairs.jsonl", output_dir=tmp_path / "reward", lora_rank=2)
    recipe(
        "ppo", model=tmp_path / "sft", reward=tmp_path / "reward", output_dir=tmp_path / "ppo", lora_rank=2, learning_rate=1e-4
    )
    for stage in ("sft", "reward", "ppo"):
        assert (tmp_path / stage / "adapter_config.json").is_file()
        assert not (tmp_path / stage / "model.safetensors").exists()
    first = read_metrics(tmp_path / "ppo" / "metrics.jsonl")[0]
    assert first["objective/kl"] == 0.0  # the reference is the SFT model, adapter and all
    assert read_metrics(tmp_path / "ppo" / "metrics.jsonl")[-1]["objective/kl"] != 0.0

    chain = [load_causal_lm(path).eval() for path in (road / "pretrain", tmp_path / "sft", tmp_path / "ppo")]
    logits = [model(input_ids=IDS).logits for model in chain]
    learned, aligned = (logits[1] - logits[0]).abs().max(), (logits[2] - logits[1]).abs().max()
    assert learned > 0.1
    assert 0.0 < aligned < 0.3 * learned  # had PPO's small adapter forgotten SFT's, it would be back at the start
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits[1], rtol=1e-4, atol=1e-5)

    reward = load_scalar_model(tmp_path / "reward")
    assert reward.config.score_bias == load_scalar_model(tmp_path / "ppo" / "critic").config.score_bias != 0.0
    assert not torch.equal(reward.score.weight, load_scalar_model(tmp_path / "ppo" / "critic").score.weight)
    assert load_scalar_model(tmp_path / "reward").score.weight.equal(reward.score.weight)  # and no head is drawn anew


def test_recipes_import_without_work(tmp_path: Path) -> None:
    names = sorted(path.stem for path in Path(chat.__file__).parent.glob("*.py") if path.stem != "__init__")
    code = (
        "import socket, sys, importlib\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import torch; before = torch.initial_seed()\n"
        f"for name in {names}: importlib.import_module('recipes.' + name)\n"
        "import torch.distributed as dist\n"
        "assert not dist.is_initialized() and torch.initial_seed() == before\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
    assert {"tokenizer", "pretrain", "sft", "sample_pairs", "reward", "dpo", "ppo", "evaluate", "export", "chat"} <= set(names)


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, cls, _ in CONFIGS.values():
        with pytest.raises(SystemExit) as stop:
            run_recipe(recipe.main, cls, ["--help"])  # type: ignore[attr-defined]
        assert not stop.value.code
        shown = capsys.readouterr().out
        assert all(f"--{name}" in shown or f"--no_{name}" in shown for name in cls.__dataclass_fields__)


@pytest.mark.parametrize(
    "config", sorted((Path(chat.__file__).parent / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_shipped_config_is_read(config: Path) -> None:
    name = config.stem.split("_")[0]
    written = read_yaml(config, get_type_hints(CONFIGS[name][1]))
    found = parse_config(CONFIGS[name][1], ["--config", str(config)])
    assert {key: getattr(found, key) for key in written} == written != {}


def test_a_clone_runs_its_own_code_without_being_installed(tmp_path: Path) -> None:
    """`python recipes/NAME.py` in a copy of the repository runs the copy, even where another one is installed."""
    root = Path(chat.__file__).parents[1]
    for package in ("recipes", "rlhf_kit"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "recipes" / "common.py").open("a") as file:
        file.write("\nprint('the clone')\n")
    run = subprocess.run(
        [sys.executable, "recipes/tokenizer.py", "--vocab_size", "300", "--world_documents", "5", "--output_dir", "out"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == "the clone"


def test_a_reward_model_with_another_vocabulary_judges_texts_and_is_no_start_for_the_critic(
    road: Path, recipe: Any, tmp_path: Path
) -> None:
    recipe("tokenizer", output_dir=tmp_path / "tokenizer", vocab_size=350)
    recipe("pretrain", tokenizer=tmp_path / "tokenizer", output_dir=tmp_path / "pretrain", max_steps=1)
    recipe("reward", model=tmp_path / "pretrain", data=road / "pairs.jsonl", output_dir=tmp_path / "reward", max_steps=1)
    recipe("ppo", model=road / "sft", reward=tmp_path / "reward", output_dir=tmp_path / "ppo", total_steps=1)
    critic = load_scalar_model(tmp_path / "ppo" / "critic")
    assert critic.config.vocab_size == 400
    (row,) = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    assert row["val/explained_variance"] == pytest.approx(0.0, abs=1e-6)  # a zero head: every first value is 0
    assert row["objective/scores"] is not None


def test_a_model_that_was_pretrained_with_dropout_is_exported_without(road: Path, recipe: Any, tmp_path: Path) -> None:
    recipe(
        "pretrain",
        tokenizer=road / "tokenizer",
        output_dir=tmp_path / "pretrain",
        max_steps=1,
        dropout=0.1,
        max_seq_len=24,
        sequence_length=16,
    )
    assert recipe("export", model=tmp_path / "pretrain", output_dir=tmp_path / "exported") < 1e-5
