"""Faster CPU decoding of any model: weights packed once a rollout, attention of few queries by batched products.

While `fast_kernels` is open, linear layers go to oneDNN with a weight that is already laid out, cast to autocast's
dtype and merged with its LoRA adapter; models that take their attention from transformers' interface get `attention`,
where the library's kernel is 2-8 times slower. Results are those of the plain operations up to rounding. No parameter
is touched, and everything is as before once it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from rlhf_kit.models.access import unwrap

_NAME = "rlhf_kit_decoding"  # in transformers' attention interface
_WORTH_PACKING = 512  # tokens: below this a rollout does not earn back the packing
_FEW_QUERIES = 16
_SCORES_AT_ONCE = 1 << 21


@contextmanager
def fast_kernels(model: nn.Module, tokens: int) -> Iterator[None]:
    """Run `model` fast without gradients on this machine while open; off the CPU, or without oneDNN, nothing changes.

    Args:
        model: any module; its weights must not change while this is open.
        tokens: about how many tokens will pass, to tell whether packing pays.
    """
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if not on_cpu or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        yield
        return
    config = unwrap(model).config
    replace_attention = config._attn_implementation == "sdpa"
    patched = _pack(model) if tokens >= _WORTH_PACKING else []
    try:
        if replace_attention:
            AttentionInterface.register(_NAME, _interface)
            AttentionMaskInterface.register(_NAME, sdpa_mask)
            config._attn_implementation = _NAME
        yield
    finally:
        if replace_attention:
            config._attn_implementation = "sdpa"
        for module in patched:
            module.__dict__.pop("forward", None)


# --- linear layers ------------------------------------------------------------------------------------------------


def _pack(model: nn.Module) -> list[nn.Module]:
    """Give every linear layer on plain weights a `forward` on packed ones; returns those that got one."""
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    patched: list[nn.Module] = []
    inside: set[nn.Module] = set()  # layers that an already patched LoRA layer would call
    for module in model.modules():
        found = None if module in inside or "forward" in module.__dict__ else _matrix(module)
        if found is None:
            continue
        weight, bias = found
        dtype = cast or weight.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            continue
        with torch.autocast("cpu", enabled=False):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())
        module.forward = _packed_forward(packed, None if bias is None else bias.to(dtype), dtype)
        patched.append(module)
        inside.update(module.modules())
    return patched


def _packed_forward(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x.to(dtype), weight, bias, "none", [], "")


def _matrix(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """What `module` multiplies by, as `(weight (out, in), bias)`; None unless it is a plain linear map."""
    if type(module) is nn.Linear:
        return (module.weight.detach(), module.bias) if type(module.weight) is nn.Parameter else None
    if type(module) is Conv1D:
        return module.weight.detach().t(), module.bias
    if not hasattr(module, "get_delta_weight") or not hasattr(module, "lora_A"):
        return None
    layer: Any = module
    base = _matrix(layer.base_layer)
    active = [] if layer.merged or layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    if base is None or any(name in layer.lora_variant or layer.lora_B[name].bias is not None for name in active):
        return None
    weight, bias = base
    with torch.autocast("cpu", enabled=False):
        for name in active:
            delta = layer.get_delta_weight(name).detach()
            weight = weight + (delta.t() if type(layer.base_layer) is Conv1D else delta)
    return weight, bias


# --- attention ----------------------------------------------------------------------------------------------------


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`attention` as transformers calls it: returns (B, T, H, D)."""
    special = kwargs.get("dropout") or any(kwargs.get(name) is not None for name in ("position_bias", "is_causal", "softcap"))
    headwise = attention_mask is not None and attention_mask.shape[1] != 1
    causal = attention_mask is None and query.shape[2] > 1
    if special or headwise or not getattr(module, "is_causal", True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return attention(query, key, value, attention_mask, is_causal=causal, scale=kwargs.get("scaling")).transpose(1, 2), None


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, is_causal: bool, scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention, by batched products where that is faster: few queries, or bf16.

    Args:
        query: (B, H, T, D).
        key, value: (B, K, S, D), with H a multiple of K.
        mask: (B or 1, 1, T, S) bool, True = attend, or additive; None with `is_causal` for the usual triangle.
    Returns:
        (B, H, T, D), in autocast's dtype if there is one.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    rows, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    if queries > _FEW_QUERIES and query.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=groups > 1)
    if is_causal:
        mask = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril_()[None, None]
    if groups > 1 and queries == 1:  # the queries of a group become the rows of one product, and keys need no copies
        query = query.view(rows, key.shape[1], groups, width)
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query = query * (width**-0.5 if scale is None else scale)
    step = max(1, _SCORES_AT_ONCE // (heads * queries * key.shape[2]))
    if step >= rows:
        out = _attend(query, key, value, mask)
    else:
        masks = (None,) * rows if mask is None else mask.expand(rows, *mask.shape[1:]).split(step)
        parts = zip(query.split(step), key.split(step), value.split(step), masks)
        out = torch.cat([_attend(*part) for part in parts])
    return out.view(rows, heads, queries, -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2))
    if mask is not None and mask.dtype is torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)
