"""The stages that learn from preferences: what is trained, what is compared with, what resumes, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_kit.batches import PreferenceBatch
from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import PreferenceExample
from rlhf_kit.data.feedback import FeedbackBatches, FeedbackExample
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM
from rlhf_kit.models.loading import load_causal_lm
from rlhf_kit.objectives.preference import LOSSES
from rlhf_kit.training.checkpoint import Checkpoints
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import FitConfig, evaluate, fit
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation, answer_logps

VOCAB, PAD = 23, 0
PAIRED = [name for name, line in LOSSES.items() if line.paired]
RATE = {"ipo": 3e-3, "orpo": 3e-3}  # steps that this few pairs bear: both pull at more than the difference


class Saves:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, path, **_):
        """Nothing to save."""


def language_model(dropout=0.0):
    torch.manual_seed(0)
    return GPTForCausalLM(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, dropout=dropout))


def lora_model(dropout=0.0):
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    return get_peft_model(language_model(dropout), config)


def answers(count, seed=0):
    """Prompts of 1 to 3 tokens, a good answer (high tokens) and a bad one (low), of many lengths."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, count), rng.integers(1, 6, count), rng.integers(1, 6, count)
    for p, n, m in zip(*sizes):
        yield rng.integers(1, VOCAB, p), rng.integers(12, VOCAB, n), rng.integers(1, 12, m)


def pairs(count=24, seed=0):
    return [PreferenceExample(np.r_[p, good], np.r_[p, bad], len(p)) for p, good, bad in answers(count, seed)]


def judged(count=24, seed=0):
    """Judged answers, two to each of `count` / 2 prompts."""
    made = [(p, text, liked) for p, good, bad in answers(count // 2, seed) for text, liked in ((good, True), (bad, False))]
    return [FeedbackExample(p.astype(np.int32), text, np.ones(len(text), dtype=bool), liked) for p, text, liked in made]


def make_batches(loss, count=24, micro_batch_size=8, batch_size=8, seed=0):
    if LOSSES[loss].paired:
        return PreferenceBatches(pairs(count, seed), batch_size, micro_batch_size, 0, PAD)
    return FeedbackBatches(judged(count, seed), batch_size, micro_batch_size, 0, PAD)


def make_stage(loss, model=None, **options):
    kind = PreferenceOptimisation if LOSSES[loss].paired else FeedbackOptimisation
    return kind(model or language_model(), loss, **options)


def run(path, loss="dpo", model=None, train=None, held_out=None, **changes):
    """`fit` on one loss; the stage and what it returned."""
    stage = make_stage(loss, model)
    base = FitConfig(
        output_dir=path, max_steps=6, eval_every=0, save_every=0, log_every=1, warmup_fraction=0.0, schedule="constant",
        learning_rate=RATE.get(loss, 1e-2), weight_decay=0.0,
    )  # fmt: skip
    config = replace(base, **changes)
    accelerator = make_accelerator("bf16" if config.precision == "bf16" else "no")
    found = fit(stage, train or make_batches(loss), config, accelerator, tokenizer=Saves(), eval_batches=held_out)
    return stage, found


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logged(path, key):
    return [row[key] for line in (path / "metrics.jsonl").read_text().splitlines() if key in (row := json.loads(line))]


def step_of(stage, batch):
    """The loss of one batch that is the whole step."""
    stage.begin_step([batch], make_accelerator())
    return stage(batch)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_teaches_to_prefer_what_people_prefer(loss, tmp_path):
    held_out = make_batches(loss, count=16, seed=5)
    before = evaluate(make_stage(loss), held_out, make_accelerator())
    _, after = run(tmp_path, loss, train=make_batches(loss, count=64), held_out=held_out, max_steps=30)
    losses = logged(tmp_path, "train/loss")
    assert losses[-1] < losses[0]
    assert after["eval/rewards/margins"] > before["eval/rewards/margins"] + 0.05
    if LOSSES[loss].paired:
        assert after["eval/rewards/accuracies"] > 0.9
    if LOSSES[loss].reference:
        assert before["eval/rewards/margins"] == 0


@pytest.mark.parametrize("model", [language_model, lora_model])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_at_the_first_step_policy_and_reference_agree_exactly_even_with_dropout_in_the_model(loss, model):
    stage = make_stage(loss, model(dropout=0.5)).train()
    (batch,) = make_batches(loss).micro_batches(0, 0, 1)
    _, stats = step_of(stage, batch)
    assert all(stats[f"rewards/{side}"].item() == 0 for side in ("chosen", "rejected"))


def test_a_whole_policy_moves_away_from_a_frozen_copy_that_nobody_trains_or_saves(tmp_path):
    stage, _ = run(tmp_path, save_every=3)
    start = language_model()
    assert torch.equal(weights(stage.reference), weights(start))
    assert not torch.equal(weights(stage.model), weights(start))
    assert not any(p.requires_grad for p in stage.reference.parameters())
    assert stage.state_dict().keys() == {f"model.{name}" for name in start.state_dict()}
    _, shared, _ = Checkpoints(tmp_path / "trainer_state", make_accelerator()).load_latest()
    assert shared["stage"].keys() == stage.state_dict().keys()
    assert sum(len(group["params"]) for group in shared["optimizer"]["param_groups"]) == len(list(start.parameters()))
    assert torch.equal(weights(load_causal_lm(tmp_path)), weights(stage.model))


def test_the_reference_moves_and_changes_precision_with_the_policy():
    stage = make_stage("dpo").double()
    assert {p.dtype for p in stage.reference.parameters()} == {torch.float64}
    assert make_stage("simpo").reference is None


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_a_lora_policy_is_compared_with_its_base_and_only_adapter_weights_move(loss, tmp_path):
    model = lora_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stage, _ = run(tmp_path, loss, model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert stage.reference is None
    (batch,) = make_batches(loss).micro_batches(0, 0, 1)
    if loss == "dpo":
        plain = language_model()
        found = stage._answers(batch.chosen_ids, batch.chosen_mask, batch.chosen_answer)
        base = answer_logps(plain, batch.chosen_ids, batch.chosen_mask, batch.chosen_answer)
        torch.testing.assert_close(found.ref_logps, base, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(found.logps, base, atol=1e-2)


def test_an_answers_log_probability_is_that_of_its_tokens_whatever_stands_beside_it():
    model, (batch,) = language_model(), make_batches("dpo").micro_batches(0, 0, 1)
    found = answer_logps(model, batch.chosen_ids, batch.chosen_mask, batch.chosen_answer)
    for i, pair in enumerate(batch.chosen_ids):
        ids = pair[batch.chosen_mask[i]]
        logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        begin = int(batch.chosen_answer[i].nonzero()[0])
        expected = sum(float(logs[t - 1, ids[t]].detach()) for t in range(begin, len(ids)))
        assert found[i].item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_micro_batches_do_not_change_the_step(loss, tmp_path):
    """KTO's baseline too is that of the step: the loss of each answer does not depend on who shares its forward."""
    runs = {}
    for size in (8, 3):
        runs[size], _ = run(tmp_path / f"{size}", loss, train=make_batches(loss, micro_batch_size=size), max_steps=4)
    for key in ("train/loss", "train/rewards/margins", "train/kl", "grad_norm"):
        whole, parts = (logged(tmp_path / f"{size}", key) for size in (8, 3))
        assert whole == pytest.approx(parts, rel=2e-4, abs=2e-5), key
    torch.testing.assert_close(weights(runs[8].model), weights(runs[3].model), rtol=0, atol=2e-4)  # Adam spreads rounding
    if loss == "kto":
        assert max(logged(tmp_path / "8", "train/kl")) > 0.01


class Killed(Exception):
    """The machine went away."""


class KilledAt:
    """Batches that fail at one step, as a killed process would."""

    def __init__(self, inner, step):
        self.inner, self.step, self.steps_per_epoch = inner, step, inner.steps_per_epoch

    def micro_batches(self, step, rank, world):
        if step == self.step:
            raise Killed
        return self.inner.micro_batches(step, rank, world)


@pytest.mark.parametrize("model", [language_model, lora_model])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_killed_run_resumes_bit_for_bit_with_the_reference_it_began_with(loss, model, tmp_path):
    whole, _ = run(tmp_path / "whole", loss, model(dropout=0.2), save_every=2)
    with pytest.raises(Killed):
        run(tmp_path / "killed", loss, model(dropout=0.2), train=KilledAt(make_batches(loss), 5), save_every=2)
    resumed, _ = run(tmp_path / "killed", loss, model(dropout=0.2), save_every=2, resume=True)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    for key in ("train/loss", "train/rewards/margins"):
        assert logged(tmp_path / "killed", key) == logged(tmp_path / "whole", key)


@pytest.mark.parametrize("model", [language_model, lora_model])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_gradient_checkpointing_changes_nothing_and_says_nothing(loss, model, tmp_path, recwarn):
    plain, _ = run(tmp_path / "a", loss, model(), max_steps=3)
    checkpointed, _ = run(tmp_path / "b", loss, model(), max_steps=3, gradient_checkpointing=True)
    torch.testing.assert_close(weights(plain.model), weights(checkpointed.model), rtol=0, atol=1e-6)
    assert not [w for w in recwarn if "checkpoint" in str(w.message) and w.category is not FutureWarning]


@pytest.mark.parametrize("model", [language_model, lora_model])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_bf16_computes_in_bf16_over_fp32_weights_and_keeps_every_gradient(loss, model, tmp_path):
    run(tmp_path / "a", loss, model(), max_steps=8)
    half, _ = run(tmp_path / "b", loss, model(), max_steps=8, precision="bf16")
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    first, second = logged(tmp_path / "a", "train/loss"), logged(tmp_path / "b", "train/loss")
    assert first != second
    assert first == pytest.approx(second, rel=5e-2)  # bf16 has 8 bits of mantissa, and a loss of differences few digits
    # A weight that autocast had cached without its gradient would not show in the loss, but in the norm.
    first, second = logged(tmp_path / "a", "grad_norm"), logged(tmp_path / "b", "grad_norm")
    assert first[0] == pytest.approx(second[0], rel=2e-2)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_rank_without_rows_counts_for_nothing_but_reaches_every_parameter(loss):
    stage = make_stage(loss)
    (empty,) = make_batches(loss, count=2, batch_size=2).micro_batches(0, 2, 3)
    value, stats = step_of(stage, empty)
    value.backward()
    assert stage.units(empty).item() == value.item() == 0
    assert all(float(x) == 0 for x in stats.values())
    assert all(p.grad is not None and not p.grad.any() for p in stage.model.parameters())


def test_a_pair_without_an_answer_on_one_side_counts_for_nothing():
    stage, (batch,) = make_stage("dpo"), make_batches("dpo").micro_batches(0, 0, 1)
    whole, _ = stage(batch)
    batch.chosen_answer[3] = False
    part, _ = stage(batch)
    assert stage.units(batch) == len(batch.chosen_ids) - 1
    assert whole.item() - part.item() == pytest.approx(np.log(2), rel=1e-5)


def test_classes_are_averaged_by_their_own_count_and_one_that_did_not_occur_is_left_out():
    stage = make_stage("kto")
    totals = {"loss": 3.0, "kl": 1.5, "units": 3.0, "rewards/chosen": 4.0, "logps/chosen": -8.0, "count/chosen": 2.0}
    both = totals | {"rewards/rejected": -1.0, "logps/rejected": -9.0, "count/rejected": 1.0}
    expected = {"loss": 1.0, "kl": 0.5, "rewards/chosen": 2.0, "logps/chosen": -4.0}
    assert stage.means(both) == expected | {"rewards/rejected": -1.0, "logps/rejected": -9.0, "rewards/margins": 3.0}
    none = totals | {"rewards/rejected": 0.0, "logps/rejected": 0.0, "count/rejected": 0.0}
    assert stage.means(none) == expected


def test_what_cannot_be_is_refused_by_name():
    model = language_model()
    for loss, said in (("cpo", r"--loss is 'cpo', expected one of dpo, robust, hinge, ipo, simpo, orpo$"), ("kto", "--loss")):
        with pytest.raises(InputError, match=said):
            PreferenceOptimisation(model, loss)
    with pytest.raises(InputError, match=r"--loss is 'dpo', expected one of kto$"):
        FeedbackOptimisation(model, "dpo")
    with pytest.raises(InputError, match=r"--gamma is 1.0, but dpo has no such setting: leave it out \(beta, label_smoothing\)"):
        make_stage("dpo", gamma=1.0)
    with pytest.raises(InputError, match=r"--loss is 'robust', whose label_smoothing is 0.5, expected at least 0"):
        make_stage("robust", label_smoothing=0.5)
    with pytest.raises(InputError, match=r"--loss is 'kto', whose beta is -1, expected a number above 0"):
        make_stage("kto", beta=-1)
    with pytest.raises(InputError, match=r"reference is 'GPTForCausalLM', expected none: orpo compares with no reference"):
        make_stage("orpo", reference=model)
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"chosen_answer is None, expected \(B, T\): say which tokens"):
        make_stage("dpo")(PreferenceBatch(ids, mask, ids, mask))
    with pytest.raises(RuntimeError, match="begin_step was not called"):
        make_stage("kto")(*make_batches("kto").micro_batches(0, 0, 1))


def test_an_adapter_that_is_frozen_or_whose_base_would_move_is_refused():
    frozen = lora_model().requires_grad_(False)
    with pytest.raises(InputError, match=r"adapter is 'default', whose weights are all frozen: load it with is_trainable=True"):
        make_stage("dpo", frozen)
    loose = lora_model()
    loose.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"trained weight outside the adapter is '.*embed.*', but the reference is the policy"):
        make_stage("dpo", loose)
    make_stage("dpo", loose, reference=language_model())
    make_stage("simpo", loose)
