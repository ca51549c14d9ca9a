"""Where TRL's preference losses differ from ours, both behaviours: TRL's own code on the batches of the benchmark."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

pytest.importorskip("trl")

from trl.experimental.orpo import orpo_trainer as trl_orpo
from trl.trainer.kto_trainer import KTOTrainer

from benchmarks.parity import world
from benchmarks.parity.preference import (
    ALIKE,
    BETA,
    PAIRS,
    batch_of,
    dpo_trainer,
    feedback_of,
    judged,
    kto_trainer,
    orpo_trainer,
    ours_on_pairs,
)
from benchmarks.parity.rows import gradients, relative_difference
from benchmarks.parity.sft import tokenizer
from benchmarks.parity.trl_code import bare, widened
from rlhf_kit.data.feedback import FeedbackBatches, FeedbackExample
from rlhf_kit.objectives.preference import Answers, orpo
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.preference import FeedbackOptimisation, answer_logps


def test_trls_sigmoid_ignores_label_smoothing():
    model, reference = world.language_model(), world.language_model(3.0)
    plain, smoothed = (dpo_trainer(model, reference, PAIRS, "sigmoid", label_smoothing=e)[0].item() for e in (0.0, 0.1))
    assert smoothed == plain
    ours = ours_on_pairs(model, reference, PAIRS, "dpo", beta=BETA, label_smoothing=0.1)[0].item()
    assert ours != pytest.approx(plain, rel=1e-3)


def test_trl_counts_a_tie_as_wrong_and_we_as_half():
    """So that at the first step, where policy and reference are one, TRL logs an accuracy of 0."""
    model, reference = world.language_model(), world.language_model()
    _, theirs = dpo_trainer(model, reference, PAIRS, "sigmoid")
    _, ours = ours_on_pairs(model, reference, PAIRS, "dpo")
    assert (theirs["rewards/accuracies"], ours["rewards/accuracies"]) == (0.0, 0.5)


def test_trls_orpo_raises_the_prompts_too_and_differs_in_nothing_else():
    """The paper and we raise the likelihood of the answer, each pair alike; TRL that of all tokens of the batch."""
    model = world.language_model()
    with widened("fp64"):
        theirs, logged = orpo_trainer(model, None, PAIRS, beta=BETA)
    ours, stats = ours_on_pairs(model, None, PAIRS, "orpo", beta=BETA)
    assert ours.item() != pytest.approx(theirs.item(), rel=1e-2)
    batch = batch_of(PAIRS)
    every = answer_logps(model, batch.chosen_ids, batch.chosen_mask, batch.chosen_mask).sum() / batch.chosen_mask[:, 1:].sum()
    assert -every.item() == pytest.approx(logged["nll_loss"], rel=1e-12)
    answers = answer_logps(model, batch.chosen_ids, batch.chosen_mask, batch.chosen_answer)
    alike = ours + (answers / batch.chosen_answer.sum(1)).mean() - every
    assert alike.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert relative_difference(gradients(alike, model), gradients(theirs, model)) < 1e-12
    for name in ("log_odds_ratio", "log_odds_chosen"):
        assert stats[name] == pytest.approx(logged[name], rel=1e-12)


def test_trls_odds_are_fp32_whatever_the_model_is():
    model = world.language_model()
    (theirs, _), (ours, _) = orpo_trainer(model, None, ALIKE, beta=BETA), ours_on_pairs(model, None, ALIKE, "orpo", beta=BETA)
    assert 1e-12 < abs(theirs.item() / ours.item() - 1) < 1e-6


def test_an_answer_known_by_heart_is_a_nan_in_trls_odds_and_not_in_ours():
    logps = torch.tensor([-(2.0**-26)], requires_grad=True)  # a likelihood of 1 - 1.5e-8
    (theirs,) = torch.autograd.grad(trl_orpo.log1mexp(logps).sum(), logps)
    assert theirs.isnan()
    one = torch.ones(1, dtype=torch.long)
    (ours,) = torch.autograd.grad(orpo(Answers(logps, one), Answers(torch.tensor([-1.0]), one))[0], logps)
    assert ours.isfinite()


def test_ktos_baseline_is_the_steps_and_trls_that_of_each_micro_batch():
    model, reference = world.language_model(), world.language_model(3.0)
    rows = judged(world.pairs((2, 4, 1, 3, 1, 2, 5, 3), (3, 7, 1, 5, 2, 4, 6, 2), (6, 2, 4, 5, 1, 3, 2, 7)))
    parts = [slice(0, 7), slice(7, 15)]
    whole, _ = kto_trainer(model, reference, rows)
    stage = FeedbackOptimisation(model, reference=reference, beta=BETA)
    micro_batches = [feedback_of(rows[part]) for part in parts]
    stage.begin_step(micro_batches, make_accelerator())
    ours = sum(stage(batch)[0] for batch in micro_batches) / len(rows)
    assert ours.item() == pytest.approx(whole.item(), rel=1e-12)
    assert relative_difference(gradients(ours, model), gradients(whole, model)) < 1e-12
    theirs = [kto_trainer(model, reference, rows[part]) for part in parts]
    assert theirs[0][1]["kl"] != pytest.approx(theirs[1][1]["kl"], rel=1e-2)
    assert (7 * theirs[0][0] + 8 * theirs[1][0]).item() / len(rows) != pytest.approx(whole.item(), rel=1e-4)


def test_trls_kto_baseline_lets_an_answer_meet_its_own_prompt_and_ours_does_not():
    """Two answers to one prompt stand side by side; TRL's partner of each is the answer before it, in the prepared dataset."""
    made = tokenizer()
    records = [
        {"prompt": prompt, "completion": completion, "label": label}
        for prompt, one, two in (("Hello", " you", " day"), ("Tell", " me", " word"))
        for completion, label in ((one, True), (two, False))
    ]
    trainer = bare(KTOTrainer, None, _tokenizer=made, calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0)
    args = SimpleNamespace(max_length=None, dataset_num_proc=None, per_device_train_batch_size=4)
    theirs = trainer._prepare_dataset(Dataset.from_list(records), made, args, "train")
    meets_itself = [
        row["KL_completion_ids"] in [other["completion_ids"] for other in theirs if other["prompt_ids"] == row["prompt_ids"]]
        for row in theirs
    ]
    assert meets_itself == [False, True, False, True]

    examples = [
        FeedbackExample(
            np.asarray(row["prompt_ids"]),
            np.asarray(row["completion_ids"]),
            np.ones(len(row["completion_ids"]), bool),
            row["label"],
        )
        for row in theirs
    ]
    (batch,) = FeedbackBatches(examples, batch_size=4, micro_batch_size=4, seed=0, pad_id=made.pad_token_id).micro_batches(
        0, 0, 1
    )
    own = {tuple(row["prompt_ids"] + row["completion_ids"]) for row in theirs}
    assert bool(batch.kl_answer.any(1).all())
    assert [tuple(ids[mask].tolist()) in own for ids, mask in zip(batch.kl_ids, batch.kl_mask)] == [False] * 4
