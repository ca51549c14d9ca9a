"""`access.py` on our GPT, on GPT-2 and on Llama, whole and under LoRA."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PhiConfig,
    PhiForCausalLM,
)

from rlhf_kit.errors import InputError
from rlhf_kit.models import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.access import hidden_states, output_head, positions_of, scalar_head, scalar_scores, scalar_values

IDS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
OURS = IDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "init_std": 0.2}
GPT2 = IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.2}
LLAMA = IDS | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"initializer_range": 0.2}

LANGUAGE_MODELS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: GPTForCausalLM(GPTConfig(**OURS)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
}
SCORERS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: GPTForSequenceClassification(GPTConfig(**OURS, num_labels=1)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, num_labels=1)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1)),
}
TARGETS = {"ours": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "llama": ["q_proj", "down_proj"]}
EVERY_MODEL = pytest.mark.parametrize("name", ["ours", "gpt2", "llama"])
EITHER_WAY = pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])


def build(name: str, lora: bool, scorer: bool) -> nn.Module:
    model = (SCORERS if scorer else LANGUAGE_MODELS)[name]().eval()
    if lora:
        task = TaskType.SEQ_CLS if scorer else TaskType.CAUSAL_LM
        model = get_peft_model(
            model, LoraConfig(task_type=task, r=2, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2")
        )
        for parameter_name, weight in model.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(weight)  # an adapter starts as nothing
    return model.eval()


def ragged(side: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows that may hold the pad token as a real one, and the same rows padded to 8 on `side`."""
    rows = [torch.randint(1, 50, (n,)) for n in (3, 6, 1)]
    rows[0][-1] = 1
    ids, mask = torch.full((3, 8), 1), torch.zeros(3, 8, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = {"left": slice(8 - len(row), 8), "right": slice(0, len(row)), "both": slice(1, 1 + len(row))}[side]
        ids[i, place], mask[i, place] = row, True
    return rows, ids, mask


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)  # fp32, other kernels with and without a mask


@EVERY_MODEL
@EITHER_WAY
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_hidden_states_do_not_depend_on_padding(name: str, lora: bool, side: str) -> None:
    model = build(name, lora, scorer=False)
    rows, ids, mask = ragged(side)
    states = hidden_states(model, ids, mask)
    assert states.shape == (3, 8, 32)
    for i, row in enumerate(rows):
        close(states[i][mask[i]], hidden_states(model, row[None])[0])


@EVERY_MODEL
@EITHER_WAY
def test_the_head_on_the_hidden_states_gives_the_models_logits(name: str, lora: bool) -> None:
    model, ids = build(name, lora, scorer=False), torch.randint(1, 50, (2, 7))
    weight, bias = output_head(model)
    assert weight.shape == (50, 32)
    assert bias is None
    close(hidden_states(model, ids) @ weight.T, model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)


@EVERY_MODEL
@EITHER_WAY
def test_packed_documents_are_separate(name: str, lora: bool) -> None:
    model, ids = build(name, lora, scorer=False), torch.randint(1, 50, (1, 7))
    packed = hidden_states(model, ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    close(packed[:, :3], hidden_states(model, ids[:, :3]))
    close(packed[:, 3:], hidden_states(model, ids[:, 3:]))


@EVERY_MODEL
@EITHER_WAY
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_scores_and_values_do_not_depend_on_padding(name: str, lora: bool, side: str) -> None:
    model = build(name, lora, scorer=True)
    rows, ids, mask = ragged(side)
    scores, values = scalar_scores(model, ids, mask), scalar_values(model, ids, mask)
    assert scores.shape == (3,)
    assert values.shape == (3, 8)
    for i, row in enumerate(rows):
        whole = torch.ones(1, len(row), dtype=torch.bool)
        close(scores[i : i + 1], scalar_scores(model, row[None], whole))
        close(values[i][mask[i]], scalar_values(model, row[None], whole)[0])
        close(values[i][mask[i]][-1], scores[i])


@EVERY_MODEL
def test_the_score_is_the_head_on_the_last_valid_state_plus_the_offset(name: str) -> None:
    model = build(name, False, scorer=True)
    model.config.score_bias = 0.5
    _, ids, mask = ragged("right")
    states = hidden_states(model, ids, mask)
    last = states[torch.arange(3), mask.sum(1) - 1]
    close(scalar_scores(model, ids, mask), (last @ model.score.weight.T)[:, 0] + 0.5)


def test_our_own_forward_gives_the_same_scores() -> None:
    model = build("ours", False, scorer=True)
    model.config.score_bias = 0.5
    for side in ("left", "right"):
        _, ids, mask = ragged(side)
        close(model(ids, attention_mask=mask).logits[:, 0], scalar_scores(model, ids, mask))


@EVERY_MODEL
def test_under_lora_the_gradient_reaches_the_adapter_and_the_score_head_only(name: str) -> None:
    model = build(name, True, scorer=True)
    _, ids, mask = ragged("left")
    scalar_scores(model, ids, mask).square().sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {n for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n}
    assert scalar_head(model).weight.requires_grad


@EVERY_MODEL
def test_with_the_adapter_off_the_states_are_the_base_models(name: str) -> None:
    model, ids = build(name, True, scorer=False), torch.randint(1, 50, (2, 5))
    adapted = hidden_states(model, ids)
    with model.disable_adapter():
        base = hidden_states(model, ids)
    assert (adapted - base).abs().max() > 1e-2
    torch.testing.assert_close(hidden_states(model.get_base_model().eval(), ids), adapted)
    close(hidden_states(model.unload(), ids), base)


def test_positions_count_valid_tokens() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, False, False]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_what_would_be_wrong_is_refused_by_name() -> None:
    scorer, ids = build("ours", False, scorer=True), torch.randint(1, 50, (2, 3))
    with pytest.raises(InputError, match="attention_mask row is 1"):
        scalar_scores(scorer, ids, torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(InputError, match=r"reward_model.architecture is 'GPTForCausalLM'"):
        scalar_head(build("ours", False, scorer=False))
    with pytest.raises(InputError, match=r"reward_model.num_labels is 2, expected 1"):
        scalar_head(GPTForSequenceClassification(GPTConfig(**OURS, num_labels=2)))
    adapted = get_peft_model(LANGUAGE_MODELS["ours"](), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(InputError, match=r"model\.lm_head"):
        output_head(adapted)


SMALL: dict[str, Any] = IDS | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8}
FALCON = SMALL | {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4}
TRANSFORMED: dict[str, Callable[[], nn.Module]] = {
    "a scale": lambda: CohereForCausalLM(CohereConfig(**SMALL)),
    "a cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=30.0)),
    "a scale of another name": lambda: FalconH1ForCausalLM(FalconH1Config(**FALCON, lm_head_multiplier=0.5)),
}


@pytest.mark.parametrize("kind", TRANSFORMED)
def test_a_model_whose_logits_are_more_than_its_head_is_refused_whatever_the_option_is_called(kind: str) -> None:
    model = TRANSFORMED[kind]()
    with pytest.raises(InputError, match=rf"model.architecture is '{type(model).__name__}', expected logits that are its head"):
        output_head(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_are_checked_once_and_the_model_is_left_as_it_was(dtype: torch.dtype) -> None:
    plain = [LANGUAGE_MODELS[name]() for name in LANGUAGE_MODELS]
    plain += [Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=None)), PhiForCausalLM(PhiConfig(**SMALL))]
    for model in plain:
        model.to(dtype).train()
        runs: list[int] = []
        model.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))  # type: ignore[misc]
        state = torch.get_rng_state()
        for _ in range(2):
            weight, bias = output_head(model)
        head = model.get_output_embeddings()  # type: ignore[operator]
        assert weight is head.weight
        assert bias is head.bias
        assert len(runs) == 1
        assert not head._forward_hooks
        assert all(module.training for module in model.modules())
        assert torch.equal(torch.get_rng_state(), state)
