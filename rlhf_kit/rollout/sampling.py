"""One token a row from a row of logits: by inverse CDF, with its log-probability, in one pass over the vocabulary.

`torch.multinomial` draws V exponentials a row and costs more than the model's head; this needs one uniform number a
row, which also makes a draw depend on nothing but that number and the row's own logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 64


def wide_dtype(device: torch.device) -> torch.dtype:
    """What running sums are held in: float64, which Apple's MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices distributed as `weights`, by inverse CDF in two levels: find the block of 64, then the entry in it.

    A float32 running sum over 50,000 entries would lose every small one; here sums are short or in float64, and a
    comparison is strict, so that an entry of weight 0 cannot be drawn.

    Args:
        weights: (N, V) float32, not negative, each row with a positive sum.
        uniform: (N,) in [0, 1), `wide_dtype` of the device.
    Returns:
        indices (N,) long and the rows' sums (N,), both sums in that dtype.
    """
    wide = wide_dtype(weights.device)
    below = 1 - torch.finfo(wide).eps
    missing = -weights.shape[1] % _BLOCK
    blocks = (F.pad(weights, (0, missing)) if missing else weights).unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(-1).to(wide)
    edges = sums.cumsum(1)
    total = edges[:, -1]
    below_one = uniform * below  # u * total may otherwise round up to total
    target = (below_one * total).unsqueeze(1)
    block = torch.searchsorted(edges, target, right=True)
    size = sums.gather(1, block)
    fraction = ((target - edges.gather(1, block) + size) / size).clamp(0, below)
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].to(wide).cumsum(1)
    entry = torch.searchsorted(inner, fraction * inner[:, -1:], right=True)
    return (block * _BLOCK + entry)[:, 0], total


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf outside the `top_k` largest and outside the smallest set that holds probability `top_p` (Holtzman et al. 2020).

    Args:
        logits: (N, V) float, already divided by the temperature.
        top_k: 0 keeps all. Ties with the k-th stay.
        top_p: 1 keeps all.
    """
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the mass before an entry; the first is always inside
        logits = logits.masked_fill(outside.scatter(1, index, outside), -torch.inf)
    return logits


def sample(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sample a token a row, with its log-probability under the distribution it was sampled from.

    That distribution is `log_softmax(z / (T + 1e-7))`, the one the update computes again; with `top_k` or `top_p` it is
    the truncated one. `temperature=0` takes the most likely token, with its log-probability at temperature 1.

    Args:
        logits: (N, V) float32; may be overwritten.
        uniform: (N,) in [0, 1), `wide_dtype` of the device.
    Returns:
        tokens (N,) long, logprobs (N,) float32.
    """
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(1, tokens.unsqueeze(1))[:, 0] - logits.logsumexp(-1)
    if temperature != 1.0:
        logits = logits.div_(temperature + 1e-7)
    if top_k or top_p < 1.0:
        logits = truncate(logits, top_k, top_p)
    logits = logits.sub_(logits.amax(-1, keepdim=True))
    tokens, total = draw(logits.exp(), uniform)
    return tokens, (logits.gather(1, tokens.unsqueeze(1))[:, 0].to(total.dtype) - total.log()).float()
