"""Faster CPU kernels for decoding, under any model: weights packed once a rollout, small attention by batched products.

Two operations of a forward pass are replaced while `fast_kernels` is open, whichever module calls them:
`linear` on a known weight goes to oneDNN with the weight already laid out (and, under autocast, already cast), and
`scaled_dot_product_attention` of few queries becomes two batched products, where the library's kernel is 2-8x slower.
The model itself is not touched. Results are those of the plain operations up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

_WORTH_PACKING = 512  # tokens: below this a rollout does not earn back the packing
_FEW_QUERIES = 16
_SCORES_AT_ONCE = 1 << 21


class _Kernels(TorchFunctionMode):
    """Sends `linear`, `addmm` and attention to the fast twins; everything else passes."""

    def __init__(self, packed: dict[int, tuple[Tensor, Tensor, torch.dtype]]) -> None:
        super().__init__()
        self.packed = packed  # id(weight) -> (the weight, kept alive so that the id stays its own; packed; dtype)
        self.twins: dict[Callable, Callable] = {
            F.linear: self.linear,
            torch.addmm: self.addmm,
            F.scaled_dot_product_attention: attention,
        }

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.twins.get(func, func)(*args, **(kwargs or {}))

    def _packed_linear(self, x: Tensor, entry: tuple[Tensor, Tensor, torch.dtype], bias: Tensor | None) -> Tensor:
        _, weight, dtype = entry
        if bias is not None and bias.dtype is not dtype:
            bias = bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "")

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        entry = self.packed.get(id(weight))
        return F.linear(x, weight, bias) if entry is None else self._packed_linear(x, entry, bias)

    def addmm(self, bias: Tensor, x: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
        entry = self.packed.get(id(weight))
        return torch.addmm(bias, x, weight, **kwargs) if entry is None or kwargs else self._packed_linear(x, entry, bias)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by batched products where that is faster: few queries, or bf16.

    Args:
        query: (B, H, T, D); key, value: (B, H, S, D); attn_mask: bool (True = attend) or additive, broadcastable.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)  # a view that is in it already stays itself
    few = query.shape[-2] <= _FEW_QUERIES and not is_causal
    if query.dim() != 4 or dropout_p or enable_gqa or not (few or query.dtype is torch.bfloat16):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    rows, heads, queries, width = query.shape
    if is_causal:
        attn_mask = torch.ones(queries, key.shape[-2], dtype=torch.bool, device=query.device).tril()
    query = query * (width**-0.5 if scale is None else scale)
    step = max(1, _SCORES_AT_ONCE // (heads * queries * key.shape[-2]))
    if step >= rows:
        return _attend(query, key, value, attn_mask)
    each = attn_mask is not None and attn_mask.dim() == 4 and len(attn_mask) == rows
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    return torch.cat([_attend(query[p], key[p], value[p], attn_mask[p] if each else attn_mask) for p in parts])  # type: ignore[index]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2))
    if mask is not None and mask.dtype is torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)


def _pack(model: nn.Module, cast: torch.dtype | None) -> dict[int, tuple[Tensor, Tensor, torch.dtype]]:
    """Every CPU matrix weight of the model in oneDNN's layout, by the id of the weight."""
    packed: dict[int, tuple[Tensor, Tensor, torch.dtype]] = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        weight = module.weight
        dtype = cast or weight.dtype
        usable = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
        if id(weight) in packed or not usable or dtype not in (torch.float32, torch.bfloat16):
            continue
        matrix = weight.detach().to(dtype)
        matrix = matrix.t().contiguous() if isinstance(module, Conv1D) else matrix.contiguous()
        packed[id(weight)] = (weight, torch.ops.mkldnn._reorder_linear_weight(matrix, None), dtype)
    return packed


@contextmanager
def fast_kernels(model: nn.Module, tokens: int) -> Iterator[None]:
    """Decode `model` fast on this machine while open; on other devices, or without oneDNN, nothing changes.

    Args:
        model: any module; its weights must not change while this is open.
        tokens: about how many tokens will be decoded, to tell whether packing pays.
    """
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if not on_cpu or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        yield
        return
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    packed = _pack(model, cast) if tokens >= _WORTH_PACKING else {}
    with _Kernels(packed):
        yield
