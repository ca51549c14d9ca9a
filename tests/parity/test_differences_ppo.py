"""Where TRL 1.12's PPOTrainer differs from our loop, both behaviours: its own `train()` on given answers."""

import sys
import threading
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("trl")

from trl.experimental.ppo import ppo_trainer

from benchmarks.parity import world
from benchmarks.parity.pieces import MASK, _rollout, _their_credit, wave
from benchmarks.parity.ppo import ANSWERS, EOS, LENGTH, PAD, QUERY, SETTINGS, answers_to, models, queries, run_ours, run_theirs
from benchmarks.parity.rows import relative_difference
from benchmarks.parity.trl_code import run_between
from rlhf_kit.objectives.advantages import gae, masked_whiten
from rlhf_kit.objectives.kl import shape_rewards
from rlhf_kit.rollout.generate import generate

ENDS = 2  # where the EOS stands in every answer


def ending(asked, step):
    """Answers of three tokens, the third an EOS; then padding."""
    ids = answers_to(asked, step)
    ids[:, ENDS] = EOS
    ids[:, ENDS + 1 :] = PAD
    return ids


def inside_train(answers, **settings):
    """The local names of `PPOTrainer.train` when it whitens its first rewards."""
    whiten, found = ppo_trainer.masked_whiten, []

    def spying(*args, **kwargs):
        found.append({name: x.clone() for name, x in sys._getframe(1).f_locals.items() if isinstance(x, torch.Tensor)})
        return whiten(*args, **kwargs)

    with patch.object(ppo_trainer, "masked_whiten", spying):
        run_theirs("fp64", answers, total_episodes=ANSWERS, num_ppo_epochs=1, **settings)
    return SimpleNamespace(**found[0])


def test_trls_score_stands_one_past_the_eos_and_ours_on_it():
    trl = inside_train(ending)
    bonus = trl.rewards - trl.non_score_reward
    assert bonus.nonzero()[:, 1].tolist() == [ENDS + 1] * ANSWERS
    mask = torch.arange(LENGTH).expand(ANSWERS, -1) <= ENDS
    rewards, non_score = shape_rewards(trl.scores, trl.logprobs, trl.ref_logprobs, mask, SETTINGS["kl_coef"])
    assert (rewards - non_score).nonzero()[:, 1].tolist() == [ENDS] * ANSWERS
    assert relative_difference(non_score, trl.non_score_reward) < 1e-12


def test_where_the_pad_is_the_eos_trl_never_trains_the_eos_and_we_do():
    def padded_with_eos(asked, step):
        return ending(asked, step).masked_fill(torch.arange(LENGTH) > ENDS, EOS)

    trl = inside_train(padded_with_eos, pad=EOS)
    assert (~trl.padding_mask).sum(1).tolist() == [ENDS] * ANSWERS  # the EOS at ENDS is padding
    model = world.language_model()
    ids = torch.tensor([world.tokens(3, seed) for seed in range(4)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    free = generate(model, ids, mask, max_new_tokens=8, eos_ids=[], pad_id=PAD, temperature=0).response_ids
    eos = int(free[0, 3])
    out = generate(model, ids, mask, max_new_tokens=8, eos_ids=[eos], pad_id=eos, temperature=0)
    row, stop = out.response_ids[0], int((free[0] == eos).nonzero()[0])
    assert bool(out.ended[0]) and row[stop:].tolist() == [eos] * (8 - stop)
    assert out.response_mask[0].tolist() == [True] * (stop + 1) + [False] * (7 - stop)


def test_trl_ignores_max_grad_norm_and_we_clip():
    bound = 1e-4
    plain, clipped = (run_theirs("fp64", total_episodes=ANSWERS, max_grad_norm=norm)["weights"] for norm in (0.0, bound))
    assert relative_difference(clipped, plain) < 1e-12  # not equal to the bit: the heap decides the order of some sums
    plain, clipped = (run_ours("fp64", max_grad_norm=norm)["weights"] for norm in (0.0, bound))
    assert relative_difference(clipped, plain) > 1e-2


def test_trls_minibatches_add_no_optimizer_step_where_gradients_are_accumulated_and_ours_do():
    """In a batch that is not the dataset's last: where the dataloader ends, accelerate ends an accumulation early.

    TRL's minibatches are steps where a rollout is one batch of the device and nothing is accumulated.
    """
    assert {trl_steps(count) for count in (1, 2)} == {SETTINGS["num_ppo_epochs"]}
    for count in (1, 2):
        assert len(run_ours("fp64", num_minibatches=count)["loss"]) == 2 * SETTINGS["num_ppo_epochs"] * count


def trl_steps(num_mini_batches):
    """Optimizer steps of one rollout of TRL's, in micro-batches of 4."""
    real = torch.optim.AdamW.step
    taken = []
    with patch.object(torch.optim.AdamW, "step", lambda self, *args, **kwargs: taken.append(1) or real(self, *args, **kwargs)):
        run_theirs(
            "fp32", repeat=2, total_episodes=ANSWERS, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            num_mini_batches=num_mini_batches, whiten_rewards=False,
        )  # fmt: skip
    return len(taken)


def test_trls_averages_count_padding_and_ours_do_not():
    settings = {"num_ppo_epochs": 1, "learning_rate": 1e-9}
    theirs = run_theirs("fp64", ending, total_episodes=ANSWERS, **settings)["policy/entropy_avg"][0]
    ours = run_ours("fp64", ending, num_epochs=1, learning_rate=1e-9)["policy/entropy_avg"][0]
    policy, asked = models("fp64")["policy"], queries()
    with torch.no_grad():
        both = torch.cat([asked, ending(asked, 0)], 1)
        logits = ppo_trainer.forward(policy, both, PAD).logits[:, QUERY - 1 : -1] / (SETTINGS["temperature"] + 1e-7)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert theirs == pytest.approx(entropy.mean().item(), rel=1e-5)  # Llama's norms are fp32 here
    assert ours == pytest.approx(entropy[:, : ENDS + 1].mean().item(), rel=1e-5)
    assert theirs != pytest.approx(ours, rel=1e-3)


def test_trls_logged_kl_is_of_the_estimator_and_ours_the_log_ratio():
    (theirs_k1, theirs_k3), (ours_k1, ours_k3) = (
        [run("fp64", **{"kl_estimator": k})["objective/kl"][0] for k in ("k1", "k3")] for run in (run_theirs, run_ours)
    )
    assert ours_k1 == pytest.approx(theirs_k1, rel=1e-12)
    assert ours_k3 == ours_k1
    assert theirs_k3 != pytest.approx(theirs_k1, rel=1e-2)


def test_trl_whitens_each_rank_alone_and_we_all_ranks_together():
    """Two ranks are two threads that add up their sums, beside TRL's own lines on each half and on the whole."""
    whole = _their_credit("k1").advantages
    halves = torch.cat([their_half(slice(0, 2)), their_half(slice(2, 4))])
    assert relative_difference(halves, whole) > 1e-2
    assert relative_difference(torch.cat(our_ranks()), whole) < 1e-12


def their_half(rows):
    logprobs, ref, values, scores, one_more = (x[rows] for x in _rollout())
    lengths = MASK[rows].sum(1)
    names = {
        "args": SimpleNamespace(kl_estimator="k1", kl_coef=0.3, whiten_rewards=False, gamma=0.97, lam=0.9),
        "logprobs": logprobs, "ref_logprobs": ref, "values": values, "scores": scores, "responses": logprobs,
        "sequence_lengths": lengths - 1, "sequence_lengths_p1": lengths,
        "padding_mask": ~MASK[rows], "padding_mask_p1": ~one_more,
    }  # fmt: skip
    return run_between("# 4. compute rewards", "empty_cache()", names).advantages


def our_ranks():
    """Each rank's advantages, from TRL's rewards on."""
    trl, (_, _, values, _, one_more) = _their_credit("k1"), _rollout()
    barrier, parts, results = threading.Barrier(2), [None, None], [None, None]

    def rank(index, rows):
        def reduce(local):
            parts[index] = local
            barrier.wait(timeout=10)
            total = parts[0] + parts[1]
            barrier.wait(timeout=10)
            return total

        advantages, _ = gae(trl.rewards[rows], values[rows], one_more[rows], gamma=0.97, lam=0.9)
        results[index] = masked_whiten(advantages, MASK[rows], reduce=reduce)

    threads = [threading.Thread(target=rank, args=(i, slice(2 * i, 2 * i + 2))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


def test_trls_masked_mean_of_an_unmasked_nan_is_a_nan_and_ours_is_not():
    """TRL multiplies by its mask; what is masked must be finite there."""
    from rlhf_kit.objectives.advantages import masked_mean

    x = wave(4, 6).masked_fill(~MASK, torch.nan)
    assert ppo_trainer.masked_mean(x, MASK).isnan()
    assert masked_mean(x, MASK).isfinite()
