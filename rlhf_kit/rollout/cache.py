"""A key/value cache that writes in place, and lets rows leave the batch for the price of the holes they make.

`transformers`' `DynamicCache` copies every key and value of every layer at every step. Here each layer owns a buffer
that is a few positions longer than what it holds and grows by a block at a time; `update` writes in place. Attention
gets the whole buffer, with a mask over the part that is still empty: on CPU a batched product reads a contiguous
tensor 2-3 times as fast as a view with gaps. Models whose layers need something else than plain attention (sliding
windows, recurrent states, kernels that take no mask) get the cache that transformers builds from their config.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

_BLOCK = 32  # positions: the copy at each growth is then a small part of what attention reads in between


def padded_length(length: int) -> int:
    """The positions that a `BlockLayer` holding `length` hands to attention."""
    return -(-length // _BLOCK) * _BLOCK


class BlockLayer(CacheLayerMixin):
    """One attention layer's keys and values, (B, H, padded_length(T), D) contiguous; zeros from T on."""

    is_sliding = False
    supports_early_init = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty buffers for the batch and heads of the first keys and values, in the dtype that attention will use."""
        self.device = key_states.device
        kind = self.device.type
        # Rotary embeddings leave float32 keys under autocast, which attention would cast again at every step.
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else key_states.dtype
        self.keys, self.values = (
            torch.empty(*states.shape[:2], 0, states.shape[-1], dtype=self.dtype, device=self.device)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, t, D) keys and values. Returns those of the first call as they are, later the whole buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        missing = padded_length(self.length) - self.keys.shape[2]
        if missing > 0:
            self.keys, self.values = F.pad(self.keys, (0, 0, 0, missing)), F.pad(self.values, (0, 0, 0, missing))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return (key_states, value_states) if start == 0 else (self.keys, self.values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make row i what row `indices[i]` was. Where rows become fewer, those that stay in place are not copied."""
        if len(indices) > len(self.keys):
            self.keys, self.values = self.keys[indices], self.values[indices]
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for buffer in (self.keys, self.values):
            buffer[moved] = buffer[indices[moved]]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that the next `query_length` queries get, offset of the first)."""
        return (padded_length(self.length + query_length) if self.length else query_length), 0

    def get_seq_length(self) -> int:
        """Positions cached so far."""
        return self.length

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1


class BlockCache(Cache):
    """A `transformers` cache of `BlockLayer`s. After the first call attention needs a mask of `padded_length` keys."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BlockLayer)


def make_cache(config: Any) -> Cache:
    """The fastest cache that a model of `config` can use: ours for masked full attention, else transformers' own."""
    own = DynamicCache(config=config)
    takes_mask = config._attn_implementation == "sdpa" and not getattr(config, "alibi", False)
    return BlockCache() if takes_mask and all(type(layer) is DynamicLayer for layer in own.layers) else own


def select_rows(cache: Cache, indices: Tensor) -> None:
    """Make row i of every layer what row `indices[i]` was; fewer or more rows than before are both fine."""
    for layer in cache.layers:
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(indices)
        else:  # recurrent states have no selection, but can be reordered, which is one
            layer.reorder_cache(indices)  # type: ignore[arg-type]
