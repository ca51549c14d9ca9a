"""Model directories in and out: whole, adapters, adapters on adapters, and what is refused instead of made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.utils import logging

from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores, unwrap
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import Lora, check_fits, disable_dropout, load_causal_lm, load_scalar_model, quiet, reload_weights
from rlhf_kit.training.checkpoint import save_model_dir
from rlhf_kit.training.distributed import make_accelerator

IDS = torch.arange(1, 13).view(2, 6)
MASK = torch.ones_like(IDS, dtype=torch.bool)


def ours(**changes: Any) -> GPTForCausalLM:
    return GPTForCausalLM(
        GPTConfig(**{"vocab_size": 23, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32} | changes)
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def trained(model: Any) -> Any:
    """`model` after training, so far as a directory can tell: every trainable weight has moved."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(model: Any, path: Path) -> Path:
    save_model_dir(model, None, path, make_accelerator())
    return path


def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def scores(model: Any) -> torch.Tensor:
    return scalar_scores(model.eval(), IDS, MASK)


@pytest.mark.parametrize("make", [ours, gpt2])
def test_a_saved_model_is_loaded_bit_for_bit_in_fp32(make: Any, tmp_path: Path) -> None:
    model = make().bfloat16()
    loaded = load_causal_lm(save(model, tmp_path / "model"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("make", [ours, gpt2])
def test_a_new_head_is_drawn_small_or_zero_and_forgets_no_body(make: Any, tmp_path: Path) -> None:
    model = make()
    path = save(model, tmp_path / "model")
    drawn, zero = load_scalar_model(path), load_scalar_model(path, zero_head=True)
    assert float(drawn.score.weight.detach().std()) == pytest.approx(17**-0.5, rel=0.6)  # 16 draws
    assert not zero.score.weight.any()
    assert torch.equal(drawn.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert drawn.config.num_labels == 1
    assert drawn.config.score_bias == 0.0


def test_a_trained_head_is_never_drawn_anew(tmp_path: Path) -> None:
    model = trained(load_scalar_model(save(ours(), tmp_path / "base")))
    model.config.score_bias = -0.5
    path = save(model, tmp_path / "reward")
    for options in ({}, {"zero_head": True}, {"trained_as": "--reward"}):
        loaded = load_scalar_model(path, **options)
        assert torch.equal(scores(loaded), scores(model))
    with pytest.raises(InputError, match=r"--reward is .*base', expected a reward model"):
        load_scalar_model(tmp_path / "base", trained_as="--reward")


@pytest.mark.parametrize("make", [ours, gpt2])
def test_adapters_stand_on_adapters(make: Any, tmp_path: Path) -> None:
    """Pretraining, SFT and PPO through LoRA: what is loaded last is the sum, and its base is what it was trained on."""
    base = make()
    first = trained(load_causal_lm(save(base, tmp_path / "base"), lora=Lora(rank=2)))
    second = load_causal_lm(save(first, tmp_path / "first"), lora=Lora(rank=2))
    assert (logits(first) - logits(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-5, atol=1e-5)  # a fresh adapter adds nothing
    trained(second)
    third = load_causal_lm(save(second, tmp_path / "second"))
    assert not hasattr(third, "peft_config")
    assert all(parameter.requires_grad for parameter in third.parameters())  # the next stage may train it whole
    assert (logits(second) - logits(first)).abs().max() > 1e-2
    torch.testing.assert_close(logits(third), logits(second), rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(logits(plain), logits(first), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [ours, gpt2])
def test_a_reward_model_trained_through_lora_keeps_its_head_and_its_offset(make: Any, tmp_path: Path) -> None:
    model = trained(load_scalar_model(save(make(), tmp_path / "base"), lora=Lora(rank=2)))
    unwrap(model).config.score_bias = 0.75
    path = save(model, tmp_path / "reward")
    torch.testing.assert_close(scores(load_scalar_model(path, trained_as="--reward")), scores(model), rtol=1e-5, atol=1e-5)
    critic = trained(load_scalar_model(path, lora=Lora(rank=2), zero_head=True))
    torch.testing.assert_close(scores(load_scalar_model(save(critic, tmp_path / "critic"))), scores(critic), rtol=1e-5, atol=1e-5)
    assert (scores(critic) - scores(model)).abs().max() > 1e-2


def test_a_language_models_adapter_may_start_a_critic(tmp_path: Path) -> None:
    policy = trained(load_causal_lm(save(ours(), tmp_path / "base"), lora=Lora(rank=2)))
    critic = load_scalar_model(save(policy, tmp_path / "policy"), zero_head=True)
    assert not scores(critic).any()
    states = critic.model(input_ids=IDS)[0]
    torch.testing.assert_close(states, unwrap(policy).model(input_ids=IDS)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_the_best_weights_come_back_in_place(lora: Lora | None, tmp_path: Path) -> None:
    model = trained(load_causal_lm(save(ours(), tmp_path / "base"), lora=lora))
    best = logits(model)
    path = save(model, tmp_path / "best")
    trained(model)
    assert not torch.allclose(logits(model), best, atol=1e-3)
    reload_weights(model, path)
    assert torch.equal(logits(model), best)


def moe() -> Qwen2MoeForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=23, num_experts=4, num_experts_per_tok=2, **sizes, **heads))


@pytest.mark.parametrize("make", [ours, gpt2, moe, lambda: ours(tie_word_embeddings=False)])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
def test_weights_come_back_under_whatever_names_and_in_however_many_files_they_were_saved(
    make: Any, max_shard_size: str, tmp_path: Path
) -> None:
    model = trained(make())
    best = [weight.clone() for weight in model.parameters()]
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or max_shard_size == "5GB"
    trained(model)
    reload_weights(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), best, strict=True))


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_weights_that_are_missing_when_the_best_come_back_are_refused(lora: Lora | None, tmp_path: Path) -> None:
    model = load_causal_lm(save(ours(), tmp_path / "base"), lora=lora)
    path = save(model, tmp_path / "best")
    without(path, "layers.1.")
    with pytest.raises(InputError, match=r"expected all weights, 1 are missing \(.*layers\.1\."):
        reload_weights(model, path)


def without(path: Path, part: str) -> None:
    """Take one tensor whose name holds `part` out of the weights at `path`."""
    (file,) = path.glob("*.safetensors")
    weights = load_file(file)
    del weights[next(name for name in weights if part in name)]
    save_file(weights, file, metadata={"format": "pt"})


def test_a_trained_head_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    path = save(trained(load_scalar_model(save(ours(), tmp_path / "base"))), tmp_path / "reward")
    without(path, "score.")
    for options in ({}, {"zero_head": True}, {"trained_as": "--reward"}):
        with pytest.raises(InputError, match=r"expected all weights, 1 are missing \(score\.weight"):
            load_scalar_model(path, **options)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "score"])
def test_an_adapter_that_lacks_tensors_is_refused_by_name(part: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = save(trained(load_scalar_model(save(ours(), tmp_path / "base"), lora=Lora(rank=2))), tmp_path / "reward")
    without(path, part)
    with pytest.raises(InputError, match=rf"--model is .*reward', expected (all weights, 1 are missing|sound weights).*{part}"):
        load_scalar_model(path)
    assert not [warning for warning in recwarn if "missing" in str(warning.message)]  # said once


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"architectures": 3}, "expected a list of names as architectures in its config.json, found 3"),
        ({"architectures": [3]}, "expected a list of names as architectures"),
        ({"architectures": "GPTForCausalLM"}, "expected a list of names as architectures"),
        ({"dtype": "float99"}, "float99"),
        ({"id2label": 3}, "expected a model directory"),
        ({"quantization_config": 3}, "expected a model directory"),
        ({"d_model": "wide"}, "d_model is 'wide'"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x', expected a token's number"),
        (3, "expected a model directory"),
    ],
)
def test_a_config_with_values_of_the_wrong_kind_is_one_error(wrong: Any, said: str, tmp_path: Path) -> None:
    path = save(ours(), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | wrong if isinstance(wrong, dict) else wrong))
    for load in (load_causal_lm, load_scalar_model):
        with pytest.raises(InputError, match=r"^--model is '.*model', ") as error:
            load(path)
        assert said in str(error.value)


def test_a_score_offset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = save(load_scalar_model(save(ours(), tmp_path / "base")), tmp_path / "reward")
    config = json.loads((path / "config.json").read_text()) | {"score_bias": "x"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"score_bias of .*reward is 'x', expected a number"):
        load_scalar_model(path)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    path = save(ours(), tmp_path / "model")
    without(path, "layers.1.")
    for load in (load_causal_lm, load_scalar_model):
        with pytest.raises(InputError, match=r"expected all weights, 1 are missing \(model\.gpt\.layers\.1\."):
            load(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = save(ours(), tmp_path / "model")
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": 24}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="expected sound weights"):
        load_causal_lm(path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_cut_file_is_refused_wherever_it_is_cut(keep: float, tmp_path: Path) -> None:
    path = save(ours(), tmp_path / "model")
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    with pytest.raises(InputError, match=r"--model is .*model', expected sound weights"):
        load_causal_lm(path)


def test_a_cut_adapter_is_refused(tmp_path: Path) -> None:
    model = load_causal_lm(save(ours(), tmp_path / "base"), lora=Lora(rank=2))
    path = save(model, tmp_path / "adapter")
    data = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"--model is .*adapter', expected sound weights"):
        load_causal_lm(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"expected a sound adapter_config\.json"):
        load_causal_lm(path)


def test_the_wrong_kind_of_head_is_named(tmp_path: Path) -> None:
    shape = {"vocab_size": 23, "d_model": 16, "n_layers": 1, "n_heads": 2}
    one = save(GPTForSequenceClassification(GPTConfig(**shape, num_labels=1)), tmp_path / "one")
    with pytest.raises(InputError, match="expected a language model: this one scores texts"):
        load_causal_lm(one)
    with pytest.raises(InputError, match="expected a language model: this one scores texts"):
        load_causal_lm(save(load_scalar_model(one, lora=Lora(rank=2)), tmp_path / "adapter"))
    two = save(GPT2ForSequenceClassification(gpt2().config), tmp_path / "two")
    with pytest.raises(InputError, match=r"num_labels is 2, expected 1"):
        load_scalar_model(two)


class Words(list):
    """A tokenizer as far as its size goes."""


def test_ids_and_positions_that_a_model_lacks_are_refused() -> None:
    for model in (ours(), gpt2(), ours(position="learned")):
        check_fits(model, Words(range(23)), longest=32)
        with pytest.raises(InputError, match=r"tokens of the tokenizer is 24, expected at most the 23 rows"):
            check_fits(model, Words(range(24)))
        with pytest.raises(InputError, match=r"is 33, expected at most 32, the model's positions: lower --max_length"):
            check_fits(model, Words(range(23)), longest=33)


def bloom() -> BloomForCausalLM:
    return BloomForCausalLM(
        BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.5, attention_dropout=0.5)
    )


def falcon() -> FalconForCausalLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return FalconForCausalLM(FalconConfig(vocab_size=23, **sizes, hidden_dropout=0.5, attention_dropout=0.5, alibi=False))


def opt() -> OPTForCausalLM:
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(vocab_size=23, max_position_embeddings=32, **sizes, dropout=0.5, layerdrop=0.5))


@pytest.mark.parametrize("make", [lambda: ours(dropout=0.5), gpt2, bloom, falcon, opt])
def test_dropout_is_off_wherever_a_model_keeps_it_and_in_its_config(make: Any) -> None:
    model = make().train()
    assert not torch.equal(logits_in_training(model), logits_in_training(model))
    disable_dropout(model)
    assert torch.equal(logits_in_training(model), logits_in_training(model))
    kept = {name: value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, float)}
    assert kept
    assert not any(kept.values())


def logits_in_training(model: Any) -> torch.Tensor:
    return model.train()(input_ids=IDS).logits


def test_a_loaded_model_keeps_its_dropout_or_has_none(tmp_path: Path) -> None:
    path = save(ours(dropout=0.5), tmp_path / "model")
    assert load_causal_lm(path).config.dropout == 0.5
    assert load_causal_lm(path, dropout=0.0).config.dropout == 0.0
    assert load_scalar_model(path, dropout=0.0).config.dropout == 0.0
    for load in (load_causal_lm, load_scalar_model):
        with pytest.raises(InputError, match=r"dropout is 0\.1, expected 0 \(off\) or None"):
            load(path, dropout=0.1)


def test_loading_is_quiet_and_leaves_the_settings_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    level = logging.get_verbosity()
    try:
        load_scalar_model(save(ours(), tmp_path / "model"))
        assert capfd.readouterr() == ("", "")
        with pytest.raises(KeyError), quiet():
            raise KeyError
        assert logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == level
    finally:
        logging.disable_progress_bar()
