"""DPO and its relatives: `PreferenceOptimisation` and `FeedbackOptimisation` beside TRL's `_compute_loss`.

All in fp64, where another formula could not hide behind rounding; in fp32 as well, which is what a user gets. TRL's batches
come from its own collators, ours are padded here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.parity import world
from benchmarks.parity.rows import Case, Found, gradients
from benchmarks.parity.trl_code import bare, metrics_of, widened
from rlhf_kit.batches import FeedbackBatch, PreferenceBatch
from rlhf_kit.rollout.scoring import pad
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation

BETA = 0.3
PAIR_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
ORPO_METRICS = (*PAIR_METRICS, "nll_loss", "log_odds_ratio", "log_odds_chosen")
KTO_METRICS = ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
Rows = list[dict[str, Any]]
Logged = tuple[Tensor, dict[str, float]]  # a loss and what was logged beside it
Side = Callable[[Any, Any], Logged]  # of the policy and its reference
Models = Callable[[], tuple[Any, Any]]


def batch_of(rows: Rows) -> PreferenceBatch:
    """Our batch of pairs."""
    fields: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        ids, mask = pad([row["prompt_ids"] + row[f"{side}_ids"] for row in rows])
        starts = torch.tensor([len(row["prompt_ids"]) for row in rows])
        answer = mask & (torch.arange(mask.shape[1]) >= starts.unsqueeze(1))
        fields |= {f"{side}_ids": ids, f"{side}_mask": mask, f"{side}_answer": answer}
    return PreferenceBatch(**fields)


def ours_on_pairs(model: Any, reference: Any, rows: Rows, loss: str, **options: float) -> Logged:
    """Our mean loss and statistics."""
    stage = PreferenceOptimisation(model, loss, reference=reference, **options)
    value, stats = stage(batch_of(rows))
    return value / len(rows), {name: x.item() / len(rows) for name, x in stats.items()}


def dpo_trainer(model: Any, reference: Any, rows: Rows, kind: str, **options: float) -> Logged:
    """The loss and the metrics of TRL's DPOTrainer."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    trainer = bare(
        DPOTrainer, model, ref_model=reference, ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl",
        loss_types=[kind], loss_weights=[1.0], use_weighting=False, **({"beta": BETA, "label_smoothing": 0.0} | options),
    )  # fmt: skip
    loss = trainer._compute_loss(model, DataCollatorForPreference(pad_token_id=world.PAD)(rows), False)
    return loss, metrics_of(trainer)


def smoothed_by_aot(model: Any, reference: Any, rows: Rows, noise: float) -> Logged:
    """TRL's `sigmoid` knows no label smoothing; its `aot` does, and is the smoothed loss where a batch is one pair."""
    alone = [dpo_trainer(model, reference, [row], "aot", label_smoothing=noise) for row in rows]
    mean = {name: sum(metrics[name] for _, metrics in alone) / len(rows) for name in PAIR_METRICS}
    return torch.stack([loss for loss, _ in alone]).mean(), mean


def reference_free(kind: type, model: Any, rows: Rows, **fields: Any) -> Logged:
    """CPO's or ORPO's loss and metrics on pairs, in their own batch format."""
    batch = {}
    for side in ("chosen", "rejected"):
        whole = [row["prompt_ids"] + row[f"{side}_ids"] for row in rows]
        labels = [[-100] * len(row["prompt_ids"]) + row[f"{side}_ids"] for row in rows]
        masks = [[1] * len(ids) for ids in whole]
        for name, values, fill in (("input_ids", whole, world.PAD), ("attention_mask", masks, 0), ("labels", labels, -100)):
            tensors = [torch.tensor(v) for v in values]
            batch[f"{side}_{name}"] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    trainer = bare(kind, model, pad_token_id=world.PAD, padding_value=world.PAD, **fields)
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    return loss, {name: float(x) for name, x in metrics.items()}


def cpo_trainer(model: Any, _: Any, rows: Rows, loss_type: str, **fields: float) -> Logged:
    """TRL's CPOTrainer without its likelihood term; it has no reference."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    nothing = {"label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": 0.0}
    return reference_free(CPOTrainer, model, rows, loss_type=loss_type, **(nothing | fields))


def orpo_trainer(model: Any, _: None, rows: Rows, beta: float) -> Logged:
    """TRL's ORPOTrainer."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    return reference_free(ORPOTrainer, model, rows, beta=beta)


def judged(rows: Rows) -> Rows:
    """Every answer of the pairs judged alone, with the partners that TRL gives them: each the answer before it."""
    single: Rows = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in rows
    ][:-1]  # the classes of unequal size
    partners = [single[-1], *single[:-1]]
    return [row | {"KL_completion_ids": partner["completion_ids"]} for row, partner in zip(single, partners)]


def feedback_of(rows: Rows) -> FeedbackBatch:
    """Our batch of judged answers."""
    starts = torch.tensor([len(row["prompt_ids"]) for row in rows]).unsqueeze(1)
    ids, mask = pad([row["prompt_ids"] + row["completion_ids"] for row in rows])
    kl_ids, kl_mask = pad([row["prompt_ids"] + row["KL_completion_ids"] for row in rows])
    answer, kl_answer = (m & (torch.arange(m.shape[1]) >= starts) for m in (mask, kl_mask))
    return FeedbackBatch(ids, mask, answer, torch.tensor([row["label"] for row in rows]), kl_ids, kl_mask, kl_answer)


def ours_on_feedback(model: Any, reference: Any, rows: Rows, **settings: Any) -> Logged:
    """Our mean loss and statistics."""
    stage, batch = FeedbackOptimisation(model, reference=reference, **({"beta": BETA} | settings)), feedback_of(rows)
    stage.begin_step([batch], make_accelerator())
    value, stats = stage(batch)
    totals = {name: x.item() for name, x in stats.items()} | {"loss": value.item(), "units": float(len(rows))}
    return value / len(rows), stage.means(totals)


def kto_trainer(model: Any, reference: Any, rows: Rows, **weights: float) -> Logged:
    """The loss and the metrics of TRL's KTOTrainer."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    trainer = bare(
        KTOTrainer, model, ref_model=reference, precompute_ref_logps=False, calculate_KL=True, use_liger_kernel=False,
        loss_type="kto", beta=BETA, **({"desirable_weight": 1.0, "undesirable_weight": 1.0} | weights),
    )  # fmt: skip
    loss = trainer._compute_loss(model, DataCollatorForUnpairedPreference(pad_token_id=world.PAD)(rows), False)
    return loss, metrics_of(trainer)


def lora_model() -> Any:
    """A LoRA policy whose base is its reference; adapters from the formula, too."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return world.filled(get_peft_model(world.language_model(), config).double(), 0.0)


def gpt2(phase: float) -> Any:
    """A GPT-2 of `transformers`, fp64."""
    shape: dict[str, Any] = {"vocab_size": world.VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    shape |= {"bos_token_id": world.EOS, "eos_token_id": world.EOS}
    dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return world.filled(GPT2LMHeadModel(GPT2Config(**shape, **dropout)).double(), phase).train()


@torch.no_grad()
def blank() -> Any:
    """A reference under which every token is as likely as any."""
    model = world.language_model()
    model.get_output_embeddings().weight.zero_()
    return model


def _case(name: str, ours: Side, theirs: Side, metrics: tuple[str, ...], models: Models, precision: str = "fp64") -> Case:
    def found(run: Side) -> Found:
        model, reference = models()
        with widened(precision):
            loss, logged = run(model, reference)
            return {"loss": loss.detach(), "gradients": gradients(loss, model), **{name: logged[name] for name in metrics}}

    loose = {"gradients": ROUNDED} if precision == "fp32" else {}
    return Case(name, partial(found, ours), partial(found, theirs), precision, loose)


def _models(reference: float | None, precision: str = "fp64") -> Models:
    """The policy and its reference, if any, of that phase."""
    return lambda: (
        world.language_model(0.0, precision),
        None if reference is None else world.language_model(reference, precision),
    )


ROUNDED = (2e-6, "fp32 through two layers and back, in another order of sums: the seventh digit")
# The phases of the reference: against the first KTO's baseline is positive, against the second it is clamped at 0.
REFERENCE, CLAMPED = 3.0, 0.8
PAIRS, FEEDBACK = world.pairs(), judged(world.pairs())
ALIKE = world.pairs(prompts=(1,) * 5, chosen=(4,) * 5)  # where both ORPOs mean the same likelihood
NOISE: dict[str, float] = {"label_smoothing": 0.1}
WEIGHTS: dict[str, float] = {"desirable_weight": 1.5, "undesirable_weight": 0.6}
# Answers of one length a pair, which a reference that knows nothing finds equally likely.
LEVEL = world.pairs(rejected=world.CHOSEN)
_SMOOTHED = partial(cpo_trainer, rows=LEVEL, loss_type="sigmoid", beta=BETA, **NOISE)
_PAIRED, _DPO = partial(ours_on_pairs, rows=PAIRS, beta=BETA), partial(dpo_trainer, rows=PAIRS)
_JUDGED, _KTO = partial(ours_on_feedback, rows=FEEDBACK), partial(kto_trainer, rows=FEEDBACK)

# name: (ours, theirs, the metrics that both log, the phase of the reference)
LOSSES: dict[str, tuple[Side, Side, tuple[str, ...], float | None]] = {
    "dpo": (partial(_PAIRED, loss="dpo"), partial(_DPO, kind="sigmoid"), PAIR_METRICS, REFERENCE),
    "cdpo": (partial(_PAIRED, loss="dpo", **NOISE), partial(smoothed_by_aot, rows=PAIRS, noise=0.1), PAIR_METRICS, REFERENCE),
    "robust": (partial(_PAIRED, loss="robust", **NOISE), partial(_DPO, kind="robust", **NOISE), PAIR_METRICS, REFERENCE),
    "hinge": (partial(_PAIRED, loss="hinge"), partial(_DPO, kind="hinge"), PAIR_METRICS, REFERENCE),
    "ipo": (partial(_PAIRED, loss="ipo"), partial(_DPO, kind="ipo"), PAIR_METRICS, REFERENCE),
    "simpo": (
        partial(ours_on_pairs, rows=PAIRS, loss="simpo", beta=2.0, gamma=0.7),
        partial(cpo_trainer, rows=PAIRS, loss_type="simpo", beta=2.0, simpo_gamma=0.7),
        PAIR_METRICS,
        None,
    ),
    "orpo": (
        partial(ours_on_pairs, rows=ALIKE, loss="orpo", beta=BETA),
        partial(orpo_trainer, rows=ALIKE, beta=BETA),
        ORPO_METRICS,
        None,
    ),
    "kto": (_JUDGED, _KTO, KTO_METRICS, REFERENCE),
    "kto, weighted": (partial(_JUDGED, **WEIGHTS), partial(_KTO, **WEIGHTS), KTO_METRICS, REFERENCE),
}
OTHER_MODELS: dict[str, Models] = {"lora": lambda: (lora_model(), None), "gpt2": lambda: (gpt2(0.0), gpt2(REFERENCE))}
CASES = [
    *(_case(name, ours, theirs, metrics, _models(phase)) for name, (ours, theirs, metrics, phase) in LOSSES.items()),
    *(_case(name, ours, theirs, (), _models(phase, "fp32"), "fp32") for name, (ours, theirs, _, phase) in LOSSES.items()),
    _case(
        "cdpo, by CPO",
        partial(_PAIRED, rows=LEVEL, loss="dpo", **NOISE),
        _SMOOTHED,
        (),
        lambda: (world.language_model(), blank()),
    ),
    _case("kto, baseline clamped", _JUDGED, _KTO, KTO_METRICS, _models(CLAMPED)),
    *(_case(f"{loss}, {name}", *LOSSES[loss][:3], models) for name, models in OTHER_MODELS.items() for loss in ("dpo", "kto")),
]
