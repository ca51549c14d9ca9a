"""Fused log-probabilities and entropy against their naive twin, finite differences and autocast."""

import math

import pytest
import torch
import torch.nn.functional as F

from rlhf_kit.objectives import chunked
from rlhf_kit.objectives.logprobs import linear_logprobs, padded_logprobs


def head(rows=13, vocabulary=11, width=5, dtype=torch.float64):
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, vocabulary, (rows,))


def naive(hidden, weight, targets, bias=None, temperature=1.0):
    logs = F.log_softmax(F.linear(hidden, weight, bias) / (temperature + 1e-7), dim=-1)
    return logs.gather(1, targets.unsqueeze(1)).squeeze(1), -(logs.exp() * logs).sum(1)


def test_one_row_by_hand_and_a_temperature_that_flattens_it():
    # logits ln 1, ln 4, ln 4: probabilities 1/9, 4/9, 4/9; at temperature 2 they are 1/5, 2/5, 2/5.
    weight = torch.tensor([[0.0], [math.log(4)], [math.log(4)]], dtype=torch.float64)
    for temperature, probabilities in ((1.0, (1 / 9, 4 / 9, 4 / 9)), (2.0, (1 / 5, 2 / 5, 2 / 5))):
        logprobs, entropy = linear_logprobs(
            torch.ones(3, 1, dtype=torch.float64), weight, torch.arange(3), temperature=temperature
        )
        # The 1e-7 that keeps the division finite moves the sixth decimal at most.
        assert logprobs.exp().tolist() == pytest.approx(probabilities, rel=1e-6)
        assert entropy[0].item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-6)


@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_naive_twin_kept_or_computed_again(chunk_rows, temperature):
    hidden, weight, bias, targets = head()
    upstream = torch.randn(2, 13, dtype=torch.float64)
    got = linear_logprobs(hidden, weight, targets, bias, temperature=temperature, entropy_grad=True, chunk_rows=chunk_rows)
    want = naive(hidden, weight, targets, bias, temperature)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    inputs = (hidden, weight, bias)
    for a, b in zip(
        torch.autograd.grad(sum((u * x).sum() for u, x in zip(upstream, got)), inputs),
        torch.autograd.grad(sum((u * x).sum() for u, x in zip(upstream, want)), inputs),
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("budget", [4 * 8 * 11, 64 * 2**20])  # bytes: four rows of logits, then all
def test_logits_are_right_in_chunks_whether_they_stay_or_not(monkeypatch, budget):
    monkeypatch.setattr(chunked, "CHUNK_BYTES", {"cpu": budget})
    monkeypatch.setattr(chunked, "CHUNK_BYTES_CACHED", 1)
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 4)
    inputs = head()
    for temperature in (1.0, 0.7):
        got, want = (of(*inputs[:2], inputs[3], inputs[2], temperature=temperature)[0] for of in (linear_logprobs, naive))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
        grads = [torch.autograd.grad((x * torch.arange(13)).sum(), inputs[:3]) for x in (got, want)]
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("vocabulary", "rows"),
    [(1024, 4096), (8192, 512), (50257, 256), (128256, 130), (2_000_000, 16)],
)
def test_a_chunk_fits_the_cache_unless_so_few_rows_would_not_pay_and_never_exceeds_the_budget(vocabulary, rows):
    assert chunked.default_chunk_rows(vocabulary, torch.float32, torch.device("cpu")) == rows


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_gradients_pass_gradcheck_in_fp64(chunk_rows):
    hidden, weight, bias, targets = head(rows=5, vocabulary=4, width=3)
    options = {"temperature": 0.7, "chunk_rows": chunk_rows}
    assert torch.autograd.gradcheck(lambda h, w, b: linear_logprobs(h, w, targets, b, **options)[0], (hidden, weight, bias))
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logprobs(h, w, targets, b, entropy_grad=True, **options), (hidden, weight, bias)
    )


@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_an_entropy_bonus_alone_has_a_gradient(chunk_rows):
    hidden, weight, bias, targets = head()
    _, entropy = linear_logprobs(hidden, weight, targets, bias, entropy_grad=True, chunk_rows=chunk_rows)
    (got,) = torch.autograd.grad(entropy.sum(), hidden)
    (want,) = torch.autograd.grad(naive(hidden, weight, targets, bias)[1].sum(), hidden)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_the_entropy_is_detached_unless_asked_for():
    hidden, weight, bias, targets = head()
    logprobs, entropy = linear_logprobs(hidden, weight, targets, bias)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_without_entropy_the_logprobs_are_the_same_and_the_entropy_zero():
    hidden, weight, bias, targets = head()
    logprobs, entropy = linear_logprobs(hidden, weight, targets, bias, with_entropy=False)
    torch.testing.assert_close(logprobs, naive(hidden, weight, targets, bias)[0], rtol=1e-12, atol=1e-13)
    assert entropy.tolist() == [0.0] * 13


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_the_others_are_unchanged(frozen):
    *inputs, targets = head()
    full = torch.autograd.grad(naive(*inputs[:2], targets, inputs[2])[0].sum(), inputs)
    inputs[frozen].requires_grad_(False)
    linear_logprobs(*inputs[:2], targets, inputs[2], chunk_rows=3)[0].sum().backward()
    for i, x in enumerate(inputs):
        if i == frozen:
            assert x.grad is None
        else:
            torch.testing.assert_close(x.grad, full[i], rtol=1e-11, atol=1e-12)


def test_slices_of_the_softmax_change_nothing(monkeypatch):
    hidden, weight, bias, targets = head(rows=20)
    logprobs, entropy = linear_logprobs(hidden, weight, targets, bias)
    (grad,) = torch.autograd.grad(logprobs.sum(), weight)
    monkeypatch.setattr(chunked, "SLICE_BYTES", {"cpu": 3 * 4 * 11})
    sliced, sliced_entropy = linear_logprobs(hidden, weight, targets, bias)
    torch.testing.assert_close(sliced, logprobs, rtol=1e-13, atol=0)
    torch.testing.assert_close(sliced_entropy, entropy, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(sliced.sum(), weight)[0], grad, rtol=1e-12, atol=1e-13)


def test_autocast_gives_fp32_results_within_bf16_rounding():
    hidden, weight, bias, targets = head(rows=100, vocabulary=200, width=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = linear_logprobs(hidden, weight, targets, bias, chunk_rows=16)
    exact, exact_entropy = naive(hidden, weight, targets, bias)
    assert logprobs.dtype == entropy.dtype == torch.float32
    # Logits reach about 20; bf16 keeps 8 bits of them.
    assert (logprobs - exact).abs().max() < 0.15
    assert (entropy - exact_entropy).abs().max() < 0.1
    upstream = torch.randn(100)
    got = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))
    for a, b in zip(got, torch.autograd.grad((exact * upstream).sum(), (hidden, weight))):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_autocast_sums_the_weight_gradient_in_fp32():
    hidden = torch.ones(2048, 1, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = linear_logprobs(hidden, weight, torch.zeros(2048, dtype=torch.long), chunk_rows=1)
    logprobs.sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1024.0], [-1024.0]]))


def test_no_rows_give_empty_results_and_zero_gradients():
    hidden, weight, bias, targets = head(rows=0)
    logprobs, entropy = linear_logprobs(hidden, weight, targets, bias)
    logprobs.sum().backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert weight.grad.abs().sum() == 0


def test_padded_responses_are_scattered_back_and_padding_is_never_computed():
    hidden = torch.randn(3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    hidden[~mask] = math.nan
    hidden.requires_grad_()
    _, weight, bias, _ = head()
    ids = torch.randint(0, 11, (3, 4)).masked_fill(~mask, 10**6)  # a pad may hold anything
    logprobs, entropy = padded_logprobs(hidden, weight, ids, mask, bias, temperature=0.9)
    want, want_entropy = naive(hidden[mask], weight, ids[mask], bias, 0.9)
    torch.testing.assert_close(logprobs[mask], want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(entropy[mask], want_entropy, rtol=1e-12, atol=1e-13)
    assert logprobs[~mask].tolist() == entropy[~mask].tolist() == [0.0] * 5
    (got,) = torch.autograd.grad(logprobs.square().sum(), hidden)
    (expected,) = torch.autograd.grad(want.square().sum(), hidden)
    torch.testing.assert_close(got[mask], expected[mask], rtol=1e-11, atol=1e-12)
    assert got[~mask].abs().sum() == 0


def test_what_does_not_fit_is_refused_by_name():
    hidden, weight, _, targets = head()
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"temperature is .*, expected more than 0"):
            linear_logprobs(hidden, weight, targets, temperature=temperature)
    with pytest.raises(ValueError, match="entropy_grad is True"):
        linear_logprobs(hidden, weight, targets, with_entropy=False, entropy_grad=True)
    with pytest.raises(ValueError, match="from -100 to"):
        linear_logprobs(hidden, weight, targets.index_fill(0, torch.tensor([2]), -100))
    with pytest.raises(ValueError, match="targets have shape"):
        linear_logprobs(hidden, weight, targets[:-1])
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"hidden has shape \(2, 4, 5\), expected \(2, 3, 5\)"):
        padded_logprobs(torch.zeros(2, 4, 5), weight.float(), ids, mask)
    with pytest.raises(ValueError, match=r"response_mask has dtype torch\.int64"):
        padded_logprobs(torch.zeros(2, 3, 5), weight.float(), ids, mask.long())
    with pytest.raises(ValueError, match="response_mask has shape"):
        padded_logprobs(torch.zeros(2, 3, 5), weight.float(), ids, mask[:1])


def test_without_a_sampler_the_distribution_is_the_models_own_to_the_last_digit():
    hidden, weight = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randn(11, 8, dtype=torch.float64)
    targets = torch.arange(5)
    expected = (hidden @ weight.T).log_softmax(1)[targets, targets]
    found, _ = linear_logprobs(hidden, weight, targets, temperature=None)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    grads = [torch.autograd.grad(x.sum(), hidden)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-14)
