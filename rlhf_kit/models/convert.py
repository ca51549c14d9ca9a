"""Import from and export to the `transformers` layouts our GPT shares: GPT-2 and Llama, by renaming.

GPT-2 is learned positions, LayerNorm, gelu or relu, biases; Llama is rotary positions, RMSNorm, SwiGLU, grouped-query
attention. Both ways, for causal LMs and linear heads, the logits stay the same, except that a reward model's `score_bias`
is added by ours alone: it travels in the config, and export warns of it. A choice that the other side has no place for is
refused by its name.
"""

from __future__ import annotations

import logging
import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification

logger = logging.getLogger(__name__)

# Ours -> theirs, longest first; what matches nothing (`lm_head`, `score`) keeps its name.
_LLAMA_NAMES = {
    "model.gpt.embed_tokens": "model.embed_tokens",
    "model.gpt.layers": "model.layers",
    "model.gpt.norm": "model.norm",
    ".attn_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attn.": ".self_attn.",
}
_GPT2_NAMES = {
    "model.gpt.embed_tokens": "transformer.wte",
    "model.gpt.embed_positions": "transformer.wpe",
    "model.gpt.layers": "transformer.h",
    "model.gpt.norm": "transformer.ln_f",
    ".attn_norm.": ".ln_1.",
    ".mlp_norm.": ".ln_2.",
    ".attn.o_proj.": ".attn.c_proj.",
    ".mlp.up_proj.": ".mlp.c_fc.",
    ".mlp.down_proj.": ".mlp.c_proj.",
}
_GPT2_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
_COMMON = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id")


def from_transformers(model: PreTrainedModel) -> GPTForCausalLM | GPTForSequenceClassification:
    """Our model with the weights (copied, same dtype) and logits of a GPT-2 or a Llama, plus the config's `score_bias` if any.

    Args:
        model: `GPT2LMHeadModel`, `LlamaForCausalLM` or either's `ForSequenceClassification`, as loaded.
    Raises:
        InputError: another architecture, or an option that our GPT does not have.
    """
    kind = type(model)
    if kind in (GPT2LMHeadModel, GPT2ForSequenceClassification):
        config, state = _options_of_gpt2(model.config), _weights_from_gpt2(model.state_dict())
    elif kind in (LlamaForCausalLM, LlamaForSequenceClassification):
        config, state = _options_of_llama(model.config), _rename(model.state_dict(), {b: a for a, b in _LLAMA_NAMES.items()})
    else:
        mend = "expected a GPT-2 or Llama causal LM or sequence classifier: other layouts are not known"
        raise InputError("model.architecture", kind.__name__, mend)
    config |= {name: getattr(model.config, name) for name in _COMMON}
    config |= {"dtype": model.dtype, "score_bias": getattr(model.config, "score_bias", 0.0)}
    causal = kind in (GPT2LMHeadModel, LlamaForCausalLM)
    ours = GPTForCausalLM if causal else GPTForSequenceClassification
    return _filled(ours(GPTConfig(**config)), state, like=model)


def to_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """The same model as a plain `transformers` GPT-2 or Llama (weights copied), for engines that do not know ours.

    A `score_bias` shifts all scores alike and changes no order; the exported model keeps it in its config and does not add
    it, which a warning says.

    Args:
        model: `GPTForCausalLM` or `GPTForSequenceClassification`.
    Raises:
        InputError: another model, or a choice that neither layout has.
    """
    if not isinstance(model, GPTForCausalLM | GPTForSequenceClassification):
        mend = "expected the kit's own GPT (merge LoRA adapters first)"
        raise InputError("model.architecture", type(model).__name__, mend)
    o = model.config
    causal = isinstance(model, GPTForCausalLM)
    common = {name: getattr(o, name) for name in _COMMON} | {"score_bias": o.score_bias}
    if o.score_bias:
        logger.warning("config.score_bias is %g, which the exported model does not add: add it to its scores", o.score_bias)
    theirs: PreTrainedModel
    if o.position == "learned":
        layout, state = GPT2Config(**_gpt2_options(o), **common), _weights_to_gpt2(model.state_dict())
        theirs = GPT2LMHeadModel(layout) if causal else GPT2ForSequenceClassification(layout)
    else:
        llama, state = LlamaConfig(**_llama_options(o), **common), _rename(model.state_dict(), _LLAMA_NAMES)
        theirs = LlamaForCausalLM(llama) if causal else LlamaForSequenceClassification(llama)
    return _filled(theirs, state, like=model)


def _filled(new: Any, state: dict[str, Tensor], like: PreTrainedModel) -> Any:
    """`new` with the weights `state`, on the device, in the dtype and mode of `like`."""
    new = new.to(device=like.device, dtype=like.dtype)
    new.load_state_dict(state)
    new.tie_weights()
    if new.can_generate() and like.generation_config is not None:
        new.generation_config = deepcopy(like.generation_config)
    return new.train(like.training)


# --- options ------------------------------------------------------------------------------------------------------


def _options_of_llama(c: Any) -> dict[str, Any]:
    rope = c.rope_parameters
    _require("config.rope_parameters['rope_type']", rope.get("rope_type", "default"), "default")
    _require("config.rope_parameters['partial_rotary_factor']", rope.get("partial_rotary_factor", 1.0), 1.0)
    _require("config.hidden_act", c.hidden_act, "silu")
    _require("config.mlp_bias", c.mlp_bias, c.attention_bias)
    _require("config.attention_dropout", c.attention_dropout, 0.0)
    return {
        "d_model": c.hidden_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "d_mlp": c.intermediate_size,
        "max_seq_len": c.max_position_embeddings,
        "position": "rotary",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "bias": c.attention_bias,
        "rope_theta": rope["rope_theta"],
        "norm_eps": c.rms_norm_eps,
        "init_std": c.initializer_range,
    }


def _llama_options(o: GPTConfig) -> dict[str, Any]:
    _require("config.position", o.position, "rotary")
    _require("config.norm", o.norm, "rmsnorm")
    _require("config.norm_place", o.norm_place, "pre")
    _require("config.mlp", o.mlp, "swiglu")
    _require("config.dropout", o.dropout, 0.0)
    return {
        "hidden_size": o.d_model,
        "num_hidden_layers": o.n_layers,
        "num_attention_heads": o.n_heads,
        "num_key_value_heads": o.n_kv_heads,
        "head_dim": o.head_dim,
        "intermediate_size": o.d_mlp,
        "max_position_embeddings": o.max_seq_len,
        "attention_bias": o.bias,
        "mlp_bias": o.bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": o.rope_theta},
        "rms_norm_eps": o.norm_eps,
        "initializer_range": o.init_std,
    }


def _options_of_gpt2(c: Any) -> dict[str, Any]:
    if c.activation_function not in _GPT2_ACTIVATIONS:
        raise InputError("config.activation_function", c.activation_function, f"expected one of {', '.join(_GPT2_ACTIVATIONS)}")
    _require("config.scale_attn_weights", c.scale_attn_weights, True)
    _require("config.scale_attn_by_inverse_layer_idx", c.scale_attn_by_inverse_layer_idx, False)
    _require("config.add_cross_attention", c.add_cross_attention, False)
    _require("config.attn_pdrop", c.attn_pdrop, c.resid_pdrop)
    _require("config.embd_pdrop", c.embd_pdrop, c.resid_pdrop)
    return {
        "d_model": c.n_embd,
        "n_layers": c.n_layer,
        "n_heads": c.n_head,
        "d_mlp": c.n_inner,
        "max_seq_len": c.n_positions,
        "position": "learned",
        "norm": "layernorm",
        "mlp": _GPT2_ACTIVATIONS[c.activation_function],
        "bias": True,
        "norm_eps": c.layer_norm_epsilon,
        "dropout": c.resid_pdrop,
        "init_std": c.initializer_range,
    }


def _gpt2_options(o: GPTConfig) -> dict[str, Any]:
    _require("config.position", o.position, "learned")
    _require("config.norm", o.norm, "layernorm")
    _require("config.norm_place", o.norm_place, "pre")
    _require("config.bias", o.bias, True)
    _require("config.n_kv_heads", o.n_kv_heads, o.n_heads)
    _require("config.head_dim", o.head_dim, o.d_model / o.n_heads)
    activations = {ours: theirs for theirs, ours in _GPT2_ACTIVATIONS.items() if theirs != "gelu_pytorch_tanh"}
    if o.mlp not in activations:
        raise InputError("config.mlp", o.mlp, f"expected one of {', '.join(activations)}: GPT-2 has no other")
    return {
        "n_embd": o.d_model,
        "n_layer": o.n_layers,
        "n_head": o.n_heads,
        "n_inner": o.d_mlp,
        "n_positions": o.max_seq_len,
        "activation_function": activations[o.mlp],
        "layer_norm_epsilon": o.norm_eps,
        "resid_pdrop": o.dropout,
        "embd_pdrop": o.dropout,
        "attn_pdrop": o.dropout,
        "initializer_range": o.init_std,
    }


def _require(field: str, value: object, expected: object) -> None:
    if value != expected:
        raise InputError(field, value, f"expected {expected!r}: the other layout has no place for anything else")


# --- weights ------------------------------------------------------------------------------------------------------


def _rename(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    pattern = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
    return {pattern.sub(lambda found: names[found[0]], name): weight for name, weight in state.items()}


def _weights_from_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names changed, the (in, out) matrices of Conv1D transposed, the fused query-key-value map parted in three."""
    out = {}
    for name, weight in _rename(state, {theirs: ours for ours, theirs in _GPT2_NAMES.items()}).items():
        weight = weight.T if re.search(r"\.(c_attn|[a-z]+_proj)\.weight$", name) else weight
        if ".c_attn." in name:
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True):
                out[name.replace("c_attn", part)] = rows
        else:
            out[name] = weight
    return out


def _weights_to_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_weights_from_gpt2`."""
    out = {}
    for name, weight in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue  # taken along with the query
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            name, weight = name.replace("q_proj", "c_attn"), torch.cat(parts)
        is_map = re.search(r"\.(c_attn|[a-z]+_proj)\.weight$", name)
        out[name] = weight.T if is_map else weight
    return _rename(out, _GPT2_NAMES)
