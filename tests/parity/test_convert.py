"""Our GPT against GPT-2 and Llama of `transformers`: equal logits and gradients, both ways, and refusals by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from rlhf_kit.errors import InputError
from rlhf_kit.models import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.convert import from_transformers, to_transformers

TOKENS: dict[str, Any] = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2(head: type[PreTrainedModel] = GPT2LMHeadModel, **fields: Any) -> PreTrainedModel:
    return _random(head(GPT2Config(**TOKENS, **({"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24} | fields))))


def llama(head: type[PreTrainedModel] = LlamaForCausalLM, **fields: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
    return _random(head(LlamaConfig(**TOKENS, **(shape | {"num_key_value_heads": 2, "max_position_embeddings": 24} | fields))))


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """Weights, biases and norms all away from their defaults, so that none can be left out or exchanged unseen."""
    for weight in model.parameters():
        nn.init.normal_(weight, mean=0.1 if weight.dim() == 1 else 0.0, std=0.2)
    return model.eval()


LAYOUTS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gpt2, inner size": lambda: gpt2(n_inner=40),
    "gpt2, relu": lambda: gpt2(activation_function="relu"),
    "gpt2, separate head": lambda: gpt2(tie_word_embeddings=False),
    "gpt2, scalar head": lambda: gpt2(GPT2ForSequenceClassification, num_labels=1),
    "llama": llama,
    "llama, all key-value heads": lambda: llama(num_key_value_heads=4),
    "llama, tied head": lambda: llama(tie_word_embeddings=True),
    "llama, head size": lambda: llama(head_dim=12),
    "llama, theta and eps": lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=0.01),
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, scalar head": lambda: llama(LlamaForSequenceClassification, num_labels=1),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", list(LAYOUTS))


def _padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, a mask with left padding, and the positions transformers has to be told."""
    ids = torch.randint(3, 61, (3, 11))
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[0, :4], mask[2, :7] = 0, 0
    return ids.masked_fill(mask == 0, 0), mask, (mask.cumsum(1) - 1).clamp_min(0)


@EVERY_LAYOUT
def test_an_imported_model_has_the_same_logits_in_fp64_to_rounding(layout: str) -> None:
    theirs = LAYOUTS[layout]().double()
    ours = from_transformers(theirs)
    assert ours.dtype == torch.float64
    ids, mask, position_ids = _padded()
    a, b = ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask, position_ids=position_ids).logits
    if a.dim() == 3:
        a, b = a[mask.bool()], b[mask.bool()]
    # Llama computes its rotary angles and norms in fp32 whatever the model's dtype.
    tolerance = 1e-6 if "llama" in layout else 1e-12
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@EVERY_LAYOUT
def test_an_imported_model_has_the_same_logits_and_gradients_in_fp32(layout: str) -> None:
    theirs = LAYOUTS[layout]()
    ours = from_transformers(theirs)
    ids = torch.randint(3, 61, (2, 9))
    a, b = ours(ids, attention_mask=torch.ones_like(ids)).logits, theirs(ids).logits
    assert (a - b).abs().max() <= 1e-6 * b.abs().max()
    for out in (a, b):
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    ga, gb = ours.get_input_embeddings().weight.grad, theirs.get_input_embeddings().weight.grad
    assert (ga - gb).abs().max() <= 1e-5 * gb.abs().max()  # type: ignore[operator, union-attr]  # sums over more terms


@EVERY_LAYOUT
def test_export_is_the_exact_inverse_of_import(layout: str, tmp_path: Path) -> None:
    theirs = LAYOUTS[layout]()
    theirs.config.score_bias = 0.75
    back = to_transformers(from_transformers(theirs))
    assert type(back) is type(theirs)
    assert all(torch.equal(back.state_dict()[name], weight) for name, weight in theirs.state_dict().items())
    ours, original = back.config.to_dict(), theirs.config.to_dict()
    differing = {key for key in original if original[key] != ours.get(key) and key not in ("n_inner", "architectures", "dtype")}
    assert differing == set()
    back.save_pretrained(tmp_path)
    ids = torch.randint(3, 61, (2, 9))
    # Loaded weights lie elsewhere in memory, which may change the order of a sum.
    torch.testing.assert_close(type(back).from_pretrained(tmp_path)(ids).logits, theirs(ids).logits, rtol=1e-6, atol=1e-6)


def test_a_model_born_here_exports_and_comes_back() -> None:
    ids = torch.randint(3, 61, (2, 9))
    gpt2_like = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True}
    for fields in ({}, {"n_kv_heads": 1}, {"tie_word_embeddings": False}, gpt2_like, gpt2_like | {"mlp": "relu"}):
        small = TOKENS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 24, "init_std": 0.2}
        model = GPTForCausalLM(GPTConfig(**(small | fields))).eval()
        theirs = to_transformers(model)
        logits = model(ids).logits
        assert (theirs(ids).logits - logits).abs().max() <= 1e-6 * logits.abs().max()
        assert torch.equal(from_transformers(theirs)(ids).logits, logits)
        assert theirs.config.eos_token_id == 2
        tied = theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight
        assert tied == model.config.tie_word_embeddings


def test_generation_continues_as_before_the_conversion(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.generation_config.max_new_tokens = 12
    ours, prompt = from_transformers(theirs), torch.tensor([[1, 5, 9]])
    assert ours.generation_config.max_new_tokens == 12
    assert torch.equal(ours.generate(prompt, do_sample=False), theirs.generate(prompt, do_sample=False))


def test_a_score_offset_travels_along_and_its_export_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    theirs = llama(LlamaForSequenceClassification, num_labels=1)
    theirs.config.score_bias = -2.0
    ours, ids = from_transformers(theirs), torch.randint(3, 61, (2, 6))
    assert isinstance(ours, GPTForSequenceClassification)
    torch.testing.assert_close(ours(ids, attention_mask=torch.ones_like(ids)).logits, theirs(ids).logits - 2.0)
    assert not caplog.text
    assert torch.equal(to_transformers(ours)(ids).logits, theirs(ids).logits)  # the layout has no place for it
    assert "config.score_bias is -2, which the exported model does not add" in caplog.text


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: gpt2(activation_function="gelu"), "config.activation_function"),
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "config.scale_attn_by_inverse_layer_idx"),
        (lambda: gpt2(scale_attn_weights=False), "config.scale_attn_weights"),
        (lambda: gpt2(attn_pdrop=0.3), "config.attn_pdrop"),
        (
            lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            r"config.rope_parameters\['rope",
        ),
        (lambda: llama(hidden_act="gelu"), "config.hidden_act"),
        (lambda: llama(mlp_bias=True), "config.mlp_bias"),
        (lambda: llama(attention_dropout=0.1), "config.attention_dropout"),
        (lambda: MistralForCausalLM(MistralConfig(**TOKENS, hidden_size=64, num_hidden_layers=1)), "model.architecture"),
    ],
)
def test_what_our_gpt_does_not_have_is_refused_by_name_on_import(build: Callable[[], PreTrainedModel], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}"):
        from_transformers(build())


GPT2_CHOICES = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"position": "none"}, "config.position"),
        ({"norm": "layernorm"}, "config.norm"),
        ({"norm_place": "post"}, "config.norm_place"),
        ({"mlp": "relu"}, "config.mlp"),
        ({"dropout": 0.1}, "config.dropout"),
        (GPT2_CHOICES | {"norm": "rmsnorm"}, "config.norm"),
        (GPT2_CHOICES | {"norm_place": "post"}, "config.norm_place"),
        (GPT2_CHOICES | {"mlp": "swiglu"}, "config.mlp"),
        (GPT2_CHOICES | {"bias": False}, "config.bias"),
        (GPT2_CHOICES | {"n_kv_heads": 1}, "config.n_kv_heads"),
        (GPT2_CHOICES | {"head_dim": 4}, "config.head_dim"),
    ],
)
def test_what_neither_layout_has_is_refused_by_name_on_export(fields: dict[str, Any], field: str) -> None:
    model = GPTForCausalLM(GPTConfig(**(TOKENS | {"d_model": 32, "n_layers": 1, "n_heads": 4} | fields)))
    with pytest.raises(InputError, match=f"^{field} is "):
        to_transformers(model)


def test_only_our_own_models_are_exported() -> None:
    with pytest.raises(InputError, match=r"model.architecture is 'LlamaForCausalLM'"):
        to_transformers(llama())
