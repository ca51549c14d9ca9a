"""The backbone alone: every option, every mask, the cache, the kernels' naive twins, initialisation."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_kit.errors import InputError
from rlhf_kit.models import gpt as gpt_module
from rlhf_kit.models.gpt import (
    GPT,
    MLP,
    GPTOptions,
    RMSNorm,
    Shared,
    _attend_by_matmul,
    document_ids,
    initialise,
    rotary_angles,
    rotate,
    visible,
)

GPT2_LIKE: dict[str, Any] = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True}
LLAMA_LIKE: dict[str, Any] = {"n_kv_heads": 2}
NO_POSITIONS: dict[str, Any] = {"position": "none", "norm_place": "post", "mlp": "relu"}
KINDS = pytest.mark.parametrize("kind", [GPT2_LIKE, LLAMA_LIKE, NO_POSITIONS], ids=["gpt2-like", "llama-like", "no-positions"])


def make(dtype: torch.dtype = torch.float32, **fields: Any) -> GPT:
    """A tiny model with weights large enough for every path to matter."""
    options = GPTOptions(**{"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "init_std": 0.2} | fields)
    gpt = GPT(options)
    gpt.apply(partial(initialise, o=options))
    return gpt.to(dtype)


def ids(B: int, T: int) -> Tensor:
    return torch.randint(0, 50, (B, T))


class ListCache:
    """The smallest cache the backbone accepts."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def get_seq_length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            keys, values = torch.cat((self.layers[layer][0], keys), 2), torch.cat((self.layers[layer][1], values), 2)
        self.layers[layer] = keys, values
        return keys, values


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "norm", "norm_place", "mlp"),
    list(product(("learned", "rotary", "none"), ("layernorm", "rmsnorm"), ("pre", "post"), ("relu", "gelu", "swiglu"))),
)
def test_every_combination_of_options_trains_every_parameter(position: str, norm: str, norm_place: str, mlp: str) -> None:
    for bias, n_kv_heads in ((False, 2), (True, None)):
        gpt = make(position=position, norm=norm, norm_place=norm_place, mlp=mlp, bias=bias, n_kv_heads=n_kv_heads, max_seq_len=7)
        states = gpt(ids(2, 7))
        (states * torch.randn_like(states)).sum().backward()
        assert states.shape == (2, 7, 32)
        for name, weight in gpt.named_parameters():
            # A key bias moves all scores of a query alike, and softmax does not see it; rotary positions undo that.
            if not (name.endswith("k_proj.bias") and position != "rotary"):
                assert weight.grad is not None
                assert weight.grad.abs().max() > 1e-7, name


def test_biases_are_there_only_when_asked_for() -> None:
    assert not any(name.endswith("bias") for name, _ in make(bias=False, norm="layernorm").named_parameters())
    with_bias = {name for name, _ in make(bias=True, norm="layernorm").named_parameters() if name.endswith("bias")}
    assert len(with_bias) == 2 * (4 + 3 + 2) + 1


@pytest.mark.parametrize("kind", ["relu", "gelu", "swiglu"])
def test_the_mlp_computes_its_written_formula(kind: str) -> None:
    options = GPTOptions(d_model=6, n_heads=1, mlp=kind, bias=True)
    options.resolve()
    mlp = MLP(options).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    up = x @ mlp.up_proj.weight.T + mlp.up_proj.bias
    if kind == "relu":
        hidden = torch.maximum(up, torch.zeros_like(up))
    elif kind == "gelu":
        hidden = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
    else:
        gate = x @ mlp.gate_proj.weight.T + mlp.gate_proj.bias
        hidden = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(mlp(x), hidden @ mlp.down_proj.weight.T + mlp.down_proj.bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_the_norms_stand_where_the_formulas_put_them(norm_place: str) -> None:
    gpt = make(torch.float64, norm_place=norm_place, n_layers=1, norm="layernorm")
    tokens, trace = ids(1, 5), []  # type: ignore[var-annotated]
    out = gpt(tokens, trace=trace)
    x, block = trace[0], gpt.layers[0]
    shared, _ = gpt._share(x, 0, None, None)
    attn, mlp = partial(block.attn, shared=shared, cache=None), block.mlp
    if norm_place == "pre":
        x = x + attn(block.attn_norm(x))
        expected = gpt.norm(x + mlp(block.mlp_norm(x)))
    else:
        x = block.attn_norm(x + attn(x))
        expected = block.mlp_norm(x + mlp(x))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_grouped_queries_equal_full_attention_with_copied_key_value_heads() -> None:
    grouped, full = make(torch.float64, n_kv_heads=2), make(torch.float64, n_kv_heads=4)
    state = grouped.state_dict()
    for name, weight in state.items():
        if "k_proj" in name or "v_proj" in name:
            state[name] = weight.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    tokens = ids(2, 6)
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_heads", 5),
        ("n_heads", "4"),
        ("n_kv_heads", 3),
        ("n_layers", 0),
        ("vocab_size", True),
        ("d_model", 32.0),
        ("head_dim", 7),
        ("norm", "batchnorm"),
        ("norm_place", "middle"),
        ("position", "alibi"),
        ("mlp", "geglu"),
        ("dropout", 1.0),
        ("bias", "no"),
        ("rope_theta", 0.0),
        ("norm_eps", "small"),
    ],
)
def test_a_bad_option_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field} is ") as error:
        make(**{field: value})
    assert error.value.field == field


# --- positions ----------------------------------------------------------------------------------------------------


def test_rotary_positions_turn_complex_pairs() -> None:
    x, position_ids = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randint(0, 1000, (2, 5))
    turned = rotate(x, *rotary_angles(position_ids, 8, 10_000.0, torch.float64))
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = position_ids[:, :, None, None] * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), rtol=1e-12, atol=1e-12)


def test_rotary_attention_depends_on_distance_only() -> None:
    gpt, tokens = make(torch.float64), ids(1, 6)
    shifted = torch.arange(6)[None] + 1000
    # The angles' products differ by rounding at 1,000, so a little more than fp64's own.
    torch.testing.assert_close(gpt(tokens, position_ids=shifted), gpt(tokens), rtol=1e-9, atol=1e-9)


def test_without_positions_an_earlier_order_does_not_matter_and_with_them_it_does() -> None:
    tokens = ids(1, 6)
    swapped = tokens[:, [1, 0, 2, 3, 4, 5]]
    for position in ("none", "learned", "rotary"):
        gpt = make(torch.float64, position=position, n_layers=1)
        same = torch.allclose(gpt(tokens)[:, -1], gpt(swapped)[:, -1], rtol=1e-9, atol=1e-9)
        assert same == (position == "none")


def test_a_sequence_longer_than_the_learned_positions_is_refused() -> None:
    gpt = make(position="learned", max_seq_len=4)
    with pytest.raises(InputError, match=r"sequence length is 5, expected at most max_seq_len = 4"):
        gpt(ids(1, 5))
    cache = ListCache()
    gpt(ids(1, 4), cache=cache)
    with pytest.raises(InputError, match="sequence length is 5"):
        gpt(ids(1, 1), cache=cache)


def test_a_packed_row_may_be_longer_than_the_learned_positions() -> None:
    gpt = make(position="learned", max_seq_len=4)
    assert gpt(ids(1, 8), position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])).isfinite().all()


def test_rotary_models_go_beyond_max_seq_len() -> None:
    assert make(max_seq_len=4)(ids(1, 9)).isfinite().all()


# --- masks --------------------------------------------------------------------------------------------------------


@KINDS
def test_a_later_token_changes_nothing_before_it(kind: dict[str, Any]) -> None:
    gpt, tokens = make(**kind), ids(1, 8)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    before, after = gpt(tokens), gpt(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-3


@KINDS
@pytest.mark.parametrize("autocast", [False, True])
def test_padding_on_either_side_changes_nothing(kind: dict[str, Any], autocast: bool) -> None:
    gpt = make(**kind)
    rows = [ids(1, n)[0] for n in (3, 6, 1)]
    tolerance = 3e-2 if autocast else 1e-5  # bf16 has 8 bits; masked and unmasked products differ in order only
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        alone = [gpt(row[None])[0] for row in rows]
        for side in ("left", "right"):
            tokens, mask = torch.full((3, 7), 49), torch.zeros(3, 7, dtype=torch.bool)
            for i, row in enumerate(rows):
                place = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
                tokens[i, place], mask[i, place] = row, True
            padded = gpt(tokens, attention_mask=mask)
            assert padded.isfinite().all()
            for i, expected in enumerate(alone):
                torch.testing.assert_close(padded[i][mask[i]], expected, rtol=tolerance, atol=tolerance)


@KINDS
def test_packed_documents_equal_the_same_documents_alone(kind: dict[str, Any]) -> None:
    gpt, lengths = make(**kind), [[4, 3, 1], [2, 6]]
    tokens = ids(2, 8)
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    packed = gpt(tokens, position_ids=position_ids)
    for row, parts in enumerate(lengths):
        start = 0
        for n in parts:
            alone = gpt(tokens[row : row + 1, start : start + n])
            torch.testing.assert_close(packed[row : row + 1, start : start + n], alone, rtol=1e-6, atol=3e-6)
            start += n


def test_a_hole_in_the_mask_hides_that_token_alone() -> None:
    gpt, tokens = make(torch.float64), ids(1, 6)
    kept = torch.tensor([True, True, False, True, True, True])
    holed = gpt(tokens, attention_mask=kept[None])
    torch.testing.assert_close(holed[:, kept], gpt(tokens[:, kept]), rtol=1e-12, atol=1e-12)


def test_gradients_do_not_cross_documents() -> None:
    gpt, tokens = make(), ids(1, 6)
    embeds = gpt.embed_tokens(tokens).detach().requires_grad_()
    gpt(inputs_embeds=embeds, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))[0, 3:].sum().backward()
    assert embeds.grad is not None
    assert torch.equal(embeds.grad[0, :3], torch.zeros(3, 32))
    assert embeds.grad[0, 3:].abs().min() > 0


def test_documents_are_told_apart_by_restarting_positions() -> None:
    assert document_ids(torch.tensor([[0, 1, 2, 0, 0, 1], [5, 6, 0, 1, 2, 3]])).tolist() == [
        [1, 1, 1, 2, 3, 3],
        [1, 1, 2, 2, 2, 2],
    ]


def test_a_padded_query_sees_itself_and_no_other_padding() -> None:
    mask = torch.tensor([[False, False, True, True]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible(4, 0, mask, None, torch.device("cpu"))[0, 0].long().tolist() == expected
    assert visible(1, 3, mask, None, torch.device("cpu"))[0, 0].long().tolist() == expected[3:]


def test_a_ready_made_mask_of_four_dimensions_is_used_as_it_is() -> None:
    gpt, tokens = make(), ids(2, 5)
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    position_ids = (mask.long().cumsum(1) - 1).clamp_min(0)
    ready = visible(5, 0, mask, None, torch.device("cpu"))
    additive = torch.zeros(ready.shape).masked_fill(~ready, float("-inf"))
    expected = gpt(tokens, attention_mask=mask)
    assert torch.equal(gpt(tokens, attention_mask=ready, position_ids=position_ids), expected)
    assert torch.equal(gpt(tokens, attention_mask=additive, position_ids=position_ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", ["bool", "-inf", "the lowest number of fp32", "the lowest number of its own"])
def test_a_ready_made_mask_that_hides_everything_from_a_padded_query_changes_no_other(dtype: torch.dtype, hidden: str) -> None:
    gpt, tokens = make(dtype).eval(), ids(2, 5)
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    seen = visible(5, 0, mask, None, torch.device("cpu")) & mask[:, None, :, None]
    ready = seen
    if hidden != "bool":
        kind = torch.float32 if "fp32" in hidden else dtype
        lowest = -torch.inf if hidden == "-inf" else torch.finfo(kind).min
        ready = torch.zeros(seen.shape, dtype=kind).masked_fill(~seen, lowest)
    position_ids = (mask.long().cumsum(1) - 1).clamp_min(0)
    states = gpt(tokens, attention_mask=ready, position_ids=position_ids)
    assert bool(states.isfinite().all())
    assert torch.equal(states[mask], gpt(tokens, attention_mask=mask)[mask])


def test_a_cache_in_training_with_checkpointing_is_refused() -> None:
    gpt = make().train()
    for block in gpt.layers:
        block.gradient_checkpointing = True
    with pytest.raises(InputError, match="cache is 'ListCache', expected none"):
        gpt(ids(1, 3), cache=ListCache())
    assert gpt.eval()(ids(1, 3), cache=ListCache()).shape == (1, 3, 32)


def test_ids_and_embeddings_exclude_each_other() -> None:
    gpt, tokens = make(), ids(1, 3)
    assert torch.equal(gpt(inputs_embeds=gpt.embed_tokens(tokens)), gpt(tokens))
    for both in ({}, {"input_ids": tokens, "inputs_embeds": gpt.embed_tokens(tokens)}):
        with pytest.raises(InputError, match="input_ids"):
            gpt(**both)


def test_angles_and_masks_are_built_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"rotary_angles": 0, "visible": 0}
    for name in calls:
        original = getattr(gpt_module, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(gpt_module, name, counted)
    make(n_layers=5)(ids(2, 4), attention_mask=torch.tensor([[False, True, True, True]] * 2))
    assert calls == {"rotary_angles": 1, "visible": 1}


# --- cache --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("chunks", [[1] * 7, [4, 1, 1, 1], [3, 4]])
@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_changes_nothing(kind: dict[str, Any], chunks: list[int], padded: bool) -> None:
    gpt, tokens = make(torch.float64, **kind), ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :2] = not padded
    cache, parts, start = ListCache(), [], 0
    for n in chunks:
        seen = mask[:, : start + n] if padded else None
        parts.append(gpt(tokens[:, start : start + n], attention_mask=seen, cache=cache))
        start += n
    whole = gpt(tokens, attention_mask=mask if padded else None)
    torch.testing.assert_close(torch.cat(parts, 1)[mask], whole[mask], rtol=1e-12, atol=1e-12)


# --- kernels against their naive twins ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("T", "S"), [(10, 10), (4, 4), (6, 9), (1, 9)])
def test_attention_by_matmul_equals_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, n_kv_heads: int, T: int, S: int) -> None:
    monkeypatch.setattr(gpt_module, "QUERY_BLOCK", 4)
    q = torch.randn(2, 4, T, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, n_kv_heads, S, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    valid = torch.ones(2, S, dtype=torch.bool)
    valid[0, :2] = False
    seen = visible(T, S - T, valid, None, torch.device("cpu"))
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    shared = Shared(mask, True, True, torch.float64, None, None)
    ours = _attend_by_matmul(q, k, v, shared, 0.0)
    wide = [x.repeat_interleave(4 // n_kv_heads, 1) for x in (k, v)]
    theirs = F.scaled_dot_product_attention(q, *wide, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(q)
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), g), torch.autograd.grad(theirs, (q, k, v), g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [1, 10])
def test_attention_by_matmul_drops_weights_and_keeps_their_mean(T: int) -> None:
    q, k, v = (torch.randn(4, 4, n, 8) for n in (T, 500, 500))
    mask = torch.zeros(1, 1, T, 500)
    out = _attend_by_matmul(q, k, torch.ones_like(v), Shared(mask, False, True, torch.float32, None, None), 0.5)
    assert (out - 1).abs().min() > 0  # without dropout every output is the mean of ones
    assert out.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("padded", [False, True])
def test_bf16_autocast_stays_near_fp32(padded: bool) -> None:
    gpt, tokens = make(n_kv_heads=2), ids(2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :3] = not padded
    exact = gpt(tokens, attention_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(tokens, attention_mask=mask)
    assert rounded.dtype == torch.float32  # the residual stream and the last norm
    error = (rounded - exact)[mask].norm() / exact[mask].norm()
    assert 1e-4 < error < 0.03  # bf16 keeps 8 bits, about 0.004 a step; 0 would mean that nothing ran in bf16


def test_rms_norm_and_its_gradients_equal_torchs_own() -> None:
    norm = RMSNorm(12, 1e-5)
    nn.init.normal_(norm.weight)
    x, g = torch.randn(3, 4, 12, requires_grad=True), torch.randn(3, 4, 12)
    ours, theirs = norm(x), F.rms_norm(x, (12,), norm.weight, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), ours, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    wrt = (x, norm.weight)
    for a, b in zip(torch.autograd.grad(ours, wrt, g), torch.autograd.grad(theirs, wrt, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # sums of 12 to 144 products in another order


def test_rms_norm_passes_the_gradient_check() -> None:
    norm = RMSNorm(5, 1e-5).double()
    assert torch.autograd.gradcheck(lambda x, w: _with_weight(norm, x, w), (_fp64(2, 3, 5), _fp64(5)))


def _fp64(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _with_weight(norm: RMSNorm, x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(norm, {"weight": weight}, (x,))


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_does_not_change_the_gradients(dropout: float) -> None:
    gpt, tokens = make(dropout=dropout).train(), ids(2, 6)
    g, gradients, runs = torch.randn(2, 6, 32), [], []
    gpt.layers[1].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    for enabled in (False, True):
        for block in gpt.layers:
            block.gradient_checkpointing = enabled
        gpt.zero_grad()
        torch.manual_seed(1)
        (gpt(tokens) * g).sum().backward()
        gradients.append([p.grad.clone() for p in gpt.parameters()])
    assert len(runs) == 1 + 2  # the second time once more, in the backward
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_dropout_is_off_in_eval_and_follows_its_modules(autocast: bool) -> None:
    gpt, tokens = make(dropout=0.5), ids(1, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert not torch.equal(gpt.train()(tokens), gpt(tokens))
        assert torch.equal(gpt.eval()(tokens), gpt(tokens))
        for module in gpt.modules():  # how RL trainers switch it off for good
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert torch.equal(gpt.train()(tokens), gpt.eval()(tokens))


def _growth(norm_place: str, scaled: bool, **kind: Any) -> tuple[float, float]:
    """The largest activation and gradient norm between 48 layers, relative to the first and to the last layer's."""
    options = GPTOptions(vocab_size=64, d_model=64, n_layers=48, n_heads=4, norm_place=norm_place, **kind)
    gpt = GPT(options)
    for module in gpt.modules():
        if hasattr(module, "feeds_residual"):
            module.feeds_residual = scaled
    gpt.apply(partial(initialise, o=options))
    trace: list[Tensor] = []
    states = gpt(torch.randint(0, 64, (2, 16)), trace=trace)
    for x in trace:
        x.retain_grad()
    (states * torch.randn_like(states)).sum().backward()
    first = 1 if norm_place == "post" else 0  # the first post-norm lifts the embeddings to 1 once and for all
    activations = [float(x.detach().norm()) for x in trace[first:-1]]
    gradients = [float(x.grad.norm()) for x in trace[first:-1] if x.grad is not None]
    return max(activations) / activations[0], max(gradients) / gradients[-1]


@pytest.mark.parametrize("kind", [{}, GPT2_LIKE, {"mlp": "relu"}], ids=["llama-like", "gpt2-like", "relu"])
def test_activations_and_gradients_stay_bounded_at_48_layers_thanks_to_the_scaled_projections(kind: dict[str, Any]) -> None:
    assert max(_growth("pre", True, **kind)) < 6  # mostly the first layers: the embeddings begin small
    assert min(_growth("pre", False, **kind)) > 20
    assert max(_growth("post", True, **kind)) < 2.5


def test_initialisation_has_the_stated_spread() -> None:
    gpt = make(d_model=128, n_layers=2, init_std=0.02, bias=True, norm="layernorm")
    assert gpt.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt.layers[0].attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (gpt.layers[1].attn.o_proj, gpt.layers[1].mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 2, rel=0.05)
        assert projection.bias.abs().max() == 0
    assert torch.equal(gpt.norm.weight, torch.ones(128))
