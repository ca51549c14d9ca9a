"""Loop two beside TRL 1.12's `PPOTrainer`, two rollouts of three epochs: its metrics and its weights (`record_ppo_trl.py`)."""

import json
from types import SimpleNamespace

import pytest
import torch

from rlhf_kit.batches import PromptBatch
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.rollout import experience
from rlhf_kit.rollout.experience import join
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.metrics import read_metrics
from rlhf_kit.training.online import online
from rlhf_kit.training.online_config import OnlineConfig
from tests.parity.record_ppo_trl import (
    ANSWERS,
    EOS,
    GOLDEN,
    LENGTH,
    METRICS,
    PAD,
    QUERY,
    SETTINGS,
    STEPS,
    answers_to,
    fingerprint,
    models,
    queries,
    record,
)

NAMES = {"num_ppo_epochs": "num_epochs", "num_mini_batches": "num_minibatches", "adam_epsilon": "adam_eps"}


def test_two_rollouts_leave_the_metrics_and_the_weights_of_trls_trainer(tmp_path, monkeypatch):
    golden = json.loads(GOLDEN.read_text())
    config = OnlineConfig(
        output_dir=tmp_path, total_steps=STEPS, batch_size=ANSWERS, micro_batch_size=3, max_new_tokens=LENGTH, max_grad_norm=0.0,
        save_every=0, **{NAMES.get(name, name): value for name, value in SETTINGS.items()},
    )  # fmt: skip
    ours, steps = models(), iter(range(STEPS))
    everything = torch.ones(ANSWERS, QUERY, dtype=torch.bool)
    batch = PromptBatch(queries(), everything, torch.arange(ANSWERS)), [{}] * ANSWERS

    def generate(policy, query_ids, query_mask, **_):
        ids = answers_to(query_ids, next(steps))
        whole = torch.ones_like(ids, dtype=torch.bool)
        return SimpleNamespace(response_ids=ids, response_mask=whole, ended=~whole[:, 0], logprobs=torch.zeros(ids.shape))

    def score(rollout, rows):
        joined = join(rollout)
        with torch.no_grad():
            return scalar_scores(ours["reward"], joined.ids, joined.mask)

    monkeypatch.setattr(experience, "generate", generate)
    online(
        ours["policy"], SimpleNamespace(batch=lambda step, rank, world: batch), score, config, make_accelerator(),
        tokenizer=SimpleNamespace(pad_token_id=PAD, save_pretrained=lambda *_, **__: None), eos_ids=(EOS,),
        reference=ours["reference"], critic=ours["critic"],
    )  # fmt: skip
    for found, wanted in zip(read_metrics(tmp_path / "metrics.jsonl"), golden["metrics"], strict=True):
        # fp32 on both sides; the policy loss and the first KL are small differences of large sums.
        assert {name: found[name] for name in METRICS} == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    # Adam's eps of 1e-3 keeps rounding out of the weights, which moved by 1e-2 and more.
    for name in ("policy", "critic"):
        start = fingerprint(models()[name])
        assert max(abs(a - b) for a, b in zip(start, golden[name])) > 1e-2
        assert fingerprint(ours[name]) == pytest.approx(golden[name], rel=0, abs=2e-6)


def test_the_recorded_numbers_are_those_that_trl_gives_now():
    trl = pytest.importorskip("trl")
    golden = json.loads(GOLDEN.read_text())
    if trl.__version__ != golden["trl"]:
        pytest.skip(f"recorded from TRL {golden['trl']}, the last with PPO")
    now = record()
    for name in ("policy", "critic"):
        assert now[name] == pytest.approx(golden[name], rel=0, abs=1e-6)  # another order of sums
    for found, wanted in zip(now["metrics"], golden["metrics"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
