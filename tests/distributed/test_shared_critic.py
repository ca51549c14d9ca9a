"""A critic on the policy's trunk under two processes: the update of one, the weights of one on both, an exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.closed_form.world import WorldPrompts
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.training import online as module
from tests.distributed.test_loops import ONLINE, Killed, language_model, one_update, run_online, weights


@pytest.mark.parametrize("warmup", [0, 1])
def test_the_update_on_a_split_rollout_is_that_on_the_whole(warmup: int, run_ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the order of the rollout, the halves of two ranks' shares are the shares of the whole's halves.
    monkeypatch.setattr(module.torch, "randperm", lambda n, generator: torch.arange(n))
    config = replace(
        ONLINE, num_epochs=2, num_minibatches=2, micro_batch_size=4, vf_coef=0.5, critic_warmup=warmup, weight_decay=0.1
    )
    expected, whole = one_update("ppo", 0, 1, config, shared=True)
    (stats, first), (others, second) = run_ranks(lambda rank: one_update("ppo", rank, 2, config, shared=True))
    assert torch.equal(first, second)
    assert stats == others
    for name, value in expected.items():
        assert stats[name] == pytest.approx(value, rel=1e-5, abs=2e-6), name
    torch.testing.assert_close(first, whole, rtol=0, atol=2e-6)  # fp32: the sums run in another order
    start = weights(language_model())
    policy, head = first[: len(start)], first[len(start) :]
    assert torch.equal(policy, start) == bool(warmup)
    assert head.abs().max() > 1e-3


def test_online_on_two_processes_resumes_bit_for_bit_from_the_warm_up(run_ranks: Any, tmp_path: Path) -> None:
    class Fails(WorldPrompts):
        def batch(self, step: int, rank: int, world: int) -> Any:
            if step == 3:
                raise Killed
            return super().batch(step, rank, world)

    def work(rank: int, name: str, resume: bool) -> Any:
        prompts = Fails(16, 1) if name == "killed" and not resume else None
        options: dict[str, Any] = {"total_steps": 5, "save_every": 2, "critic_warmup": 3, "weight_decay": 0.1}
        try:
            found = run_online(tmp_path / name, prompts=prompts, shared=True, resume=resume, **options)
        except Killed:
            return None
        return found["policy"], found["critic"]

    whole = run_ranks(work, "whole", False)
    assert run_ranks(work, "killed", False) == [None, None]
    resumed = run_ranks(work, "killed", True)
    for found in (*resumed, whole[1]):
        assert torch.equal(found[0], whole[0][0])
        assert torch.equal(found[1], whole[0][1])
    assert torch.equal(weights(load_causal_lm(tmp_path / "whole")), whole[0][0])
    assert load_scalar_model(tmp_path / "whole" / "critic").config.score_bias == whole[0][1][-1]
