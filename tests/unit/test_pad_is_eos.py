"""A tokenizer that pads with its end token: every stage must train the end, and none may take it for padding.

The proof is that nothing changes beside a tokenizer with a pad token of its own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_kit.batches import IGNORE
from rlhf_kit.data import world
from rlhf_kit.data.batching import ExampleBatches, PreferenceBatches
from rlhf_kit.data.examples import preference_examples, sft_examples
from rlhf_kit.data.feedback import FeedbackBatches, feedback_examples, unpair
from rlhf_kit.data.tokenizer import load_tokenizer, train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation
from rlhf_kit.training.stages import LanguageModelling, RewardModelling
from tests.unit import test_online as online_world


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `load_tokenizer` gives one that was saved without a pad token."""
    made = train_tokenizer(list(world.stories(200, 0)), 400)
    made.pad_token = None
    made.save_pretrained(folder := tmp_path_factory.mktemp("tokenizer"))
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id
    return loaded


def shape(tokenizer: Any, **more: Any) -> GPTConfig:
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPTConfig(vocab_size=len(tokenizer), d_model=32, n_layers=2, n_heads=2, max_seq_len=256, **ids, **more)


def both_pads(make: Any, examples: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The one micro-batch of all examples, padded with the end token and with another."""
    options = {"batch_size": len(examples), "micro_batch_size": len(examples), "seed": 0}
    first, second = (make(examples, pad_id=pad, **options).micro_batches(0, 0, 1)[0] for pad in (tokenizer.pad_token_id, 5))
    return first, second


def assert_same_loss(stage: Any, batches: tuple[Any, Any]) -> None:
    losses, grads = [], []
    for batch in batches:
        stage.begin_step([batch], make_accelerator())
        stage.zero_grad()
        loss, _ = stage(batch)
        loss.backward()
        losses.append(loss.detach())
        grads.append(torch.cat([p.grad.flatten() for p in stage.parameters() if p.grad is not None]))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(grads[0], grads[1])


def test_sft_trains_the_end_and_no_padding(tokenizer: Any) -> None:
    examples, _ = sft_examples(world.instructions(6, 0), tokenizer, 256)
    batch, other = both_pads(ExampleBatches, examples, tokenizer)
    assert not batch.attention_mask.all()
    assert bool((batch.labels[~batch.attention_mask] == IGNORE).all())
    ends = batch.attention_mask.sum(1) - 1
    last = batch.labels.gather(1, ends[:, None])[:, 0]
    assert bool((batch.input_ids.gather(1, ends[:, None])[:, 0] == tokenizer.eos_token_id).all())
    assert bool((last == tokenizer.eos_token_id).all())
    assert_same_loss(LanguageModelling(GPTForCausalLM(shape(tokenizer))), (batch, other))


def test_a_reward_model_reads_the_end_and_refuses_to_guess_where_it_is(tokenizer: Any) -> None:
    examples, _ = preference_examples(world.preferences(6, 0), tokenizer, 256)
    batch, other = both_pads(PreferenceBatches, examples, tokenizer)
    model = GPTForSequenceClassification(shape(tokenizer, num_labels=1))
    assert_same_loss(RewardModelling(model), (batch, other))
    with pytest.raises(InputError, match="attention_mask is None, expected a mask: the batch ends in pad_token_id"):
        model(input_ids=batch.chosen_ids)
    with pytest.raises(InputError, match="attention_mask is None, expected a mask"):
        model(input_ids=batch.chosen_ids[:1, : int(batch.chosen_mask[0].sum())])  # no padding, but who could tell


def test_preferences_and_judged_answers_count_the_end_and_no_padding(tokenizer: Any) -> None:
    pairs = world.preferences(6, 0)
    batches = both_pads(PreferenceBatches, preference_examples(pairs, tokenizer, 256)[0], tokenizer)
    ends = batches[0].chosen_mask.sum(1) - 1
    assert bool(batches[0].chosen_answer.gather(1, ends[:, None]).all())
    policy = GPTForCausalLM(shape(tokenizer))
    reference = GPTForCausalLM(shape(tokenizer, init_std=0.1))
    assert_same_loss(PreferenceOptimisation(policy, "dpo", reference=copy.deepcopy(reference)), batches)
    judged = both_pads(FeedbackBatches, feedback_examples(unpair(pairs), tokenizer, 256)[0], tokenizer)
    assert_same_loss(FeedbackOptimisation(policy, "kto", reference=reference), judged)


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_rl_samples_scores_and_trains_the_end_as_with_another_pad(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for pad in (online_world.EOS, 0):
        monkeypatch.setattr(online_world.Saves, "pad_token_id", pad)
        options: dict[str, Any] = {
            "algorithm": algorithm,
            "group_size": 1 if algorithm == "ppo" else 4,
            "missing_eos_penalty": 1.0,
        }
        policy, _, steps = online_world.run(tmp_path / f"{pad}", **options)
        found.append((online_world.weights(policy), steps))
    (first, steps), (second, _) = found
    assert torch.equal(first, second)
    rollout = steps[0][0]
    assert bool((rollout.response_ids[~rollout.response_mask] == online_world.EOS).all())
    assert bool((rollout.response_ids.eq(online_world.EOS) & rollout.response_mask).any(1).eq(rollout.ended).all())
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
