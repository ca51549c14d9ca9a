"""The process reward model as a stage and as a directory: its statistics, its head, what is refused, what resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from recipes import process_reward
from rlhf_kit.batches import IGNORE, LMBatch
from rlhf_kit.data.arithmetic import solutions
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import step_head, step_logits
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTForTokenClassification
from rlhf_kit.models.loading import Lora, load_causal_lm, load_process_model, load_scalar_model
from rlhf_kit.training import fit as fit_module
from rlhf_kit.training.metrics import read_metrics
from rlhf_kit.training.stages import ProcessRewardModelling

SHAPE: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 96}
IDS = torch.arange(24).view(4, 6) % 19
N = IGNORE
LABELS = torch.tensor([[N, 1, N, 0, N, 0], [N, N, 1, N, 1, N], [0, N, N, N, N, N], [N, 1, 1, N, N, N]])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([f"{r['prompt'][0]['content']} {' '.join(r['completions'])}" for r in solutions(50)], 300)


def model(**changes: Any) -> GPTForTokenClassification:
    torch.manual_seed(0)
    return GPTForTokenClassification(GPTConfig(**SHAPE | {"vocab_size": 20, "num_labels": 2} | changes))


def batch(rows: slice = slice(None), labels: torch.Tensor = LABELS) -> LMBatch:
    return LMBatch(IDS[rows], labels[rows], torch.ones_like(IDS[rows], dtype=torch.bool))


def says(stage: ProcessRewardModelling, wrong: torch.Tensor) -> None:
    """The head then calls the tokens `wrong` wrong and all others correct: the token is all it sees."""
    made = stage.model
    with torch.no_grad():
        for p in made.model.gpt.layers.parameters():  # type: ignore[union-attr]
            p.zero_()
        made.model.gpt.embed_tokens.weight.zero_()[:, 0] = 1.0  # type: ignore[union-attr]
        made.model.gpt.embed_tokens.weight[wrong, 0] = -1.0  # type: ignore[union-attr]
        made.score.weight.zero_()[1, 0] = 1.0  # type: ignore[union-attr]
        made.score.bias.zero_()  # type: ignore[union-attr]


def test_the_statistics_of_four_answers_by_hand() -> None:
    stage = ProcessRewardModelling(model())
    # Steps end at tokens 1 3 5 | 8 10 | 12 | 0 1: the fourth answer begins anew at 18, 0, 1.
    says(stage, torch.tensor([3, 10]))
    loss, stats = stage(batch())
    means = stage.means({name: float(value) for name, value in stats.items()} | {"loss": loss.item(), "units": 8.0})
    assert means.pop("loss") == pytest.approx(loss.item() / 8)
    # right: 1, 3, 8 and both of the fourth; missed: 5, 10, 12. Flawed: the first, found at 3, and the third, missed.
    assert means == pytest.approx(
        {"accuracy": 5 / 8, "positive": 5 / 8, "first_error_accuracy": 1 / 2, "sound_accuracy": 1 / 2, "f1": 1 / 2}
    )


def test_an_error_found_too_early_is_not_found_and_what_there_is_none_of_is_not_reported() -> None:
    stage = ProcessRewardModelling(model())
    says(stage, torch.tensor([1, 3]))
    _, stats = stage(batch(slice(1)))
    means = stage.means({name: float(value) for name, value in stats.items()} | {"loss": 0.0, "units": 3.0})
    assert means["first_error_accuracy"] == 0.0
    assert not {"sound_accuracy", "f1"} & means.keys()


def test_the_loss_is_the_models_own_times_the_steps_and_reads_nothing_behind_a_step() -> None:
    made = model()
    stage = ProcessRewardModelling(made)
    whole = batch()
    loss, _ = stage(whole)
    theirs = made(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(loss, theirs * stage.units(whole), rtol=1e-6, atol=0)
    padded = LMBatch(torch.nn.functional.pad(IDS, (0, 3)), torch.nn.functional.pad(LABELS, (0, 3), value=IGNORE))
    padded.attention_mask = torch.nn.functional.pad(whole.attention_mask, (0, 3))  # type: ignore[arg-type]
    torch.testing.assert_close(stage(padded)[0], loss, rtol=1e-6, atol=0)


def test_a_batch_that_counts_for_nothing_reaches_every_parameter_with_zero() -> None:
    stage = ProcessRewardModelling(model())
    nothing = batch(labels=torch.full_like(LABELS, IGNORE))
    loss, stats = stage(nothing)
    assert stage.units(nothing) == 0
    loss.backward()
    assert loss == 0
    assert not any(stats.values())
    assert all(p.grad is not None and not p.grad.any() for p in stage.parameters())


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama"])
def test_a_language_model_gets_a_fresh_head_of_two_that_is_saved_and_read_again(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    start: Any = {
        "ours": lambda: GPTForCausalLM(GPTConfig(vocab_size=20, **SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)),
    }[kind]()
    start.save_pretrained(tmp_path / "lm")
    made = load_process_model(tmp_path / "lm", dropout=0.0).eval()
    head = step_head(made)
    assert head.weight.shape == (2, 16)
    assert head.weight.std().item() == pytest.approx(17**-0.5, rel=0.5)
    assert not head.bias.any()
    made.save_pretrained(tmp_path / "prm")
    again = load_process_model(tmp_path / "prm", dropout=0.0).eval()
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    ends, mask = LABELS != IGNORE, torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        logits = step_logits(made, IDS, mask, ends)
        assert torch.equal(step_logits(again, IDS, mask, ends), logits)
        torch.testing.assert_close(plain(IDS).logits[ends], logits, rtol=1e-5, atol=1e-6)


def test_a_head_of_another_kind_or_size_is_refused_by_name(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "steps")
    model(num_labels=3).save_pretrained(tmp_path / "three")
    GPTForSequenceClassification(GPTConfig(vocab_size=20, num_labels=1, **SHAPE)).save_pretrained(tmp_path / "scalar")
    with pytest.raises(InputError, match="expected a language or a reward model: this one judges the steps"):
        load_scalar_model(tmp_path / "steps")
    with pytest.raises(InputError, match="expected a language model: this one"):
        load_causal_lm(tmp_path / "steps")
    with pytest.raises(InputError, match="expected a language or a process reward model: this one scores whole texts"):
        load_process_model(tmp_path / "scalar")
    with pytest.raises(InputError, match=r"process_reward_model\.num_labels is 3, expected 2"):
        load_process_model(tmp_path / "three")
    with pytest.raises(InputError, match=r"process_reward_model\.num_labels is 3, expected 2"):
        step_head(model(num_labels=3))
    with pytest.raises(InputError, match=r"process_reward_model\.architecture is 'GPTForCausalLM'"):
        step_head(GPTForCausalLM(GPTConfig(vocab_size=20, **SHAPE)))


def run(tokenizer: Any, folder: Path, **changes: Any) -> dict[str, float]:
    """The recipe on generated sums, from a small language model."""
    if not (folder / "lm").exists():
        torch.manual_seed(0)
        GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder / "lm")
        tokenizer.save_pretrained(folder / "lm")
    settings: dict[str, Any] = {
        "output_dir": folder / "out", "model": str(folder / "lm"), "solutions": 60, "max_steps": 4, "batch_size": 8,
        "micro_batch_size": 3, "learning_rate": 1e-2, "eval_every": 2, "save_every": 2, "log_every": 1, "eval_batches": 3,
    }  # fmt: skip
    return process_reward.main(process_reward.ProcessRewardConfig(**settings | changes))


def best_loss(folder: Path) -> float:
    """The lowest one that a run reported: that of the weights it left."""
    return min(row["eval/loss"] for row in read_metrics(folder / "metrics.jsonl") if "eval/loss" in row)


def loss_where_it_is(tokenizer: Any, folder: Path) -> float:
    """Of what a run left, found by a run that starts from there and does not move."""
    return run(tokenizer, folder, model=str(folder / "out"), output_dir=folder / "more", learning_rate=0.0)["eval/loss"]


def test_the_recipe_leaves_a_model_that_reloads_and_reports_what_processbench_asks(tokenizer: Any, tmp_path: Path) -> None:
    found = run(tokenizer, tmp_path)
    assert {"eval/loss", "eval/accuracy", "eval/first_error_accuracy", "eval/sound_accuracy", "eval/f1"} <= found.keys()
    assert type(load_process_model(tmp_path / "out")) is GPTForTokenClassification
    assert loss_where_it_is(tokenizer, tmp_path) == pytest.approx(best_loss(tmp_path / "out"), rel=1e-5)


def test_lora_trains_the_head_whole_and_what_it_leaves_reloads_merged(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, lora_rank=2)
    adapted = load_process_model(tmp_path / "lm", lora=Lora(2))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in trained if "lora" not in name} == {"default"}  # the head's trained copy
    assert sum("score" in name for name in trained) == 2  # weight and bias, and no adapter on top
    assert any("q_proj.lora_A" in name for name in trained)
    merged, start = load_process_model(tmp_path / "out"), load_process_model(tmp_path / "lm")
    assert type(merged) is GPTForTokenClassification
    for moved in ("score.weight", "score.bias", "model.gpt.layers.0.attn.q_proj.weight"):
        assert not torch.equal(merged.get_parameter(moved), start.get_parameter(moved)), moved
    assert torch.equal(merged.model.gpt.embed_tokens.weight, start.model.gpt.embed_tokens.weight)
    assert loss_where_it_is(tokenizer, tmp_path) == pytest.approx(best_loss(tmp_path / "out"), rel=1e-5)


def test_a_killed_run_resumes_bit_for_bit(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tokenizer, tmp_path, output_dir=tmp_path / "whole")

    class Killed(Exception):
        """The machine went away."""

    lr_at = fit_module.lr_at

    def dies(step: int, *arguments: Any, **options: Any) -> float:
        if step == 3:
            raise Killed
        return lr_at(step, *arguments, **options)

    monkeypatch.setattr(fit_module, "lr_at", dies)
    with pytest.raises(Killed):
        run(tokenizer, tmp_path, output_dir=tmp_path / "halves")
    monkeypatch.undo()
    assert run(tokenizer, tmp_path, output_dir=tmp_path / "halves", resume=True) == whole
    one, two = (load_process_model(tmp_path / name).state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_to_check_sums_from_nothing(tokenizer: Any, tmp_path: Path) -> None:
    """Held-out questions; whoever calls every step correct is right in 73 % of the steps and finds no error."""
    torch.manual_seed(0)
    shape: Any = {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 96}
    GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    found = run(
        tokenizer, tmp_path, solutions=8_000, max_steps=400, batch_size=32, micro_batch_size=32, learning_rate=3e-3,
        eval_every=0, save_every=0, log_every=100, eval_batches=None,
    )  # fmt: skip
    assert 0.71 < found["eval/positive"] < 0.75
    assert found["eval/accuracy"] > 0.9
    assert found["eval/f1"] > 0.8
