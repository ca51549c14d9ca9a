"""Joined rows: padding moves nothing, and only the answer's tokens are priced."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_kit.batches import PromptBatch, Rollout
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import Lora, load_causal_lm
from rlhf_kit.rollout.experience import Sampler, by_length, collect, join, reference_of, response_logprobs, response_values

VOCAB = 31


def models():
    """One model of each family that the kit promises."""
    return [
        GPTForCausalLM(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=32)),
        GPTForCausalLM(
            GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, position="learned", norm="layernorm")
        ),
        GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
        ),
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                max_position_embeddings=32,
            )
        ),
    ]


def make_rollout(generator_seed: int = 0) -> Rollout:
    """Three answers of 4, 1 and 2 tokens to prompts of 2, 4 and 1 tokens."""
    g = torch.Generator().manual_seed(generator_seed)
    queries, answers = [2, 4, 1], [4, 1, 2]
    query_mask = torch.arange(4) >= 4 - torch.tensor(queries)[:, None]
    response_mask = torch.arange(4) < torch.tensor(answers)[:, None]
    ids = torch.randint(3, VOCAB, (3, 8), generator=g)
    return Rollout(
        query_ids=ids[:, :4],
        query_mask=query_mask,
        response_ids=ids[:, 4:],
        response_mask=response_mask,
        ended=torch.tensor([True, True, False]),
        group_ids=torch.arange(3),
        sampler_logprobs=torch.zeros(3, 4),
    )


def test_joined_rows_hold_query_then_answer_and_nothing_else():
    rollout = make_rollout()
    joined = join(rollout)
    for row in range(3):
        query = rollout.query_ids[row][rollout.query_mask[row]].tolist()
        answer = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        assert joined.ids[row][joined.mask[row]].tolist() == query + answer
        assert joined.mask[row].tolist() == sorted(joined.mask[row].tolist(), reverse=True)
    assert torch.equal(joined.ids[joined.rows, joined.cols], rollout.response_ids[joined.rows, joined.slots])
    assert joined.ids.shape[1] == 6  # the longest row, not Q + R = 8


@pytest.mark.parametrize("model", models(), ids=["ours-rotary", "ours-learned", "gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_equal_one_unpadded_forward_a_row(model, temperature):
    model.eval()
    rollout = make_rollout()
    logprobs, entropy = response_logprobs(model, rollout, temperature=temperature)
    for row in range(3):
        query = rollout.query_ids[row][rollout.query_mask[row]]
        answer = rollout.response_ids[row][rollout.response_mask[row]]
        logits = model(input_ids=torch.cat([query, answer])[None]).logits[0, len(query) - 1 : -1]
        expected = torch.log_softmax(logits / (temperature + 1e-7), -1)
        torch.testing.assert_close(logprobs[row, : len(answer)], expected.gather(1, answer[:, None])[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(entropy[row, : len(answer)], -(expected.exp() * expected).sum(1), rtol=1e-5, atol=1e-6)
        assert (logprobs[row, len(answer) :] == 0).all()


def test_more_padding_changes_no_logprob_and_no_value():
    policy = models()[1].eval()
    critic = GPTForSequenceClassification(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_labels=1)).eval()
    rollout = make_rollout()
    wide = make_rollout()
    wide.query_ids = torch.cat([torch.full((3, 3), 9), wide.query_ids], 1)
    wide.query_mask = torch.cat([torch.zeros(3, 3, dtype=torch.bool), wide.query_mask], 1)
    assert torch.equal(
        response_logprobs(policy, rollout, temperature=1.0)[0], response_logprobs(policy, wide, temperature=1.0)[0]
    )
    assert torch.equal(response_values(critic, rollout), response_values(critic, wide))


def test_values_are_read_before_each_answer_token():
    critic = GPTForSequenceClassification(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_labels=1)).eval()
    rollout = make_rollout()
    values = response_values(critic, rollout)
    query = rollout.query_ids[0][rollout.query_mask[0]]
    answer = rollout.response_ids[0][rollout.response_mask[0]]
    for slot in range(len(answer)):
        seen = torch.cat([query, answer[:slot]])[None]  # what is known before token `slot` is drawn
        expected = critic(input_ids=seen, attention_mask=torch.ones_like(seen)).logits[0, 0]
        torch.testing.assert_close(values[0, slot], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", models(), ids=["ours-rotary", "ours-learned", "gpt2", "llama"])
def test_the_sampler_and_the_update_price_the_same_distribution(model):
    model.eval()
    query_mask = torch.tensor([[False, False, True], [True, True, True], [False, True, True], [True, True, True]])
    prompts = PromptBatch(torch.randint(3, VOCAB, (4, 3)), query_mask, torch.arange(4))
    sampler = Sampler(max_new_tokens=12, eos_ids=(2,), pad_id=2, temperature=0.7)
    rollout = collect(model, model, None, prompts, sampler, micro_batch_size=3, generator=torch.Generator().manual_seed(0))
    gap = (rollout.sampler_logprobs - rollout.old_logprobs)[rollout.response_mask].abs().max()
    assert gap < 1e-5  # two summation orders in fp32: cached one-token steps against one full forward
    assert torch.equal(rollout.old_logprobs, rollout.ref_logprobs)  # step 0: the policy is its own reference
    with torch.enable_grad():
        again, _ = response_logprobs(model, rollout, temperature=0.7)
    assert ((again - rollout.old_logprobs).exp() - 1).abs().max() < 1e-5


def test_micro_batches_of_like_length_cover_every_row_once():
    rollout = make_rollout()
    parts = by_length(rollout, 2)
    assert sorted(torch.cat(parts).tolist()) == [0, 1, 2]
    assert [len(part) for part in parts] == [2, 1]
    lengths = (rollout.query_mask.sum(1) + rollout.response_mask.sum(1))[torch.cat(parts)]
    assert lengths.tolist() == sorted(lengths.tolist())


def test_the_reference_of_a_lora_policy_is_its_base(tmp_path):
    base = models()[0]
    base.save_pretrained(tmp_path)
    policy = load_causal_lm(tmp_path, lora=Lora(rank=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    rollout = make_rollout()
    with torch.no_grad():
        expected, _ = response_logprobs(base.eval(), rollout, temperature=1.0)
        moved, _ = response_logprobs(policy.eval(), rollout, temperature=1.0)
        with reference_of(policy, None) as reference:
            found, _ = response_logprobs(reference, rollout, temperature=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (moved - expected).abs().max() > 1e-3
