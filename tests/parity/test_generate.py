"""Our sampler against `transformers` generate and against a forward without a cache, on tiny random models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlhf_kit.models.access import positions_of
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM
from rlhf_kit.rollout.generate import generate

VOCAB, NEW = 97, 80  # enough new tokens for the cache to grow twice and for weights to be packed


def gpt2(**options: object) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=2, n_head=4, **options))


def llama(**options: object) -> nn.Module:
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=128)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **options))


def mistral() -> nn.Module:
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=128)
    return MistralForCausalLM(MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=24))


def ours(**options: object) -> nn.Module:
    return GPTForCausalLM(GPTConfig(vocab_size=VOCAB, max_seq_len=128, d_model=32, n_layers=2, n_heads=4, **options))


MODELS = {
    "gpt2": gpt2,
    "gpt2 eager": lambda: gpt2(attn_implementation="eager"),
    "llama gqa": llama,
    "mistral, sliding window": mistral,
    "ours, rotary gqa": lambda: ours(n_kv_heads=2),
    "ours, learned positions": lambda: ours(position="learned", norm="layernorm", mlp="gelu", bias=True),
}


def sharpened(model: nn.Module) -> nn.Module:
    """The model with weights large enough that its greedy answers vary and no two logits tie."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.15)
    return model.eval()


def prompts(lengths: tuple[int, ...] = (3, 9, 1, 12, 5, 12)) -> tuple[Tensor, Tensor]:
    width = max(lengths) + 2  # two columns that are padding for all
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return torch.randint(1, VOCAB, mask.shape).where(mask, 0), mask


def without_cache(model: nn.Module, ids: Tensor, mask: Tensor, out, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the answers by one padded forward, (B, R)."""
    whole, valid = torch.cat([ids, out.response_ids], 1), torch.cat([mask, out.response_mask], 1)
    with torch.no_grad():
        logits = model(input_ids=whole, attention_mask=valid.long(), position_ids=positions_of(valid), use_cache=False).logits
    logprobs = (logits[:, ids.shape[1] - 1 : -1].float() / (temperature + 1e-7)).log_softmax(-1)
    return logprobs.gather(2, out.response_ids.unsqueeze(2))[..., 0]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_transformers_generate_token_for_token(name: str) -> None:
    model = sharpened(MODELS[name]())
    ids, mask = prompts()
    free = model.generate(ids, attention_mask=mask.long(), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    eos = [int(free[0, ids.shape[1] + 20]), int(free[1, ids.shape[1] + 40])]
    theirs = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    out = generate(model, ids, mask, max_new_tokens=NEW, eos_ids=eos, pad_id=0, temperature=0)
    assert len(free[:, ids.shape[1] :].unique()) > 10, "the answers say too little"
    assert out.ended.sum() > 1
    assert torch.equal(out.response_ids, theirs[:, ids.shape[1] :])


@pytest.mark.parametrize("name", MODELS)
def test_sampled_logprobs_are_those_of_a_forward_without_cache(name: str) -> None:
    """Rows leave the batch on the way; fp32 sums in another order differ by about 1e-6."""
    model = sharpened(MODELS[name]())
    ids, mask = prompts()
    out = generate(model, ids, mask, max_new_tokens=NEW, eos_ids=[7, 8, 9, 10], pad_id=7, temperature=0.7)
    assert len(out.response_mask.sum(1).unique()) > 3
    expected = without_cache(model, ids, mask, out, 0.7)
    assert (out.logprobs - expected)[out.response_mask].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama gqa", "ours, rotary gqa"])
def test_bf16_autocast_decodes_what_the_bf16_forward_computes(name: str) -> None:
    """bf16 keeps 8 bits: logits of about 5 are off by about 0.02 each way, in either computation."""
    model = sharpened(MODELS[name]())
    ids, mask = prompts()
    with torch.autocast("cpu", torch.bfloat16):
        out = generate(model, ids, mask, max_new_tokens=NEW, eos_ids=[], pad_id=0)
        expected = without_cache(model, ids, mask, out)
    exact = without_cache(model, ids, mask, out)
    error, theirs = (out.logprobs - exact).abs().mean(), (expected - exact).abs().mean()
    assert 1e-5 < error < 1.5 * theirs < 0.1


@pytest.mark.parametrize(("name", "targets"), [("gpt2", ["c_attn", "c_fc"]), ("llama gqa", ["q_proj", "down_proj"])])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_count_in_sampling_and_disabling_them_counts_too(name: str, targets: list[str], dora: bool) -> None:
    model = sharpened(MODELS[name]())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, use_dora=dora, fan_in_fan_out=name == "gpt2"))
    with torch.no_grad():
        for parameter_name, weight in adapted.named_parameters():
            if "lora_B" in parameter_name:
                weight.normal_(0, 0.3)
    ids, mask = prompts()
    out = generate(adapted, ids, mask, max_new_tokens=NEW, eos_ids=[], pad_id=0)
    assert (out.logprobs - without_cache(adapted, ids, mask, out)).abs().max() < 2e-5
    with adapted.disable_adapter():
        plain = without_cache(adapted, ids, mask, out)
        base = generate(adapted, ids, mask, max_new_tokens=NEW, eos_ids=[], pad_id=0)
        assert (base.logprobs - without_cache(adapted, ids, mask, base)).abs().max() < 1e-5
    assert (out.logprobs - plain).abs().mean() > 0.1
