"""Where TRL's GRPO and RLOO differ from ours: positions of prompts padded on the left, the KL's weight at sequence level."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

pytest.importorskip("trl")

from trl import GRPOTrainer, RLOOTrainer

from benchmarks.parity import grouped, world
from benchmarks.parity.trl_code import bare
from rlhf_kit.batches import Rollout
from rlhf_kit.rollout.experience import response_logprobs

ANSWER = [7, 4, 9]


def gpt2():
    """transformers' GPT-2: learned positions, which it counts from the first column unless it is told."""
    shape = GPT2Config(vocab_size=world.VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return world.filled(GPT2LMHeadModel(shape).double().eval(), 0.0)


def both_sides(name, model, padding):
    """The log-probabilities of one answer behind `padding` pads and a prompt of two tokens, by TRL and by us."""
    query = torch.tensor([[world.PAD] * padding + world.tokens(2, 1)])
    mask = torch.tensor([[False] * padding + [True] * 2])
    ids, whole = torch.tensor([ANSWER]), torch.ones(1, len(ANSWER), dtype=torch.bool)
    kind = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[name]
    trainer = bare(kind, model, model_kwarg_keys=(), temperature=1.0, is_fsdp_enabled=False, use_liger_kernel=False)
    trainer.args = SimpleNamespace(per_device_train_batch_size=1)
    with torch.no_grad():
        theirs, *_ = kind._get_per_token_logps_and_entropies.__wrapped__(  # without its profiler
            trainer, model, torch.cat([query, ids], 1), torch.cat([mask, whole], 1).long(), len(ANSWER)
        )
        rollout = Rollout(query, mask, ids, whole, whole[:, 0], torch.zeros(1).long(), torch.zeros(1, len(ANSWER)))
        ours, _ = response_logprobs(model, rollout, temperature=1.0, with_entropy=False)
    return theirs, ours


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_padding_on_the_left_moves_learned_positions_in_trl_and_not_in_ours(name):
    model = gpt2()
    (theirs, ours), (theirs_padded, ours_padded) = both_sides(name, model, 0), both_sides(name, model, 3)
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-6, atol=0)  # ours returns fp32
    torch.testing.assert_close(ours_padded, ours, rtol=1e-6, atol=0)
    assert (theirs_padded - theirs).abs().max() > 0.1


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_our_gpt_counts_its_positions_by_the_mask_so_that_trl_is_right_on_it(name):
    model = world.language_model(position="learned")
    (theirs, ours), (theirs_padded, _) = both_sides(name, model, 0), both_sides(name, model, 3)
    torch.testing.assert_close(theirs_padded, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-6, atol=0)


def test_at_sequence_level_trl_weighs_a_tokens_kl_by_the_whole_answers_ratio_and_we_by_its_own(monkeypatch):
    """Without the weight both are equal (the row of gspo); with it at token level, too (the row of grpo)."""
    key, ours, theirs = grouped.SETTINGS["gspo"]
    corrected = {"use_bias_correction_kl": True}
    monkeypatch.setitem(grouped.SETTINGS, "gspo", (key, ours | corrected, theirs | corrected))
    assert grouped.ours("gspo", "fp64")["loss"].item() != pytest.approx(grouped.theirs("gspo", "fp64")["loss"].item(), rel=1e-6)
