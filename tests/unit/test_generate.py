"""The sampler's own promises: its distribution, its cache, how answers end, and what it leaves behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM
from rlhf_kit.rollout import kernels
from rlhf_kit.rollout.cache import BlockCache, padded_length, select_rows
from rlhf_kit.rollout.generate import _fill_holes, generate
from rlhf_kit.rollout.kernels import attention, fast_kernels
from rlhf_kit.rollout.sampling import draw, sample, truncate

VOCAB = 50


def make_model(dropout: float = 0.0) -> nn.Module:
    model = GPTForCausalLM(GPTConfig(vocab_size=VOCAB, max_seq_len=64, d_model=32, n_layers=2, n_heads=4, dropout=dropout))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.15)
    return model.eval()


def make_prompts(rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    mask = torch.arange(width) >= torch.arange(rows)[:, None] % width
    return torch.randint(0, VOCAB, (rows, width)), mask


# --- the draw -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 63, 64, 65, 50_257])
def test_a_draw_is_the_inverse_of_the_exact_cumulative_distribution(size: int) -> None:
    """Sums of 64 in float32 are off by 1e-7 of themselves, and so may be a border between two entries."""
    weights = (torch.randn(3, size) * 4).exp()
    exact = (weights.double() / weights.double().sum(1, keepdim=True)).cumsum(1)
    for uniform in torch.linspace(0, 1 - 2**-53, 501, dtype=torch.float64):
        index, total = draw(weights, uniform.expand(3))
        above = exact.gather(1, index[:, None])[:, 0]
        below = torch.where(index > 0, exact.gather(1, (index - 1).clamp_min(0)[:, None])[:, 0], 0.0)
        assert bool(((below <= uniform + 3e-7) & (uniform - 3e-7 <= above)).all())
    torch.testing.assert_close(total, weights.double().sum(1), rtol=1e-6, atol=0)


def test_a_draw_never_returns_an_entry_of_weight_zero() -> None:
    weights = torch.zeros(1, 200)
    weights[0, [70, 71, 130]] = torch.tensor([1e-30, 1.0, 1e-12])
    for uniform in (0.0, 1e-300, 0.5, 1 - 2**-53):
        index, _ = draw(weights, torch.tensor([uniform], dtype=torch.float64))
        assert weights[0, index] > 0


def test_sampled_frequencies_pass_a_chi_square_test_against_the_softmax() -> None:
    logits, count = torch.randn(300) * 2, 200_000
    uniform = torch.rand(count, dtype=torch.float64)
    tokens = torch.cat([sample(logits.repeat(len(u), 1), u, temperature=0.7)[0] for u in uniform.split(20_000)])
    expected = (logits / 0.7).softmax(0) * count
    rare = expected < 5
    seen = torch.bincount(tokens, minlength=300).float()
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    freedom = len(seen) - 1
    assert ((seen - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_logprobs_are_of_the_distribution_that_was_sampled() -> None:
    logits, uniform = torch.randn(64, 130), torch.rand(64, dtype=torch.float64)
    for options in ({}, {"temperature": 0.7}, {"top_k": 5}, {"temperature": 2.0, "top_p": 0.6}):
        tokens, logprobs = sample(logits.clone(), uniform, **options)
        scaled = truncate(logits / options.get("temperature", 1.0), options.get("top_k", 0), options.get("top_p", 1.0))
        torch.testing.assert_close(logprobs, scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-6)


def test_truncation_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.05, 0.45]]).log()
    kept = lambda **options: truncate(logits, **options).isfinite()[0].tolist()  # noqa: E731
    assert kept(top_k=0, top_p=0.8) == [False, True, False, True]
    assert kept(top_k=0, top_p=0.86) == [True, True, False, True]
    assert kept(top_k=0, top_p=1e-6) == [False, False, False, True]
    assert kept(top_k=1, top_p=1.0) == [False, False, False, True]
    assert kept(top_k=9, top_p=1.0) == [True] * 4


# --- the cache and the kernels --------------------------------------------------------------------------------------


def test_the_cache_holds_what_transformers_cache_holds_through_growth_and_selection() -> None:
    ours, theirs = BlockCache(), DynamicCache()
    rows = 5
    for index, steps in ((None, 3), (torch.tensor([0, 4, 2]), 40), (torch.tensor([2, 0]), 20), (torch.tensor([1, 0, 1, 1]), 4)):
        if index is not None:
            select_rows(ours, index)
            theirs.batch_select_indices(index)
            rows = len(index)
        for _ in range(steps):
            states = [torch.randn(rows, 2, 1, 4), torch.randn(rows, 2, 1, 4)]
            for layer in range(2):
                ours.update(*states, layer)
                theirs.update(*states, layer)
        length = theirs.get_seq_length()
        assert ours.get_seq_length() == length
        for mine, other in zip(ours.layers, theirs.layers):
            for a, b in ((mine.keys, other.keys), (mine.values, other.values)):
                assert a.shape[2] == padded_length(length)
                assert a.is_contiguous()
                assert torch.equal(a[:, :, :length], b)
                assert not a[:, :, length:].any()


def test_selection_moves_only_the_rows_that_fill_holes() -> None:
    kept = torch.tensor([True, False, True, True, False, True, True])
    assert _fill_holes(kept).tolist() == [0, 5, 2, 3, 6]
    assert _fill_holes(torch.tensor([False, False])).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "heads", "causal"), [(1, 4, False), (1, 2, False), (7, 4, True), (7, 2, False)])
def test_attention_by_products_is_the_librarys(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, queries: int, heads: int, causal: bool
) -> None:
    monkeypatch.setattr(kernels, "_SCORES_AT_ONCE", 500)  # in several parts
    query = torch.randn(10, 4, queries, 8, dtype=dtype)
    key, value = torch.randn(2, 10, heads, 7, 8, dtype=dtype)
    mask = None if causal else torch.rand(10, 1, queries, 7) < 0.6
    if mask is not None:
        mask[..., 0] = True
    added = None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    expected = F.scaled_dot_product_attention(
        *(x.double() for x in (query, key, value)), attn_mask=mask, is_causal=causal, scale=0.3, enable_gqa=True
    )
    for given in (mask, added):
        out = attention(query, key, value, given, is_causal=causal, scale=0.3)
        # bf16 rounds scores, weights and the result to 8 bits each.
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6 if dtype is torch.float32 else 3e-2)


def test_fast_kernels_leave_the_model_as_it_was_even_after_an_error() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    ids = torch.randint(0, 9, (1, 4))
    before = model(input_ids=ids).logits
    inside = []

    def failing() -> None:
        with fast_kernels(model, 10_000):
            inside.append(any("forward" in module.__dict__ for module in model.modules()))
            inside.append(model.config._attn_implementation != "sdpa")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        failing()
    assert inside == [True, True]
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)


# --- how answers end ------------------------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_which_other_rows_have_ended() -> None:
    model, (ids, mask) = make_model(), make_prompts(12)
    seeded = lambda eos: generate(  # noqa: E731
        model, ids, mask, max_new_tokens=40, eos_ids=eos, pad_id=0, generator=torch.Generator().manual_seed(3)
    )
    free, cut = seeded([]), seeded([1, 2, 3, 4])
    assert bool(cut.ended.any())
    assert len(cut.response_mask.sum(1).unique()) > 3
    width = cut.response_ids.shape[1]
    assert torch.equal(cut.response_ids[cut.response_mask], free.response_ids[:, :width][cut.response_mask])
    torch.testing.assert_close(cut.logprobs[cut.response_mask], free.logprobs[:, :width][cut.response_mask], rtol=0, atol=1e-5)


def test_an_eos_at_once_at_the_last_slot_and_absent() -> None:
    model, (ids, mask) = make_model(), make_prompts(3)
    options = dict(max_new_tokens=6, pad_id=0, temperature=0)
    free = generate(model, ids, mask, eos_ids=[], **options)
    assert not free.ended.any()
    assert bool(free.response_mask.all())
    for row in range(3):
        answer = free.response_ids[row]
        for slot in (0, 5):
            eos = int(answer[slot])
            first = int((answer == eos).nonzero()[0])
            out = generate(model, ids[row : row + 1], mask[row : row + 1], eos_ids=[eos], **options)
            assert bool(out.ended)
            assert out.response_ids.tolist() == [answer[: first + 1].tolist()]
            assert bool(out.response_mask.all())
    together = generate(model, ids, mask, eos_ids=free.response_ids[:, 0].tolist(), **options)
    assert together.response_ids.shape == (3, 1), "all ended at the first token"
    assert bool(together.ended.all())


def test_the_eos_is_inside_the_mask_when_it_is_also_the_pad() -> None:
    model, (ids, mask) = make_model(), make_prompts(8)
    out = generate(model, ids, mask, max_new_tokens=30, eos_ids=[5, 6, 7, 8, 9], pad_id=5, temperature=1.5)
    last = out.response_mask.sum(1) - 1
    tokens = out.response_ids[torch.arange(8), last]
    assert torch.equal(torch.isin(tokens, torch.tensor([5, 6, 7, 8, 9])), out.ended)
    assert out.ended.sum() > 3
    assert bool((out.response_ids[~out.response_mask] == 5).all())
    assert not out.logprobs[~out.response_mask].any()
    assert bool((out.response_mask[:, 1:] <= out.response_mask[:, :-1]).all())


def test_no_answer_is_shorter_than_asked_for() -> None:
    model, (ids, mask) = make_model(), make_prompts(8)
    out = generate(model, ids, mask, max_new_tokens=12, eos_ids=list(range(40)), pad_id=0, min_new_tokens=4)
    assert not torch.isin(out.response_ids[:, :4], torch.arange(40)).any()
    assert int(out.response_mask.sum(1).min()) >= 5
    assert bool(out.ended.any())


# --- what it costs and leaves ---------------------------------------------------------------------------------------


def test_ended_rows_leave_equal_prompts_are_read_once_and_no_logits_but_the_last_are_built() -> None:
    model, (ids, mask) = make_model(), make_prompts(3)
    ids, mask = ids.repeat_interleave(4, 0), mask.repeat_interleave(4, 0)
    ids[:, 0] = torch.randint(0, VOCAB, (12,)).where(~mask[:, 0], ids[:, 0])  # padding is no difference
    read, built = [], []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    out = generate(model, ids, mask, max_new_tokens=20, eos_ids=[1, 2, 3, 4, 5, 6], pad_id=0)
    with fast_kernels(model, 0):
        model.lm_head.register_forward_hook(lambda *args: built.append(tuple(args[2].shape)))
        generate(model, ids, mask, max_new_tokens=4, eos_ids=[], pad_id=0)
    lengths = out.response_mask.sum(1)
    steps = [(int((lengths > step).sum()), 1) for step in range(1, out.response_ids.shape[1])]
    assert read[: 1 + len(steps)] == [(3, 5), *steps]
    assert steps[-1][0] < 12
    assert built == [(3, 1, VOCAB)] + [(12, 1, VOCAB)] * 3


def test_answers_to_equal_prompts_differ() -> None:
    model, (ids, mask) = make_model(), make_prompts(1)
    out = generate(model, ids.repeat(6, 1), mask.repeat(6, 1), max_new_tokens=8, eos_ids=[], pad_id=0)
    assert len(out.response_ids.unique(dim=0)) == 6


def test_dropout_is_off_and_every_module_gets_its_mode_back() -> None:
    model, (ids, mask) = make_model(dropout=0.5), make_prompts()
    options = dict(max_new_tokens=10, eos_ids=[], pad_id=0, temperature=0)
    expected = generate(model, ids, mask, **options)
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    out = generate(model, ids, mask, **options)
    assert torch.equal(out.response_ids, expected.response_ids)
    assert [module.training for module in model.modules()] == modes
    assert not out.logprobs.requires_grad


def test_tokens_are_streamed_as_they_come() -> None:
    model, (ids, mask) = make_model(), make_prompts(1)
    seen: list[int] = []
    out = generate(model, ids, mask, max_new_tokens=10, eos_ids=[], pad_id=0, on_token=seen.append)
    assert seen == out.response_ids[0].tolist()


def test_wrong_input_is_refused_by_name() -> None:
    model, (ids, mask) = make_model(), make_prompts(3)
    call = lambda i=ids, m=mask, **options: generate(  # noqa: E731
        model, i, m, **{"max_new_tokens": 4, "eos_ids": [], "pad_id": 0, **options}
    )
    with pytest.raises(InputError, match=r"5 \+ 60.*at most 64"):
        call(max_new_tokens=60)
    assert call(max_new_tokens=59).response_ids.shape == (3, 59)
    for match, wrong in {
        "B and Q above 0": dict(i=ids[:0], m=mask[:0]),
        "on the left": dict(m=mask.flip(1)),
        "a gap": dict(m=torch.tensor([[True, False, True, True, True]]).expand(3, 5)),
        "max_new_tokens": dict(max_new_tokens=0),
        "temperature": dict(temperature=-1.0),
        "temperature is nan": dict(temperature=float("nan")),
        "temperature is inf": dict(temperature=float("inf")),
        "top_k": dict(top_k=-1),
        "top_p": dict(top_p=0.0),
        "top_p is nan": dict(top_p=float("nan")),
        "one conversation": dict(on_token=print),
    }.items():
        with pytest.raises(InputError, match=match):
            call(**wrong)
