"""A critic that is a head on the policy: one linear map of its last hidden states, and the same as a model of its own.

One trunk learns both to write and to judge (Ziegler et al. 2019), which saves a model's memory and a forward; what the
value loss does to the trunk it does to the policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rlhf_kit.errors import InputError
from rlhf_kit.models.access import output_head, scalar_head, unwrap
from rlhf_kit.models.loading import load_scalar_model


def shared_critic(policy: nn.Module) -> nn.Linear:
    """A head (D -> 1, with bias) for the hidden states of `policy`, all zero: before it has learned, every value is 0.

    Raises:
        InputError: a policy whose hidden states are not what its output head reads (see `output_head`), or whose critic could
            not be saved, because its architecture has no class with a scalar head.
    """
    weight, _ = output_head(policy)
    if type(unwrap(policy).config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        mend = "expected an architecture with a sequence-classification class: a shared critic is saved as one"
        raise InputError("model.architecture", type(unwrap(policy)).__name__, mend)
    head = nn.Linear(weight.shape[1], 1, device=weight.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def standalone_critic(head: nn.Module, path: str | Path) -> Any:
    """The scalar-head model whose values are those of `head` on the policy saved at `path` (its adapter merged, if it is one).

    The head's bias becomes the config's `score_bias`, because scalar heads of `transformers` have none.

    Raises:
        InputError: nothing loadable at `path`.
    """
    assert isinstance(head, nn.Linear)
    critic = load_scalar_model(path, zero_head=True)
    with torch.no_grad():
        scalar_head(critic).weight.copy_(head.weight)
    critic.config.score_bias = head.bias.item()
    return critic
