"""What the fused heads promise about memory: no tensor grows with rows times vocabulary, and nothing is computed for nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_kit.batches import IGNORE
from rlhf_kit.objectives import chunked
from rlhf_kit.objectives.language_model import linear_cross_entropy
from rlhf_kit.objectives.logprobs import linear_logprobs

ROWS, VOCABULARY, WIDTH, CHUNK = 512, 400, 8, 16


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor made while it was on; views of what was there are not made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in there:
                self.numel = max(self.numel, x.numel())
        return out


@pytest.fixture
def problem():
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCABULARY, (ROWS,))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_BYTES", {"cpu": 4 * VOCABULARY * CHUNK})


def saved_sizes():
    sizes: list[int] = []
    return sizes, torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)


def test_the_measure_sees_the_logits_where_they_are_built(problem):
    hidden, weight, labels = problem
    with LargestTensor() as largest:
        F.cross_entropy(hidden @ weight.T, labels).backward()
    assert largest.numel == ROWS * VOCABULARY


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("objective", [linear_cross_entropy, linear_logprobs])
def test_no_tensor_is_larger_than_one_chunk_of_logits_in_forward_or_backward(problem, objective):
    sizes, hooks = saved_sizes()
    with LargestTensor() as largest, hooks:
        objective(*problem)[0].sum().backward()
    assert largest.numel == CHUNK * VOCABULARY
    assert max(sizes) <= max(ROWS, VOCABULARY) * WIDTH


def test_untrained_rows_are_never_multiplied(problem):
    hidden, weight, labels = problem
    labels[:] = IGNORE
    labels[[5, 250]] = 7
    with torch.no_grad(), LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, labels)
    assert largest.numel == 2 * VOCABULARY


def test_without_gradients_none_is_formed(problem):
    hidden, weight, labels = problem
    with torch.no_grad(), LargestTensor() as largest:
        loss, _ = linear_cross_entropy(hidden[:4], weight, labels[:4])
    assert not loss.requires_grad
    assert largest.numel == 4 * VOCABULARY  # the logits; the weight's gradient would be WIDTH * VOCABULARY


def test_logits_of_a_single_chunk_are_kept_for_the_backward_and_of_more_than_one_are_not(problem):
    sizes, hooks = saved_sizes()
    with hooks:
        linear_logprobs(*problem)
        assert max(sizes) == ROWS * VOCABULARY
        sizes.clear()
        linear_logprobs(*problem, chunk_rows=ROWS - 1)
        assert max(sizes) <= ROWS * WIDTH
    with torch.no_grad():
        assert not linear_logprobs(*problem)[0].requires_grad
