"""The preference losses against TRL 1.12's own code: same weights, same batch, every loss and every gradient.

TRL's `_compute_loss` and `get_batch_loss_metrics` run on a trainer that is made without its constructor, and on batches
that TRL's own collators made. All in fp64, so that agreement to 1e-12 leaves no room for another formula; DPO in fp32, too.
Where TRL differs on purpose or by accident, the test shows both behaviours.
"""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo import orpo_trainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from rlhf_kit.batches import FeedbackBatch, PreferenceBatch
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM
from rlhf_kit.objectives.preference import Answers, orpo
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation, answer_logps

VOCAB, PAD = 31, 0
RTOL32 = 2e-6  # seen: 2e-7 in the losses, 7e-7 in the gradients
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
)


def language_model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    shape = GPTConfig(vocab_size=VOCAB, d_model=16, n_layers=2, n_heads=2, max_seq_len=32, init_std=0.3)
    return GPTForCausalLM(shape).to(dtype)


def rows(count=5, prompt=None, chosen=None, seed=0):
    """Token lists in TRL's words: prompts, chosen and rejected answers of many lengths, or of the lengths given."""
    rng = np.random.default_rng(seed)

    def draw(length, most):
        return rng.integers(1, VOCAB, length or rng.integers(1, most)).tolist()

    return [{"prompt_ids": draw(prompt, 5), "chosen_ids": draw(chosen, 8), "rejected_ids": draw(None, 8)} for _ in range(count)]


def ours_of(examples):
    """Our batch of TRL's rows, from what TRL's collator makes of them."""
    batch = DataCollatorForPreference(pad_token_id=PAD)(examples)
    ids, mask, answer = (batch[name].chunk(2) for name in ("input_ids", "attention_mask", "completion_mask"))
    answers = {"chosen_answer": answer[0].bool(), "rejected_answer": answer[1].bool()}
    return PreferenceBatch(ids[0], mask[0].bool(), ids[1], mask[1].bool(), **answers)


def trainer(kind, model, **fields):
    """A trainer of TRL without its constructor."""
    made = object.__new__(kind)
    common = {
        "model": model, "accelerator": ACCELERATOR, "aux_loss_enabled": False, "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0, "args": SimpleNamespace(gradient_checkpointing_kwargs=None), "is_encoder_decoder": False,
    }  # fmt: skip
    made.__dict__.update(common | fields)
    return made


def dpo_loss(model, reference, examples, kind, *, beta=0.3, label_smoothing=0.0):
    """TRL's loss and metrics on pairs."""
    made = trainer(
        DPOTrainer, model, ref_model=reference, ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl",
        loss_types=[kind], loss_weights=[1.0], beta=beta, label_smoothing=label_smoothing, use_weighting=False,
    )  # fmt: skip
    loss = made._compute_loss(model, DataCollatorForPreference(pad_token_id=PAD)(examples), False)
    return loss, {name: values[0] for name, values in made._metrics["train"].items()}


def kto_loss(model, reference, batch, **weights):
    """TRL's loss and metrics on judged answers."""
    made = trainer(
        KTOTrainer, model, ref_model=reference, precompute_ref_logps=False, calculate_KL=True, use_liger_kernel=False,
        loss_type="kto", beta=0.3, **({"desirable_weight": 1.0, "undesirable_weight": 1.0} | weights),
    )  # fmt: skip
    loss = made._compute_loss(model, batch, False)
    return loss, {name: values[0] for name, values in made._metrics["train"].items()}


def reference_free_loss(kind, model, examples, **fields):
    """CPO's or ORPO's loss and metrics on pairs, in their own batch format."""
    batch = {}
    for side in ("chosen", "rejected"):
        whole = [e["prompt_ids"] + e[f"{side}_ids"] for e in examples]
        labels = [[-100] * len(e["prompt_ids"]) + e[f"{side}_ids"] for e in examples]
        masks = [[1] * len(ids) for ids in whole]
        for name, values, fill in (("input_ids", whole, PAD), ("attention_mask", masks, 0), ("labels", labels, -100)):
            tensors = [torch.tensor(v) for v in values]
            batch[f"{side}_{name}"] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    made = trainer(kind, model, pad_token_id=PAD, padding_value=PAD, **fields)
    return made.get_batch_loss_metrics(model, batch)


def judged(examples):
    """Every answer of the pairs judged alone, with the partners that TRL gives them: each the answer before it."""
    single = [
        {"prompt_ids": e["prompt_ids"], "completion_ids": e[f"{side}_ids"], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for e in examples
    ][:-1]  # the classes of unequal size
    partners = [single[-1], *single[:-1]]
    for example, partner in zip(single, partners):
        example["KL_completion_ids"] = partner["completion_ids"]
    return DataCollatorForUnpairedPreference(pad_token_id=PAD)(single)


def ours_of_judged(batch, part=slice(None)):
    """Our batch of what TRL's collator made, or a part of its rows."""
    names = "input_ids", "attention_mask", "completion_mask", "label", "KL_input_ids", "KL_attention_mask", "KL_completion_mask"
    found = [batch[name][part] for name in names]
    return FeedbackBatch(*(x if "ids" in name else x.bool() for name, x in zip(names, found)))


def gradients(loss, model):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named, found)}


def assert_same(mine, theirs, model, rtol=1e-12):
    """Losses to `rtol`, and each parameter's gradient to `rtol` of its own norm."""
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=0, check_dtype=False)
    mine, theirs = gradients(mine, model), gradients(theirs, model)
    assert any(g.any() for g in theirs.values())
    for name, want in theirs.items():
        assert (mine[name] - want).norm() <= rtol * want.norm() + 1e-14, name


def on_pairs(model, reference, examples, loss, **options):
    """Our mean loss and statistics."""
    stage = PreferenceOptimisation(model, loss, reference=reference, **options)
    value, stats = stage(ours_of(examples))
    return value / len(examples), {name: x.item() / len(examples) for name, x in stats.items()}


DPO = [("dpo", "sigmoid", {}), ("robust", "robust", {"label_smoothing": 0.1}), ("hinge", "hinge", {}), ("ipo", "ipo", {})]
TRL_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.mark.parametrize(("ours", "theirs", "options"), DPO)
def test_losses_against_a_reference_equal_the_dpo_trainer(ours, theirs, options):
    model, reference, examples = language_model(), language_model(1), rows()
    want, metrics = dpo_loss(model, reference, examples, theirs, **options)
    got, stats = on_pairs(model, reference, examples, ours, beta=0.3, **options)
    assert_same(got, want, model)
    for name in TRL_METRICS:
        assert stats[name] == pytest.approx(metrics[name], rel=1e-6), name  # TRL counts accuracies in fp32


@pytest.mark.parametrize(("ours", "theirs", "options"), DPO)
def test_losses_and_gradients_agree_in_fp32_as_well(ours, theirs, options):
    (model, reference), examples = (language_model(seed, torch.float32) for seed in (0, 1)), rows()
    want, _ = dpo_loss(model, reference, examples, theirs, **options)
    # Sums of log-probabilities are rounded at about 30 and their differences compared: that costs a digit of the seven.
    assert_same(on_pairs(model, reference, examples, ours, beta=0.3, **options)[0], want, model, rtol=RTOL32)


def test_label_smoothing_equals_aot_on_single_pairs_where_nothing_is_sorted():
    """TRL's `sigmoid` knows no label smoothing; its `aot` does, and is the smoothed loss where a batch is one pair."""
    model, reference, examples = language_model(), language_model(1), rows()
    alone = [dpo_loss(model, reference, [example], "aot", label_smoothing=0.1)[0] for example in examples]
    got, _ = on_pairs(model, reference, examples, "dpo", beta=0.3, label_smoothing=0.1)
    assert_same(got, torch.stack(alone).mean(), model)
    silent, plain = (dpo_loss(model, reference, examples, "sigmoid", label_smoothing=e)[0] for e in (0.1, 0.0))
    assert silent.item() == plain.item() != pytest.approx(got.item(), rel=1e-3)


def test_label_smoothing_equals_the_cpo_trainer_against_a_reference_that_knows_nothing():
    """Answers of one length a pair: under a blank reference they are then equally likely, and CPO has none."""
    model, blank = language_model(), language_model(1)
    with torch.no_grad():
        blank.get_output_embeddings().weight.zero_()  # every token has the probability 1 / VOCAB
    examples = [{**e, "rejected_ids": (e["rejected_ids"] * 8)[: len(e["chosen_ids"])]} for e in rows()]
    fields = {"loss_type": "sigmoid", "label_smoothing": 0.1, "beta": 0.3, "alpha": 0.0, "cpo_alpha": 0}
    want, _ = reference_free_loss(CPOTrainer, model, examples, **fields)
    assert_same(on_pairs(model, blank, examples, "dpo", beta=0.3, label_smoothing=0.1)[0], want, model)


def test_simpo_equals_the_cpo_trainer():
    model, examples = language_model(), rows()
    fields = {"loss_type": "simpo", "simpo_gamma": 0.7, "label_smoothing": 0.0, "beta": 2.0, "alpha": 0.0, "cpo_alpha": 0}
    want, metrics = reference_free_loss(CPOTrainer, model, examples, **fields)
    got, stats = on_pairs(model, None, examples, "simpo", beta=2.0, gamma=0.7)
    assert_same(got, want, model)
    for name in TRL_METRICS:
        assert stats[name] == pytest.approx(metrics[name], rel=1e-6), name


def test_orpo_equals_the_orpo_trainer_where_both_mean_the_same_likelihood():
    """Prompts of one token, of which none is predicted, and chosen answers of one length: then the means agree."""
    model, examples = language_model(), rows(prompt=1, chosen=4)
    want, metrics = reference_free_loss(ORPOTrainer, model, examples, beta=0.3)
    got, stats = on_pairs(model, None, examples, "orpo", beta=0.3)
    # TRL casts to fp32 for the odds.
    assert_same(got, want, model, rtol=1e-6)
    for name in (*TRL_METRICS, "nll_loss", "log_odds_ratio", "log_odds_chosen"):
        assert stats[name] == pytest.approx(metrics[name], rel=1e-5), name


def test_orpo_differs_from_trl_in_whose_likelihood_it_raises_and_in_nothing_else():
    """TRL raises that of all tokens of the batch, prompts too; the paper and we that of the answer, each pair alike."""
    model, examples = language_model(), rows()
    want, metrics = reference_free_loss(ORPOTrainer, model, examples, beta=0.3)
    got, stats = on_pairs(model, None, examples, "orpo", beta=0.3)
    assert got.item() != pytest.approx(want.item(), rel=1e-2)
    batch = ours_of(examples)
    every = answer_logps(model, batch.chosen_ids, batch.chosen_mask, batch.chosen_mask).sum() / batch.chosen_mask[:, 1:].sum()
    assert -every.item() == pytest.approx(metrics["nll_loss"], rel=1e-6)
    answers = answer_logps(model, batch.chosen_ids, batch.chosen_mask, batch.chosen_answer)
    mine = (answers / batch.chosen_answer.sum(1)).mean()
    assert_same(got + mine - every, want, model, rtol=1e-6)  # TRL's odds are fp32
    for name in ("log_odds_ratio", "log_odds_chosen"):
        assert stats[name] == pytest.approx(metrics[name], rel=1e-5)


def test_an_answer_known_by_heart_is_a_nan_in_trls_odds_and_not_in_ours():
    logps = torch.tensor([-(2.0**-26)], requires_grad=True)  # a likelihood of 1 - 1.5e-8
    (theirs,) = torch.autograd.grad(orpo_trainer.log1mexp(logps).sum(), logps)
    assert theirs.isnan()
    one = torch.ones(1, dtype=torch.long)
    (mine,) = torch.autograd.grad(orpo(Answers(logps, one), Answers(torch.tensor([-1.0]), one))[0], logps)
    assert mine.isfinite()


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": 1.5, "undesirable_weight": 0.6}])
@pytest.mark.parametrize("seed", [1, 2])
def test_kto_equals_the_kto_trainer(weights, seed):
    model, reference, batch = language_model(), language_model(seed), judged(rows())
    want, metrics = kto_loss(model, reference, batch, **weights)
    stage = FeedbackOptimisation(model, reference=reference, beta=0.3, **weights)
    ours = ours_of_judged(batch)
    stage.begin_step([ours], make_accelerator())
    value, stats = stage(ours)
    count = len(batch["label"])
    # The baseline goes through a Python float, as every sum over ranks does.
    assert_same(value / count, want, model)
    totals = {name: x.item() for name, x in stats.items()} | {"loss": value.item(), "units": float(count)}
    found = stage.means(totals)
    for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-12), name


def test_the_two_references_stand_on_both_sides_of_the_clamp_at_zero():
    """So that the parity above is of a baseline that is positive, and of one that is clamped."""
    batch, found = judged(rows()), []
    for seed in (1, 2):
        stage = FeedbackOptimisation(language_model(), reference=language_model(seed))
        stage.begin_step([ours_of_judged(batch)], make_accelerator())
        found.append(float(stage._kl) > 0)
    assert sorted(found) == [False, True]


def test_ktos_baseline_is_the_steps_and_trls_that_of_each_micro_batch():
    model, reference, batch = language_model(), language_model(1), judged(rows(8))
    parts = [slice(0, 7), slice(7, 15)]
    stage = FeedbackOptimisation(model, reference=reference, beta=0.3)
    whole = kto_loss(model, reference, batch)[0]
    micro_batches = [ours_of_judged(batch, part) for part in parts]
    stage.begin_step(micro_batches, make_accelerator())
    assert_same(sum(stage(b)[0] for b in micro_batches) / 15, whole, model)
    theirs = [kto_loss(model, reference, {name: x[part] for name, x in batch.items()}) for part in parts]
    assert theirs[0][1]["kl"] != pytest.approx(theirs[1][1]["kl"], rel=1e-2)
    assert (7 * theirs[0][0] + 8 * theirs[1][0]).item() / 15 != pytest.approx(whole.item(), rel=1e-3)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_lora_policy_has_trls_loss_and_gradients(loss):
    torch.manual_seed(2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(language_model(), config).double()
    examples = rows()
    if loss == "dpo":
        want, _ = dpo_loss(model, None, examples, "sigmoid")
        got, _ = on_pairs(model, None, examples, "dpo", beta=0.3)
    else:
        batch = judged(examples)
        want, _ = kto_loss(model, None, batch)
        stage, ours = FeedbackOptimisation(model, beta=0.3), ours_of_judged(batch)
        stage.begin_step([ours], make_accelerator())
        got = stage(ours)[0] / len(batch["label"])
    assert_same(got, want, model)


def test_at_the_start_trl_calls_every_tie_wrong():
    model, examples = language_model(), rows()
    _, metrics = dpo_loss(model, language_model(), examples, "sigmoid")
    _, stats = on_pairs(model, language_model(), examples, "dpo")
    assert (metrics["rewards/accuracies"], stats["rewards/accuracies"]) == (0.0, 0.5)


def test_a_model_of_transformers_has_trls_loss_and_gradients():
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model, reference = (GPT2LMHeadModel(GPT2Config(**shape, **dropout)).double().train() for _ in range(2))
    want, _ = dpo_loss(model, reference, rows(), "sigmoid")
    assert_same(on_pairs(model, reference, rows(), "dpo", beta=0.3)[0], want, model)
