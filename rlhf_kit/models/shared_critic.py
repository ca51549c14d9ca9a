"""A critic that is a head on the policy: one linear map of its last hidden states, and the same as a model of its own.

One trunk learns both to write and to judge (Ziegler et al. 2019), which saves a model's memory and a forward; what the
value loss does to the trunk it does to the policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_kit.models.access import output_head, scalar_head
from rlhf_kit.models.loading import load_scalar_model


def shared_critic(policy: nn.Module) -> nn.Linear:
    """A head (D -> 1, with bias) for the hidden states of `policy`, all zero: before it has learned, every value is 0.

    Raises:
        InputError: a policy whose hidden states are not what its output head reads (see `output_head`).
    """
    weight, _ = output_head(policy)
    head = nn.Linear(weight.shape[1], 1, device=weight.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def standalone_critic(head: nn.Module, path: str | Path) -> Any:
    """The scalar-head model whose values are those of `head` on the policy saved at `path` (its adapter merged, if it is one).

    The head's bias becomes the config's `score_bias`, because scalar heads of `transformers` have none.

    Raises:
        InputError: nothing loadable at `path`, or a language model without a class that has a scalar head.
    """
    assert isinstance(head, nn.Linear)
    critic = load_scalar_model(path, zero_head=True)
    with torch.no_grad():
        scalar_head(critic).weight.copy_(head.weight)
    critic.config.score_bias = float(head.bias)
    return critic
