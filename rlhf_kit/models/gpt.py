"""A decoder-only GPT in pure torch, read top to bottom: options, positions, masks, attention, MLP, block, backbone.

It computes hidden states; the heads stand in `hf.py`. What depends on the batch alone (rotary angles, masks) is built
once a forward and shared by all layers. Query, key and value are separate projections: as fast as a fused one here, split
across devices by heads without a permutation, and named as Llama names them. No `transformers` import: a key-value cache
is anything with `update(keys, values, layer) -> (keys, values)` and `get_seq_length()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhf_kit.errors import InputError

QUERY_BLOCK = 256  # queries a step of `_attend_by_matmul`: keys after the block's end are never multiplied


@dataclass
class GPTOptions:
    """The shape of a GPT and its choices. What is None is derived from the rest by `resolve`."""

    vocab_size: int = 8192
    d_model: int = 384
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int | None = None  # fewer than n_heads: grouped-query attention; None: n_heads
    head_dim: int | None = None  # None: d_model / n_heads
    d_mlp: int | None = None  # None: 4 d_model, for swiglu 8/3 d_model rounded up to a multiple of 64
    max_seq_len: int = 1024  # the longest that the kit's stages and `generate` feed; learned positions have no more
    position: str = "rotary"  # learned | rotary | none
    norm: str = "rmsnorm"  # layernorm | rmsnorm
    norm_place: str = "pre"  # pre: x + f(norm(x)), one more norm at the end; post: norm(x + f(x))
    mlp: str = "swiglu"  # relu: max(0, xW1 + b1)W2 + b2 | gelu (tanh form) | swiglu
    bias: bool = False  # of every Linear and LayerNorm
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0  # on embeddings, attention weights and both residual branches
    init_std: float | None = None  # None: 0.5 / sqrt(d_model), 0.018 at GPT-2's 768; narrow models learn slowly from 0.02

    def resolve(self) -> None:
        """Fill in what is None and check every field.

        Raises:
            InputError: a value that cannot be, named by its field.
        """
        for field in ("vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len"):
            _positive_int(field, getattr(self, field))
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        if self.head_dim is None:
            if self.d_model % self.n_heads:
                raise InputError("n_heads", self.n_heads, f"expected a divisor of d_model ({self.d_model}), or head_dim set")
            self.head_dim = self.d_model // self.n_heads
        if self.d_mlp is None:
            self.d_mlp = -(-8 * self.d_model // 192) * 64 if self.mlp == "swiglu" else 4 * self.d_model
        for field in ("n_kv_heads", "head_dim", "d_mlp"):
            _positive_int(field, getattr(self, field))
        if self.n_heads % self.n_kv_heads:
            raise InputError("n_kv_heads", self.n_kv_heads, f"expected a divisor of n_heads ({self.n_heads})")
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise InputError(field, getattr(self, field), f"expected one of {', '.join(known)}")
        if self.position == "rotary" and self.head_dim % 2:
            raise InputError("head_dim", self.head_dim, "expected an even number: rotary positions turn pairs of features")
        if self.init_std is None:
            self.init_std = 0.5 * self.d_model**-0.5
        for field in ("rope_theta", "norm_eps", "init_std"):
            if not isinstance(getattr(self, field), int | float) or not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "expected a number above 0")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise InputError("dropout", self.dropout, "expected a number from 0 up to, not including, 1")
        if not isinstance(self.bias, bool):
            raise InputError("bias", self.bias, "expected true or false")


_CHOICES = {
    "position": ("learned", "rotary", "none"),
    "norm": ("layernorm", "rmsnorm"),
    "norm_place": ("pre", "post"),
    "mlp": ("relu", "gelu", "swiglu"),
}


def _positive_int(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(field, value, "expected a whole number above 0")


class Cache(Protocol):
    """What attention needs of a key-value cache; `transformers.Cache` and the kit's sampler both have it."""

    def get_seq_length(self) -> int:
        """Number of tokens in the cache."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, hd) and return all of the layer's keys and values, (B, Hkv, S, hd)."""


# --- what every layer of one forward shares -----------------------------------------------------------------------


@dataclass
class Shared:
    """Built once a forward. `mask` is added to the attention scores; None means causal, or nothing to hide (T = 1)."""

    mask: Tensor | None  # (1 or B, 1, T, S), 0 where attention may go and -inf elsewhere
    triangular: bool  # no query looks past its own position, so blocks of queries may drop later keys
    by_matmul: bool
    dtype: torch.dtype  # of the products: autocast's, or the model's
    cos: Tensor | None  # (1 or B, T, H, hd), the same for every head
    sin: Tensor | None  # the same; its first half is negated


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021), in Llama's pairing of feature i with i + hd/2.

    Args:
        position_ids: (B, T) long.
    Returns:
        (B, T, 1, hd) each, computed in fp32 (fp64 if `dtype` is); the first half of the sines is negated, for `rotate`.
    """
    precision = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32).to(precision)
    angles = position_ids[..., None, None].to(precision) * (1.0 / theta ** (steps / head_dim))
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, T, H, hd) by the angles of `rotary_angles`: pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def document_ids(position_ids: Tensor) -> Tensor:
    """(B, T) long: the number of the document each token belongs to; one starts wherever positions do not go on by one."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts.long().cumsum(1)


def visible(T: int, past: int, attention_mask: Tensor | None, documents: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query may see: its own document's valid tokens up to itself.

    Args:
        attention_mask: (B, past + T) bool, True = valid.
        documents: (B, T) long, with past = 0.
    Returns:
        (1 or B, 1, T, past + T) bool. A padded query sees at least itself, so that no softmax is over nothing.
    """
    keys = torch.arange(past + T, device=device)
    queries = keys[past:, None]
    seen = (keys <= queries)[None, None]
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    if attention_mask is not None:
        seen = seen & (attention_mask[:, None, None, :] | (keys == queries))
    return seen


# --- layers -------------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, the mean square in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if x.device.type == "cpu" and x.dtype.itemsize >= 4 and type(x) is Tensor:
            return _RMSNormOnCPU.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """`F.rms_norm` where torch has no kernel for it: three times as fast in training, and only the input is kept.

    The backward is LayerNorm's kernel with a mean of 0, which leaves one term too many: rstd * mean(dy * weight).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
                dy, x, weight.shape, torch.zeros_like(rstd), rstd, weight, None, [True, True, False]
            )
            extra = (dy @ weight).unsqueeze(-1).mul_(rstd).div_(x.shape[-1])
        return dx.add_(extra), dweight, None


class Attention(nn.Module):
    """Causal self-attention with as many key-value heads as `n_kv_heads`."""

    def __init__(self, o: GPTOptions, layer: int) -> None:
        super().__init__()
        assert o.head_dim is not None
        assert o.n_kv_heads is not None
        self.layer, self.head_dim = layer, o.head_dim
        self.q_proj = nn.Linear(o.d_model, o.n_heads * o.head_dim, bias=o.bias)
        self.k_proj = nn.Linear(o.d_model, o.n_kv_heads * o.head_dim, bias=o.bias)
        self.v_proj = nn.Linear(o.d_model, o.n_kv_heads * o.head_dim, bias=o.bias)
        self.o_proj = _into_residual(nn.Linear(o.n_heads * o.head_dim, o.d_model, bias=o.bias))
        self.dropout = nn.Dropout(o.dropout)

    def forward(self, x: Tensor, shared: Shared, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # Heads are counted by -1: under tensor parallelism a device holds only some of them.
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if shared.cos is not None and shared.sin is not None:
            q, k = (rotate(x, shared.cos[:, :, : x.shape[2]], shared.sin[:, :, : x.shape[2]]) for x in (q, k))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, hd)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        dropout = self.dropout.p if self.dropout.training else 0.0
        if shared.by_matmul:
            y = _attend_by_matmul(q, k, v, shared, dropout)
        else:
            causal = shared.mask is None and q.shape[2] > 1
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=shared.mask, dropout_p=dropout, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
            )
        return self.o_proj(y.transpose(1, 2).flatten(2))


def _attend_by_matmul(q: Tensor, k: Tensor, v: Tensor, shared: Shared, dropout: float) -> Tensor:
    """Attention by plain products: on CPU several times faster than the fused kernel in bf16, and for a single query."""
    B, H, T, hd = q.shape
    q = q * hd**-0.5
    if T == 1:  # the queries of a group become the rows of one product, and keys need no copies
        scores = q.view(B, k.shape[1], -1, hd) @ k.transpose(-1, -2)
        scores = scores if shared.mask is None else scores + shared.mask
        return (F.dropout(scores.softmax(-1), dropout) @ v).view(B, H, T, hd)
    assert shared.mask is not None
    if k.shape[1] != H:
        k, v = k.repeat_interleave(H // k.shape[1], 1), v.repeat_interleave(H // v.shape[1], 1)
    S, outputs = k.shape[2], []
    for start in range(0, T, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, T)
        seen = S - T + end if shared.triangular else S
        scores = q[:, :, start:end] @ k[:, :, :seen].transpose(-1, -2)
        scores += shared.mask[..., start:end, :seen]
        outputs.append(F.dropout(scores.softmax(-1), dropout) @ v[:, :, :seen])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


class MLP(nn.Module):
    """The feed-forward layer: relu or gelu between two maps, or SwiGLU (Shazeer 2020), `(silu(xG) * xU)W`."""

    def __init__(self, o: GPTOptions) -> None:
        super().__init__()
        assert o.d_mlp is not None
        self.kind = o.mlp
        if o.mlp == "swiglu":
            self.gate_proj = nn.Linear(o.d_model, o.d_mlp, bias=o.bias)
        self.up_proj = nn.Linear(o.d_model, o.d_mlp, bias=o.bias)
        self.down_proj = _into_residual(nn.Linear(o.d_mlp, o.d_model, bias=o.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        h = self.up_proj(x)
        return self.down_proj(F.relu(h) if self.kind == "relu" else F.gelu(h, approximate="tanh"))


class GPTBlock(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, o: GPTOptions, layer: int) -> None:
        super().__init__()
        self.pre = o.norm_place == "pre"
        self.attn_norm, self.mlp_norm = make_norm(o), make_norm(o)
        self.attn, self.mlp = Attention(o, layer), MLP(o)
        self.dropout = nn.Dropout(o.dropout)
        # `transformers` switches these; `forward` and not the call is checkpointed, so that FSDP's hooks stay outside.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = partial(checkpoint, use_reentrant=False)

    def forward(self, x: Tensor, shared: Shared, cache: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self._compute, x, shared, None)
        return self._compute(x, shared, cache)

    def _compute(self, x: Tensor, shared: Shared, cache: Cache | None) -> Tensor:
        # Under autocast the residual stream and the norms stay in fp32; one cast a branch then serves all its products.
        if self.pre:
            x = x + self.dropout(self.attn(self.attn_norm(x).to(shared.dtype), shared, cache))
            return x + self.dropout(self.mlp(self.mlp_norm(x).to(shared.dtype)))
        x = self.attn_norm(x + self.dropout(self.attn(x.to(shared.dtype), shared, cache)))
        return self.mlp_norm(x + self.dropout(self.mlp(x.to(shared.dtype))))


def make_norm(o: GPTOptions) -> nn.Module:
    """The normalisation `o` asks for."""
    return nn.LayerNorm(o.d_model, eps=o.norm_eps, bias=o.bias) if o.norm == "layernorm" else RMSNorm(o.d_model, o.norm_eps)


def _into_residual(layer: nn.Linear) -> nn.Linear:
    layer.feeds_residual = True  # type: ignore[assignment]  # read by `initialise`
    return layer


def initialise(module: nn.Module, o: GPTOptions) -> None:
    """Initialise one module (not its children), in place; `gpt.apply(partial(initialise, o=options))` does a whole model.

    Weights are normal with `init_std`, biases 0, norms 1. A projection into the residual stream is divided by
    sqrt(2 n_layers): 2 n_layers of them are added up, and so activations and gradients stay bounded at any depth
    (Radford et al. 2019, section 2.3).
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        scale = 1 / math.sqrt(2 * o.n_layers) if getattr(module, "feeds_residual", False) else 1.0
        nn.init.normal_(module.weight, std=(o.init_std or 0.5 * o.d_model**-0.5) * scale)
    elif isinstance(module, nn.LayerNorm | RMSNorm):
        nn.init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class GPT(nn.Module):
    """The backbone: token ids in, hidden states out. Initialise it with `initialise`."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        options.resolve()
        self.options = options
        self.embed_tokens = nn.Embedding(options.vocab_size, options.d_model)
        if options.position == "learned":
            self.embed_positions = nn.Embedding(options.max_seq_len, options.d_model)
        self.dropout = nn.Dropout(options.dropout)
        self.layers = nn.ModuleList(GPTBlock(options, layer) for layer in range(options.n_layers))
        self.norm = make_norm(options) if options.norm_place == "pre" else nn.Identity()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states, (B, T, D), after the last norm.

        Args:
            input_ids: (B, T) long; or `inputs_embeds`, (B, T, D).
            attention_mask: (B, past + T), True or 1 = valid; positions then count valid tokens. A (B or 1, 1, T, S) mask,
                bool or additive, is used as it is; a query that it shows nothing sees everything.
            position_ids: (B, T) long. Without a mask and a past, every restart opens a document that sees only itself.
            cache: keys and values of the `past` tokens; it is extended.
            trace: filled with the input of every layer and the result, n_layers + 1 tensors.
        Raises:
            InputError: neither or both of ids and embeddings; more positions than were learned; a cache in training with
                gradient checkpointing, which would leave it empty.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("input_ids", "given twice" if input_ids is not None else None, "expected ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is not None and self.training and any(block.gradient_checkpointing for block in self.layers):
            mend = "expected none while gradient checkpointing recomputes the layers: leave it out, or call eval() first"
            raise InputError("cache", type(cache).__name__, mend)
        past = cache.get_seq_length() if cache is not None else 0
        shared, positions = self._share(x, past, attention_mask, position_ids)
        if self.options.position == "learned":
            self._check_length(past + x.shape[1], positions)
            x = x + self.embed_positions(positions)
        x = self.dropout(x)
        for block in self.layers:
            if trace is not None:
                trace.append(x)
            x = block(x, shared, cache)
        x = self.norm(x)
        if trace is not None:
            trace.append(x)
        return x

    def _share(self, x: Tensor, past: int, attention_mask: Tensor | None, position_ids: Tensor | None) -> tuple[Shared, Tensor]:
        """What all layers use, and the positions, (1 or B, T)."""
        o, T, device = self.options, x.shape[1], x.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else x.dtype
        by_matmul = device.type == "cpu" and (T == 1 or dtype in (torch.bfloat16, torch.float16))
        ready = attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None
        valid = attention_mask.bool() if attention_mask is not None and ready is None else None
        documents = None
        if position_ids is None:
            if valid is None:
                position_ids = torch.arange(past, past + T, device=device)[None]
            else:
                position_ids = (valid.long().cumsum(1) - 1).clamp_min(0)[:, -T:]
        elif attention_mask is None and past == 0:
            documents = document_ids(position_ids)
            documents = documents if bool((documents[:, -1] > 1).any()) else None
        # Padding on the right alone hides nothing from a causal model: valid queries never reach it.
        if valid is not None and bool(valid.all() if past else (valid[:, 1:] <= valid[:, :-1]).all() & valid[:, 0].all()):
            valid = None
        mask = ready
        plain = valid is None and documents is None
        if ready is None and not (plain and (T == 1 or (past == 0 and not by_matmul))):
            mask = visible(T, past, valid, documents, device)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -math.inf)
        if ready is not None and mask is not None:  # it may hide everything from a padded query, and softmax over nothing is NaN
            mask = mask.to(dtype)
            mask = mask.masked_fill((mask <= torch.finfo(dtype).min).all(-1, keepdim=True), 0.0)
        cos, sin = None, None
        if o.position == "rotary":
            assert o.head_dim is not None
            # One copy a head: on CPU a product over whole rows is faster than one that repeats hd numbers.
            cos, sin = (a.repeat(1, 1, o.n_heads, 1) for a in rotary_angles(position_ids, o.head_dim, o.rope_theta, dtype))
        return Shared(mask, ready is None, by_matmul, dtype, cos, sin), position_ids

    def _check_length(self, length: int, positions: Tensor) -> None:
        limit = self.options.max_seq_len
        if length > limit and (last := int(positions.max()) + 1) > limit:
            raise InputError("sequence length", last, f"expected at most max_seq_len = {limit}: cut it, or use rotary positions")
