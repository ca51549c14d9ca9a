"""Curves of runs that never ran, for what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def online_metrics(n: int = 60, changed: Mapping[str, Callable[[float], float]] | None = None) -> list[dict[str, Any]]:
    """A healthy run; `changed` maps a metric to a function of the share of the run that is done."""
    rows = []
    for step in range(1, n + 1):
        t = (step - 1) / (n - 1)
        row = {
            "objective/kl": 8 * t,
            "objective/scores": 2 * t,
            "objective/rlhf_reward": 2 * t - 0.4 * t,
            "objective/entropy": 60 - 20 * t,
            "objective/scores_std": 1.0 - 0.3 * t,
            "objective/scores_max": 3.0 + t,
            "policy/approxkl_avg": 0.005,
            "policy/approxkl_first": 1e-12,
            "policy/clipfrac_avg": 0.1,
            "loss/policy_avg": -0.01,
            "loss/value_avg": 0.5 - 0.4 * t,
            "val/ratio": 1.001,
            "val/sampler_logprob_gap": 1e-6,
            "val/sampler_logprob_gap_max": 1e-5,
            "val/explained_variance": 0.3 + 0.6 * t,
            "response/length": 30 + 10 * t,
            "response/eos_rate": 0.97,
            "response/truncated_rate": 0.03,
            "response/distinct_1": 0.3 - 0.05 * t,
            "response/distinct_2": 0.8 - 0.1 * t,
            "response/length_reward_corr": 0.1 + 0.1 * t,
            "eval/gold_score": 1.5 * t,
            "eval/gold_reward_corr": 0.8 - 0.1 * t,
            "episode": 128.0 * step,
            "seconds": 2.0 * step,
        }
        rows.append({"step": step, **row, **{key: value(t) for key, value in (changed or {}).items()}})
    return rows
