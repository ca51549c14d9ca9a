"""The fused head and cross-entropy against its naive twin, finite differences and autocast."""

import math

import pytest
import torch
import torch.nn.functional as F

from rlhf_kit.batches import IGNORE
from rlhf_kit.objectives import chunked
from rlhf_kit.objectives.language_model import language_model_loss, linear_cross_entropy, shift_labels


def head(rows=13, vocabulary=11, width=5, dtype=torch.float64, bias=True):
    """hidden, weight, bias (all requiring gradients) and labels with every third row left out."""
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    offset = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    labels = torch.randint(0, vocabulary, (rows,))
    labels[::3] = IGNORE
    return hidden, weight, offset, labels


def naive(hidden, weight, labels, bias=None):
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, ignore_index=IGNORE, reduction="sum")


def test_one_row_by_hand():
    # logits ln 1, ln 2, ln 5: the softmax is 1/8, 2/8, 5/8.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]], requires_grad=True)
    loss, correct = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert correct.item() == 0
    loss.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1 / 8], [2 / 8 - 1], [5 / 8]]))


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_equal_the_naive_twin_at_any_chunk(chunk_rows, bias):
    hidden, weight, offset, labels = head(bias=bias)
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    loss, correct = linear_cross_entropy(hidden, weight, labels, offset, chunk_rows=chunk_rows)
    expected = naive(hidden, weight, labels, offset)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    # An upstream factor must reach every gradient.
    for got, want in zip(torch.autograd.grad(0.37 * loss, inputs), torch.autograd.grad(0.37 * expected, inputs)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    predicted = F.linear(hidden, weight, offset).argmax(1)
    assert correct.item() == (predicted == labels).sum().item()


def test_gradients_pass_gradcheck_in_fp64():
    hidden, weight, offset, labels = head(rows=7, vocabulary=5, width=3)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, labels, b, chunk_rows=2)[0], (hidden, weight, offset)
    )


def test_fp32_agrees_with_fp64_to_rounding():
    hidden, weight, offset, labels = head(rows=64, vocabulary=500, width=16)
    exact = naive(hidden, weight, labels, offset)
    loss, _ = linear_cross_entropy(hidden.float(), weight.float(), labels, offset.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_large_logits_neither_overflow_nor_underflow():
    weight = torch.tensor([[300.0], [-300.0], [0.0]])
    loss, _ = linear_cross_entropy(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    assert loss.item() == 600.0


def test_slices_of_the_softmax_change_nothing(monkeypatch):
    hidden, weight, offset, labels = head(rows=20)
    whole = linear_cross_entropy(hidden, weight, labels, offset)[0]
    monkeypatch.setattr(chunked, "SLICE_BYTES", {"cpu": 3 * 4 * 11})  # three rows of eleven logits
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels, offset)[0], whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_input_gets_no_gradient_and_the_others_are_unchanged(frozen):
    tensors = dict(zip(("hidden", "weight", "bias", "labels"), head()))
    labels = tensors.pop("labels")
    full = dict(
        zip(
            tensors,
            torch.autograd.grad(naive(tensors["hidden"], tensors["weight"], labels, tensors["bias"]), list(tensors.values())),
        )
    )
    tensors[frozen].requires_grad_(False)
    linear_cross_entropy(tensors["hidden"], tensors["weight"], labels, tensors["bias"])[0].backward()
    assert tensors[frozen].grad is None
    for name in set(tensors) - {frozen}:
        torch.testing.assert_close(tensors[name].grad, full[name], rtol=1e-12, atol=1e-13)


def test_a_tied_weight_gathers_both_gradients():
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    ids, labels = torch.randint(0, 9, (6,)), torch.randint(0, 9, (6,))
    (got,) = torch.autograd.grad(linear_cross_entropy(weight[ids].tanh(), weight, labels)[0], weight)
    (want,) = torch.autograd.grad(naive(weight[ids].tanh(), weight, labels), weight)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_a_batch_without_a_trained_token_gives_zero_loss_and_zero_gradients():
    hidden, weight, offset, labels = head()
    labels[:] = IGNORE
    loss, correct = linear_cross_entropy(hidden, weight, labels, offset)
    loss.backward()
    assert loss.item() == 0
    assert correct.item() == 0
    for x in (hidden, weight, offset):
        assert x.grad.abs().sum() == 0  # present, so that every rank takes part in the reduction


def test_autocast_multiplies_in_bf16_and_sums_the_weight_gradient_in_fp32():
    # 2,048 equal rows, one a chunk: a bf16 sum would stop growing at 256 times its summand.
    hidden = torch.ones(2048, 1, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    labels = torch.zeros(2048, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, labels, chunk_rows=1)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(weight.grad, torch.tensor([[-1024.0], [1024.0]]))
    assert hidden.grad.dtype == torch.float32


def test_autocast_stays_within_bf16_rounding_of_the_exact_loss_and_gradient():
    hidden, weight, offset, labels = head(rows=200, vocabulary=300, width=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, labels, offset, chunk_rows=64)
    got = torch.autograd.grad(loss, (hidden, weight))
    exact = naive(hidden, weight, labels, offset)
    # bf16 keeps 8 bits: 2^-8 relative on each logit and product.
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    for a, b in zip(got, torch.autograd.grad(exact, (hidden, weight))):
        assert (a - b).norm() < 0.02 * b.norm()


def test_a_bf16_model_gets_gradients_in_its_own_dtype_and_an_fp32_loss():
    hidden, weight, _, labels = head(dtype=torch.bfloat16, bias=False)
    loss, _ = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert (loss.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert loss.item() == pytest.approx(naive(hidden.double(), weight.double(), labels).item(), rel=0.02)


def test_ties_are_not_counted_as_right():
    _, correct = linear_cross_entropy(torch.ones(4, 2), torch.zeros(3, 2), torch.tensor([0, 1, 2, 0]))
    assert correct.item() == 0


def test_a_nan_in_a_trained_row_shows_in_the_loss_and_in_an_ignored_row_does_not():
    hidden, weight, offset, labels = head()
    assert labels[0] == IGNORE
    poisoned = hidden.detach().clone()
    poisoned[0] = math.nan
    assert linear_cross_entropy(poisoned, weight, labels, offset)[0].isfinite()
    poisoned[1] = math.nan
    assert linear_cross_entropy(poisoned, weight, labels, offset)[0].isnan()


def test_labels_move_one_to_the_left_and_a_new_document_is_nobodys_target():
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    assert shift_labels(labels).tolist() == [[2, 3, 4, 5, IGNORE]]
    assert shift_labels(labels, torch.tensor([[0, 1, 0, 1, 2]])).tolist() == [[2, IGNORE, 4, 5, IGNORE]]


def test_language_model_loss_sums_the_shifted_cross_entropy_and_counts_tokens():
    hidden, weight = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    labels = torch.randint(0, 9, (2, 6))
    labels[0, :3] = IGNORE
    loss, stats = language_model_loss(hidden, weight, labels)
    expected, count, hits = 0.0, 0, 0
    for b in range(2):
        for t in range(5):
            if labels[b, t + 1] != IGNORE:
                logits = weight @ hidden[b, t]
                expected += (logits.exp().sum().log() - logits[labels[b, t + 1]]).item()
                hits += int(logits.argmax() == labels[b, t + 1])
                count += 1
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert (stats["tokens"].item(), stats["mean_token_accuracy"].item()) == (count, hits)
    assert count == 8


def test_right_padding_changes_neither_loss_nor_count():
    hidden, weight = torch.randn(2, 6, 4), torch.randn(9, 4)
    labels = torch.randint(0, 9, (2, 6))
    loss, stats = language_model_loss(hidden, weight, labels)
    padded, more = language_model_loss(F.pad(hidden, (0, 0, 0, 5), value=math.nan), weight, F.pad(labels, (0, 5), value=IGNORE))
    torch.testing.assert_close(padded, loss)
    assert more["tokens"] == stats["tokens"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 2, 5)}, r"hidden has shape \(3, 2, 5\)"),
        ({"weight": torch.zeros(7, 4)}, r"weight \(7, 4\), expected \(N, D\) and \(V, D\)"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"targets have shape \(4,\), expected \(3,\)"),
        ({"labels": torch.zeros(3)}, "dtype torch.float32, expected torch.int64"),
        ({"labels": torch.tensor([0, 7, 1])}, "from 0 to 7, expected 0 to 6: the tokenizer and the model"),
        ({"labels": torch.tensor([0, -1, 1])}, "from -1 to 1"),
        ({"bias": torch.zeros(5)}, r"bias has shape \(5,\), expected \(7,\)"),
        ({"chunk_rows": 0}, "chunk_rows is 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    arguments = {"hidden": torch.zeros(3, 5), "weight": torch.zeros(7, 5), "labels": torch.zeros(3, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


def test_language_model_loss_refuses_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"labels have shape \(2, 5\), expected \(2, 6\)"):
        language_model_loss(torch.zeros(2, 6, 4), torch.zeros(9, 4), torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="hidden has shape"):
        language_model_loss(torch.zeros(6, 4), torch.zeros(9, 4), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="position_ids has shape"):
        shift_labels(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
