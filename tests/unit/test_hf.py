"""The shells: Auto classes, saving, tying, generation, checkpointing, LoRA, the scalar head, presets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    StaticCache,
)

from rlhf_kit.errors import InputError
from rlhf_kit.models import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTModel
from rlhf_kit.models.presets import PRESETS, parameter_count, preset

GPT2_LIKE: dict[str, Any] = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "max_seq_len": 64}
KINDS = pytest.mark.parametrize("kind", [{"n_kv_heads": 2}, GPT2_LIKE], ids=["llama-like", "gpt2-like"])


def config(**fields: Any) -> GPTConfig:
    small = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "init_std": 0.3, "eos_token_id": 1, "pad_token_id": 0}
    return GPTConfig(**(small | fields))


def ids(B: int, T: int) -> Tensor:
    return torch.randint(2, 50, (B, T))


# --- saving and loading -------------------------------------------------------------------------------------------


@KINDS
def test_a_saved_model_is_what_every_auto_class_loads(kind: dict[str, Any], tmp_path: Path) -> None:
    model, tokens = GPTForCausalLM(config(**kind)).eval(), ids(2, 5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GPTForCausalLM
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert type(AutoConfig.from_pretrained(tmp_path)) is GPTConfig
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is GPTModel
    assert torch.equal(backbone(tokens)[0], model.model(tokens)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_directory_becomes_a_scorer_with_its_backbone_and_a_fresh_head(tied: bool, tmp_path: Path) -> None:
    model, tokens = GPTForCausalLM(config(d_model=256, tie_word_embeddings=tied)).eval(), ids(2, 5)
    model.save_pretrained(tmp_path)
    scorer, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, output_loading_info=True)
    assert type(scorer) is GPTForSequenceClassification
    assert set(report["missing_keys"]) == {"score.weight"}
    assert torch.equal(scorer.model(tokens)[0], model.model(tokens)[0])
    assert scorer.score.weight.shape == (1, 256)
    assert scorer.score.weight.std().item() == pytest.approx(257**-0.5, rel=0.2)  # a spread of 256 numbers


def test_the_score_offset_is_added_and_survives_saving(tmp_path: Path) -> None:
    scorer, tokens = GPTForSequenceClassification(config(num_labels=1)).eval(), ids(2, 5)
    before = scorer(tokens).logits
    scorer.config.score_bias = -1.5
    torch.testing.assert_close(scorer(tokens).logits, before - 1.5)
    scorer.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path)(tokens).logits, scorer(tokens).logits)


def test_loading_never_reinitialises_what_was_saved(tmp_path: Path) -> None:
    model = GPTForCausalLM(config())
    for weight in model.parameters():
        torch.nn.init.constant_(weight, 0.125)
    model.save_pretrained(tmp_path)
    assert all((weight == 0.125).all() for weight in AutoModelForCausalLM.from_pretrained(tmp_path).parameters())


# --- tying --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_embedding_exactly_when_tied(tied: bool, tmp_path: Path) -> None:
    model = GPTForCausalLM(config(tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    for m in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert (m.get_output_embeddings().weight is m.get_input_embeddings().weight) == tied
        assert m.num_parameters() == parameter_count(m.config)
    assert parameter_count(config(tie_word_embeddings=False)) - parameter_count(config()) == 50 * 32


def test_a_tied_head_follows_a_resized_or_replaced_embedding() -> None:
    model = GPTForCausalLM(config())
    model.resize_token_embeddings(60)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model(ids(1, 3)).logits.shape == (1, 3, 60)
    model.set_input_embeddings(torch.nn.Embedding(60, 32))
    model.tie_weights()
    assert model.lm_head.weight is model.model.gpt.embed_tokens.weight


# --- the language model -------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    model, tokens = GPTForCausalLM(config()).eval(), ids(2, 6)
    labels = tokens.clone()
    labels[0, :3] = -100
    out = model(tokens, labels=labels)
    logprobs, total, count = out.logits.log_softmax(-1), 0.0, 0
    for b in range(2):
        for t in range(1, 6):
            if labels[b, t] != -100:
                total, count = total - logprobs[b, t - 1, labels[b, t]].item(), count + 1
    assert count == 8
    assert out.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_logits_are_computed_only_where_asked() -> None:
    model, tokens = GPTForCausalLM(config()).eval(), ids(2, 6)
    whole = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole[:, -2:])
    torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


def test_all_hidden_states_are_returned_on_request_and_attentions_are_refused() -> None:
    model, tokens = GPTForCausalLM(config()).eval(), ids(1, 4)
    out = model(tokens, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(tokens))
    with pytest.raises(InputError, match="output_attentions"):
        model(tokens, output_attentions=True)


def test_packed_documents_stay_apart_even_with_a_cache_asked_for() -> None:
    model, tokens = GPTForCausalLM(config()).eval(), ids(1, 6)
    packed = model(tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=True).logits
    torch.testing.assert_close(packed[:, 3:], model(tokens[:, 3:]).logits, rtol=1e-5, atol=1e-5)


# --- generation ---------------------------------------------------------------------------------------------------


def _greedy(model: GPTForCausalLM, prompt: Tensor, steps: int) -> list[int]:
    """Greedy decoding without a cache, the oracle."""
    sequence = prompt.tolist()
    for _ in range(steps):
        sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequence[len(prompt) :]


@KINDS
@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=["dynamic", "static", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_generation_from_left_padded_prompts_equals_decoding_each_alone(
    kind: dict[str, Any], how: dict[str, Any], dtype: torch.dtype
) -> None:
    model = GPTForCausalLM(config(eos_token_id=None, **kind)).to(dtype).eval()
    prompts = [ids(1, n)[0] for n in (2, 5, 3)]
    tokens, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        tokens[i, 5 - len(prompt) :], mask[i, 5 - len(prompt) :] = prompt, 1
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, **how)
    with torch.no_grad():
        assert out[:, 5:].tolist() == [_greedy(model, prompt, 6) for prompt in prompts]


def test_sampling_and_beams_run_on_left_padded_prompts_as_on_unpadded_ones() -> None:
    model, prompt = GPTForCausalLM(config(eos_token_id=None)).eval(), ids(1, 3)
    padded, mask = torch.cat((torch.zeros(1, 2, dtype=torch.long), prompt), 1), torch.tensor([[0, 0, 1, 1, 1]])
    for how in ({"do_sample": True}, {"do_sample": False, "num_beams": 3}):
        answers = []
        for tokens, valid in ((prompt, torch.ones_like(prompt)), (padded, mask)):
            torch.manual_seed(3)
            out = model.generate(tokens, attention_mask=valid, max_new_tokens=6, **how)
            answers.append(out[0, tokens.shape[1] :].tolist())
        assert answers[0] == answers[1]


def test_a_static_cache_equals_no_cache() -> None:
    model, tokens = GPTForCausalLM(config()).eval(), ids(2, 6)
    cache = StaticCache(config=model.config, max_cache_len=10)
    inputs = model.prepare_inputs_for_generation(
        tokens, past_key_values=cache, attention_mask=torch.ones_like(tokens), is_first_iteration=True
    )
    torch.testing.assert_close(model(**inputs).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_switched_by_transformers_and_changes_nothing(reentrant: bool) -> None:
    model, tokens = GPTForCausalLM(config()).train(), ids(2, 6)
    model(tokens, labels=tokens).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    runs: list[int] = []
    model.model.gpt.layers[1].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    out = model(tokens, labels=tokens)
    assert out.past_key_values is None
    out.loss.backward()
    assert len(runs) == 2
    tolerance = 1e-4 if reentrant else 0.0  # the reentrant kind adds the two paths of the residual stream in another order
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=tolerance, atol=tolerance / 10)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_a_filled_cache_in_training_with_checkpointing_is_refused_and_an_empty_one_stays_empty() -> None:
    model, tokens = GPTForCausalLM(config()).train(), ids(2, 6)
    past = model(tokens[:, :4]).past_key_values
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(InputError, match="cache is 'DynamicCache', expected none while gradient checkpointing"):
        model(tokens[:, 4:], past_key_values=past)
    empty = DynamicCache(config=model.config)
    assert torch.equal(model(tokens, past_key_values=empty).logits, model(tokens).logits)
    assert empty.get_seq_length() == 0
    assert model.eval()(tokens[:, 4:], past_key_values=past).logits.shape == (2, 2, 50)


def test_lora_moves_only_its_own_weights_and_merges_to_the_same_logits(tmp_path: Path) -> None:
    base, tokens = GPTForCausalLM(config()), ids(2, 6)
    model = get_peft_model(base, LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves only B, which starts at 0
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert len(moved) == 2 * 2 * 3
    model.eval().save_pretrained(tmp_path)
    logits = model(tokens).logits
    torch.testing.assert_close(model.merge_and_unload()(tokens).logits, logits, rtol=1e-4, atol=1e-4)


def test_lora_with_checkpointing_trains_through_frozen_embeddings() -> None:
    base, tokens = GPTForCausalLM(config()).train(), ids(2, 6)
    model = get_peft_model(base, LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules="all-linear"))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)


# --- the scalar head ----------------------------------------------------------------------------------------------


@KINDS
def test_scores_do_not_depend_on_padding_or_on_the_pad_token(kind: dict[str, Any]) -> None:
    scorer = GPTForSequenceClassification(config(num_labels=1, pad_token_id=1, **kind)).eval()
    row = ids(1, 4)
    row[0, -1] = 1  # the text ends in the token that is also the padding
    alone = scorer(row, attention_mask=torch.ones_like(row)).logits
    for padding in ((3, 0), (0, 3), (1, 2)):
        tokens = torch.nn.functional.pad(row, padding, value=1)
        mask = torch.nn.functional.pad(torch.ones_like(row, dtype=torch.bool), padding, value=False)
        torch.testing.assert_close(scorer(tokens, attention_mask=mask).logits, alone, rtol=1e-5, atol=1e-5)


def test_a_padded_batch_without_a_mask_and_an_empty_row_are_refused() -> None:
    scorer, tokens = GPTForSequenceClassification(config(num_labels=1)), ids(2, 4)
    tokens[1, 3] = 0
    with pytest.raises(InputError, match="attention_mask is None"):
        scorer(tokens)
    mask = torch.ones_like(tokens)
    mask[1] = 0
    with pytest.raises(InputError, match="attention_mask row is 1"):
        scorer(tokens, attention_mask=mask)


def test_a_classifier_of_several_labels_computes_its_loss() -> None:
    classifier, tokens = GPTForSequenceClassification(config(num_labels=3)), ids(4, 5)
    labels = torch.tensor([0, 2, 1, 1])
    out = classifier(tokens, attention_mask=torch.ones_like(tokens), labels=labels)
    expected = -out.logits.log_softmax(-1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(out.loss, expected)


# --- presets and errors -------------------------------------------------------------------------------------------

COUNTS = {
    "gpt-1m": 1_115_264,
    "gpt-5m": 5_310_720,
    "gpt-14m": 13_767_552,
    "gpt-30m": 29_893_120,
    "gpt-110m": 109_529_856,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def test_every_preset_has_its_documented_number_of_parameters() -> None:
    assert {name: parameter_count(preset(name)) for name in PRESETS} == COUNTS


def test_a_preset_takes_overrides_and_any_vocabulary() -> None:
    changed = preset("gpt-5m", vocab_size=32_000, n_layers=2, tie_word_embeddings=False, pad_token_id=3)
    assert (changed.vocab_size, changed.n_layers, changed.d_model, changed.pad_token_id) == (32_000, 2, 256, 3)
    per_layer = 4 * 256**2 + 3 * 256 * 704 + 2 * 256
    assert parameter_count(changed) == 2 * 32_000 * 256 + 2 * per_layer + 256


def test_unknown_presets_and_fields_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="preset is 'gpt-9t', expected one of gpt-1m"):
        preset("gpt-9t")
    with pytest.raises(InputError, match="model field is 'n_layer'"):
        preset("gpt-1m", n_layer=3)


def test_bad_config_values_are_refused_on_building_and_on_loading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_heads is 5, expected a divisor of d_model \(32\)"):
        config(n_heads=5)
    good = config()
    good.norm = "batchnorm"
    good.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="norm is 'batchnorm', expected one of layernorm, rmsnorm"):
        AutoConfig.from_pretrained(tmp_path)
