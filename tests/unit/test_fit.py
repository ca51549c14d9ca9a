"""Loop one: what is normalised, resumed, skipped and kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf_kit.batches import LMBatch
from rlhf_kit.data.batching import ExampleBatches, PreferenceBatches
from rlhf_kit.data.examples import PreferenceExample
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import Lora, load_causal_lm, load_scalar_model
from rlhf_kit.training.distributed import make_accelerator, seed_everything_for_step
from rlhf_kit.training.fit import FitConfig, evaluate, fit
from rlhf_kit.training.preference import PreferenceOptimisation
from rlhf_kit.training.stages import LanguageModelling, RewardModelling, Stage

VOCAB = 23


class Saves:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, path, **_):
        """Nothing to save."""


def language_model(dropout: float = 0.0) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, dropout=dropout))


def examples(count: int = 24, seed: int = 0):
    """Sequences of 3 to 12 tokens, the first two not trained on."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(1, VOCAB, rng.integers(3, 13))
        labels = ids.copy()
        labels[:2] = -100
        rows.append((ids, labels))
    return rows


def batches(micro_batch_size: int = 4, count: int = 24) -> ExampleBatches:
    return ExampleBatches(examples(count), batch_size=8, micro_batch_size=micro_batch_size, seed=0, pad_id=0)


def config(path, **changes) -> FitConfig:
    base = FitConfig(
        output_dir=path, max_steps=6, eval_every=0, save_every=0, log_every=1, learning_rate=1e-2, warmup_fraction=0.0
    )
    return replace(base, **changes)


def run(path, model=None, train=None, **changes):
    model = model or language_model()
    accelerator = make_accelerator("bf16" if changes.get("precision") == "bf16" else "no")
    fit(LanguageModelling(model), train or batches(), config(path, **changes), accelerator, tokenizer=Saves())
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logged(path, key):
    return [row[key] for line in (path / "metrics.jsonl").read_text().splitlines() if key in (row := json.loads(line))]


def test_the_loss_falls_and_the_model_directory_is_the_next_stages_input(tmp_path):
    model = run(tmp_path, max_steps=40)
    losses = logged(tmp_path, "train/loss")
    assert losses[0] == pytest.approx(np.log(VOCAB), abs=0.3)  # an untrained model knows nothing
    assert losses[-1] < losses[0] - 1.0
    assert torch.equal(weights(load_causal_lm(tmp_path)), weights(model))


def test_micro_batches_do_not_change_the_step(tmp_path):
    whole, parts = run(tmp_path / "a", train=batches(8)), run(tmp_path / "b", train=batches(3))
    assert logged(tmp_path / "a", "train/loss") == pytest.approx(logged(tmp_path / "b", "train/loss"), rel=1e-5)
    # Adam turns a rounding difference in a gradient near 0 into one of up to the learning rate: hence gradients' norm, tightly.
    assert logged(tmp_path / "a", "grad_norm") == pytest.approx(logged(tmp_path / "b", "grad_norm"), rel=1e-4)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-4)


def test_the_gradient_is_that_of_the_mean_over_all_trained_tokens(tmp_path):
    model, train = language_model(), batches(3)
    norm = None
    reference = language_model()
    total, count = 0.0, 0
    for batch in train.micro_batches(0, 0, 1):
        logits = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        total = total + torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        count += int((batch.labels[:, 1:] != -100).sum())
    (total / count).backward()
    norm = torch.stack([p.grad.norm() for p in reference.parameters() if p.grad is not None]).norm()
    run(tmp_path, model=model, train=train, max_steps=1)
    assert logged(tmp_path, "train/loss")[0] == pytest.approx(float(total.detach()) / count, rel=1e-6)
    assert logged(tmp_path, "grad_norm")[0] == pytest.approx(float(norm), rel=1e-5)


def test_seven_steps_are_adamw_written_out(tmp_path):
    """Decay, warmup, cosine, clipping, dropout and reports against a plain loop, every setting off its default."""
    settings = config(
        tmp_path, seed=5, max_steps=7, warmup_fraction=0.3, final_lr_fraction=0.2, weight_decay=0.5, adam_beta1=0.8,
        adam_beta2=0.9, adam_eps=1e-3, max_grad_norm=2.2, log_every=3, eval_every=4, keep_best=False,
    )  # fmt: skip
    factors = [1 / 3, 2 / 3, *(0.2 + 0.4 * (1 + np.cos(np.pi * done / 5)) for done in range(5))]
    train, held_out = batches(3), batches(8, count=11)
    model, plain = language_model(dropout=0.3), language_model(dropout=0.3)
    fit(LanguageModelling(model), train, settings, make_accelerator(), tokenizer=Saves(), eval_batches=held_out)

    def losses(micro_batches):
        """Of every trained token, in order."""
        of_batches = []
        for batch in micro_batches:
            logits = plain(input_ids=batch.input_ids).logits[:, :-1].flatten(0, 1)
            labels = batch.labels[:, 1:].flatten()
            of_batches.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")[labels >= 0])
        return torch.cat(of_batches)

    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in plain.named_parameters()}
    seen, norms, evaluations = [], [], []
    for step, factor in enumerate(factors):
        plain.train()
        seed_everything_for_step(5, step, 0)  # the same masks of dropout
        now = losses(train.micro_batches(step, 0, 1))
        plain.zero_grad()
        now.mean().backward()
        seen.append(now.tolist())
        norms.append(float(torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()))
        with torch.no_grad():
            for name, p in plain.named_parameters():
                first, second = state[name]
                gradient = p.grad * min(1.0, 2.2 / norms[-1])
                first.mul_(0.8).add_(0.2 * gradient)
                second.mul_(0.9).add_(0.1 * gradient**2)
                p.mul_(1 - 1e-2 * factor * (0.5 if p.ndim > 1 else 0.0))
                p -= 1e-2 * factor * (first / (1 - 0.8 ** (step + 1))) / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-3)
            if step + 1 in (4, 7):
                plain.eval()
                evaluations.append(float(losses(b for i in range(2) for b in held_out.micro_batches(i, 0, 1)).mean()))

    assert min(norms) < 2.2 < max(norms)  # the clip binds at some steps and not at others
    # Sums in another order; Adam's eps of 1e-3 keeps that out of the weights, which moved by 1e-2 to 1e-1.
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=3e-6)
    windows = [np.concatenate(part) for part in (seen[:3], seen[3:6], seen[6:])]  # a report is of the tokens since the last one
    assert logged(tmp_path, "train/loss") == pytest.approx([tokens.mean() for tokens in windows], rel=1e-5)
    assert logged(tmp_path, "lr") == pytest.approx([1e-2 * factors[i] for i in (2, 5, 6)])
    assert logged(tmp_path, "grad_norm") == pytest.approx([norms[i] for i in (2, 5, 6)], rel=1e-4)
    assert logged(tmp_path, "eval/loss") == pytest.approx(evaluations, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factor"), [("constant", 1.0), ("linear", 1 - 0.8 * 7 / 8), ("wsd", 0.6), ("cosine", 0.2 + 0.4 * (1 - 0.92388))]
)
def test_the_last_of_eight_steps_has_the_rate_of_the_configs_schedule(tmp_path, schedule, factor):
    run(tmp_path, max_steps=8, schedule=schedule, final_lr_fraction=0.2, train=batches(8))
    assert logged(tmp_path, "lr")[-1] == pytest.approx(1e-2 * factor, rel=1e-4)


def test_every_tracker_is_told(tmp_path):
    run(tmp_path, max_steps=1, trackers=("tensorboard",))
    (events,) = tmp_path.glob("tensorboard/events.*")
    assert b"train/loss" in events.read_bytes()


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


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", model=language_model(dropout=0.2), max_steps=7, save_every=2)
    with pytest.raises(Killed):
        run(tmp_path / "killed", model=language_model(dropout=0.2), train=KilledAt(batches(), 5), max_steps=7, save_every=2)
    resumed = run(tmp_path / "killed", model=language_model(dropout=0.2), max_steps=7, save_every=2, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert logged(tmp_path / "killed", "train/loss") == logged(tmp_path / "whole", "train/loss")


def test_a_fresh_run_does_not_overwrite_another_runs_checkpoints(tmp_path):
    run(tmp_path, max_steps=4, save_every=2)
    with pytest.raises(InputError, match="resume"):
        run(tmp_path, max_steps=4, save_every=2)


class Explodes(Stage):
    """A language model whose gradient is NaN at chosen forwards."""

    def __init__(self, model, when):
        super().__init__(model)
        self.inner, self.when, self.calls = LanguageModelling(model), when, 0

    def units(self, batch):
        return self.inner.units(batch)

    def forward(self, batch):
        self.calls += 1
        loss, stats = self.inner(batch)
        return (loss * float("nan") if self.calls in self.when else loss), stats


def test_a_step_that_is_not_finite_is_skipped_and_said(tmp_path):
    model = language_model()
    fit(Explodes(model, {2}), batches(8), config(tmp_path, max_steps=3), make_accelerator(), tokenizer=Saves())
    assert torch.isfinite(weights(model)).all()
    assert logged(tmp_path, "grad_norm")[1] is None
    assert logged(tmp_path, "train/skipped_steps") == [0, 1, 1]


def test_training_that_stays_broken_is_given_up_with_the_field_and_the_mend(tmp_path):
    stage = Explodes(language_model(), range(100))
    with pytest.raises(InputError, match=r"grad_norm is nan.*learning_rate"):
        fit(stage, batches(8), config(tmp_path, max_steps=30), make_accelerator(), tokenizer=Saves())


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    held_out = ExampleBatches(examples(16, seed=9), batch_size=8, micro_batch_size=8, seed=0, pad_id=0)
    model = language_model()
    result = fit(
        LanguageModelling(model),
        batches(8, count=8),  # eight random sequences are soon learned by heart, at the expense of the held-out ones
        config(tmp_path, max_steps=60, eval_every=5),
        make_accelerator(),
        tokenizer=Saves(),
        eval_batches=held_out,
    )
    losses = logged(tmp_path, "eval/loss")
    assert losses[-1] > min(losses) + 0.1
    assert result["best_step"] == 5 * (1 + losses.index(min(losses)))
    kept = evaluate(LanguageModelling(load_causal_lm(tmp_path)), held_out, make_accelerator())
    assert kept["eval/loss"] == pytest.approx(min(losses), rel=1e-6)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    calls, trained = [0, 0], []
    for i, name in enumerate("ab"):
        model = language_model()

        def count(*_, i=i):
            calls[i] += torch.is_grad_enabled()  # not the check of the head

        model.model.gpt.layers[0].attn.register_forward_pre_hook(count)
        trained.append(run(tmp_path / name, model=model, max_steps=3, gradient_checkpointing=name == "b"))
    torch.testing.assert_close(weights(trained[0]), weights(trained[1]), rtol=0, atol=1e-6)
    assert calls == [3 * 2, 3 * 2 * 2]  # two micro-batches a step, each computed again in the backward


def test_bf16_computes_in_bf16_over_fp32_weights(tmp_path):
    plain = run(tmp_path / "a", max_steps=10)
    half = run(tmp_path / "b", max_steps=10, precision="bf16")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    first, second = logged(tmp_path / "a", "train/loss"), logged(tmp_path / "b", "train/loss")
    assert first != second
    assert first == pytest.approx(second, rel=3e-2)  # bf16 has 8 bits of mantissa
    assert torch.isfinite(weights(plain)).all()


def test_an_sft_model_learns_to_stop(tmp_path):
    rows = []
    for first in range(1, 9):  # two prompt tokens, an answer, and the stop token 22
        ids = np.array([first, 9, 10 + first % 3, 13 + first % 2, 22])
        rows.append((ids, np.concatenate([[-100, -100], ids[2:]])))
    model = run(tmp_path, train=ExampleBatches(rows, batch_size=8, micro_batch_size=8, seed=0, pad_id=0), max_steps=80)
    prompts = torch.tensor([row[0][:2] for row in rows])
    answers = model.generate(prompts, max_new_tokens=6, eos_token_id=22, pad_token_id=0, do_sample=False)
    assert [answer[2:5].tolist() for answer in answers] == [row[0][2:].tolist() for row in rows]


def pairs(count: int = 40):
    """Answers whose first token is high are preferred."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        low, high = rng.integers(1, 10), rng.integers(12, 22)
        tail = rng.integers(1, 22, rng.integers(1, 5))
        rows.append(
            PreferenceExample(
                chosen=np.concatenate([[1, high], tail]),
                rejected=np.concatenate([[1, low], tail[: len(tail) // 2 + 1]]),
                margin=None,
                prompt_length=1,
            )
        )
    return rows


def test_a_reward_model_learns_what_people_prefer(tmp_path):
    torch.manual_seed(0)
    model = GPTForSequenceClassification(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_labels=1))
    train = PreferenceBatches(pairs(), batch_size=20, micro_batch_size=6, seed=0, pad_id=0)
    result = fit(
        RewardModelling(model), train, config(tmp_path, max_steps=40), make_accelerator(), tokenizer=Saves(), eval_batches=train
    )
    assert result["eval/accuracy"] == 1.0
    assert result["eval/margin"] > 1.0


def test_a_rank_without_pairs_counts_for_nothing():
    model = GPTForSequenceClassification(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_labels=1))
    train = PreferenceBatches(pairs(1), batch_size=1, micro_batch_size=1, seed=0, pad_id=0)
    stage = RewardModelling(model, center_coef=0.1)
    (empty,) = train.micro_batches(0, 1, 2)
    loss, stats = stage(empty)
    loss.backward()
    assert int(stage.units(empty)) == 0
    assert float(loss) == 0.0
    assert all(float(value) == 0.0 for value in stats.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_batch_without_a_trained_token_has_loss_zero_and_no_nan():
    stage = LanguageModelling(language_model())
    batch = LMBatch(torch.ones(2, 4, dtype=torch.long), torch.full((2, 4), -100), torch.ones(2, 4, dtype=torch.bool))
    loss, _ = stage(batch)
    loss.backward()
    assert float(loss) == 0.0
    assert int(stage.units(batch)) == 0


@pytest.mark.parametrize("kind", ["language", "reward", "dpo"])
def test_a_model_whose_adapter_is_frozen_is_refused_before_anything_is_written(tmp_path, kind):
    if kind == "reward":
        model = GPTForSequenceClassification(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_labels=1))
        model.save_pretrained(tmp_path / "model")
        model = load_scalar_model(tmp_path / "model", lora=Lora(rank=2))
    else:
        language_model().save_pretrained(tmp_path / "model")
        model = load_causal_lm(tmp_path / "model", lora=Lora(rank=2))
    stage = {"language": LanguageModelling, "reward": RewardModelling, "dpo": PreferenceOptimisation}[kind](model)
    model.requires_grad_(False)
    with pytest.raises(InputError, match="expected at least one parameter that requires a gradient: unfreeze something"):
        fit(stage, batches(), config(tmp_path / "out"), make_accelerator(), tokenizer=Saves())
    assert not (tmp_path / "out").exists()
