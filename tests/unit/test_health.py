"""Alarms: for each one a run that raises it and one that does not, and a real run that games its reward."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_kit.evaluation.health import health_notes
from rlhf_kit.evaluation.runs import StageRun, run_from_dict
from rlhf_kit.health import Watch
from tests.unit.synthetic_runs import online_metrics
from tests.unit.test_online import count_threes
from tests.unit.test_online import run as train

Shape = Callable[[float], float]


def failed(stage: StageRun, **evaluation: Any) -> list[str]:
    return [note.title for note in health_notes(run_from_dict({"stages": [stage], "evaluation": evaluation})) if not note.ok]


def online(changed: dict[str, Shape], n: int = 60) -> list[str]:
    return failed(StageRun("ppo", online_metrics(n, changed)))


def after(step: float, low: float, high: float) -> Shape:
    return lambda t: high if t > step else low


def test_a_healthy_run_raises_no_alarm_and_says_what_was_checked() -> None:
    notes = health_notes(run_from_dict({"stages": [StageRun("ppo", online_metrics())]}))
    assert all(note.ok for note in notes)
    assert len(notes) == 16  # 19 rules, less groups, ensemble, and the gold peak, which only ever says no


ALARMS: list[tuple[str, dict[str, Shape], dict[str, Shape]]] = [
    # the alarm, what raises it, and what comes near and does not
    ("KL does not start at zero", {"objective/kl": lambda t: 0.2 + t}, {"objective/kl": lambda t: 0.05 + t}),
    ("KL is persistently negative", {"objective/kl": lambda t: -2 * t}, {"objective/kl": lambda t: 0.1 - 0.12 * t}),
    ("KL runs away", {"objective/kl": lambda t: 30 * t**4}, {"objective/kl": lambda t: 30 * t}),
    ("KL runs away", {"objective/kl": lambda t: 30 * t**4}, {"objective/kl": lambda t: 9 * t**4}),
    (
        "The first ratio is not 1",
        {"policy/approxkl_first": after(0.5, 0.0, 3e-4)},
        {"policy/approxkl_first": after(0.5, 0.0, 1e-4)},
    ),
    (
        "Sampling and training disagree",
        {"val/sampler_logprob_gap": lambda t: 0.06},
        {"val/sampler_logprob_gap": lambda t: 0.02},
    ),
    ("The ratio is far from 1", {"val/ratio": lambda t: 1 + 0.1 * t}, {"val/ratio": lambda t: 1 + 0.02 * t}),
    ("The ratio is far from 1", {"val/ratio": lambda t: 1 - 0.1 * t}, {"val/ratio": lambda t: 1 - 0.02 * t}),
    ("Updates are large", {"policy/approxkl_avg": lambda t: 0.05}, {"policy/approxkl_avg": lambda t: 0.05 if t == 0.0 else 0.01}),
    ("Clipping is common", {"policy/clipfrac_avg": lambda t: 0.4}, {"policy/clipfrac_avg": lambda t: 0.2}),
    ("The reward does not rise", {"objective/rlhf_reward": lambda t: -t}, {"objective/rlhf_reward": lambda t: 0.1 * t}),
    ("The critic explains little", {"val/explained_variance": lambda t: 0.05}, {"val/explained_variance": lambda t: 0.12}),
    ("Answers are cut off", {"response/eos_rate": lambda t: 0.99 - 0.1 * t}, {"response/eos_rate": lambda t: 0.9 + 0.1 * t}),
    (
        "Answers become alike while the score rises",
        {"response/distinct_2": lambda t: 0.8 - 0.4 * t, "response/length": lambda t: 30.0},
        {"response/distinct_2": lambda t: 0.8 - 0.4 * t, "response/length": lambda t: 30 + 30 * t},  # longer, not more alike
    ),
    (
        "Length decides the score",
        {"response/length_reward_corr": lambda t: 0.2 + 0.5 * t},
        {"response/length_reward_corr": lambda t: 0.5 + 0.1 * t},  # it always did
    ),
    (
        "Length decides the score",  # the policy follows it
        {"response/length_reward_corr": lambda t: 0.6, "response/length": lambda t: 30 + 30 * t},
        {"response/length_reward_corr": lambda t: 0.3, "response/length": lambda t: 30 + 30 * t},
    ),
    (
        "Length decides the score",  # brevity pays
        {"response/length_reward_corr": lambda t: 0.1 - 0.8 * t},
        {"response/length_reward_corr": lambda t: -0.8 + 0.7 * t},  # paid at first
    ),
    (
        "Some answers score far above the rest",
        {"objective/scores_std": lambda t: 3.0 if 0.4 < t < 0.6 else 1.0},  # the trick is found, then all use it
        {"objective/scores_std": lambda t: 3.0 if 0.4 < t < 0.6 else 1.0, "objective/scores_max": lambda t: 1.0},  # right or not
    ),
    (
        "Some answers score far above the rest",  # the trick is found by few, and the deviation does not show it
        {"objective/scores_max": lambda t: 6.5 if 0.4 < t < 0.5 else 3.0 + t},
        {"objective/scores_max": lambda t: 6.0 if 0.49 < t < 0.52 else 3.0 + t},  # by one or two, once
    ),
    (
        "Some answers score far above the rest",
        {"objective/scores_max": lambda t: 6.5 if 0.4 < t < 0.5 else 3.0 + t},
        {"objective/scores_max": lambda t: 6.0 + 2 * t},  # the best always stood out
    ),
    (
        "The reward models disagree more and more",
        {"reward/ensemble_spread": lambda t: 0.4 + 0.3 * t},
        {"reward/ensemble_spread": lambda t: 0.4 + 0.1 * t},
    ),
    (
        "Reward and gold score part",
        {"eval/gold_reward_corr": lambda t: 0.3 if 0.4 < t < 0.5 else 0.8, "objective/scores_std": lambda t: 1.0},
        {"eval/gold_reward_corr": lambda t: 0.8 - 0.3 * t, "objective/scores_std": lambda t: 1.0 - 0.5 * t},  # alike: 0.55 is due
    ),
    (
        "Reward and gold score part",  # judges that agree little agree by chance in one rollout, and disagree in another
        {"eval/gold_reward_corr": lambda t: 0.4 if t < 0.4 else 0.1, "objective/scores_std": lambda t: 1.0},
        {"eval/gold_reward_corr": lambda t: 0.1 if 0.49 < t < 0.52 else 0.4, "objective/scores_std": lambda t: 1.0},
    ),
    ("Most groups teach nothing", {"frac_reward_zero_std": lambda t: t}, {"frac_reward_zero_std": lambda t: 1 - t}),
    ("The reward model is over-optimised", {"eval/gold_score": lambda t: t * (1 - t)}, {"eval/gold_score": lambda t: t}),
    ("The gold score does not rise", {"eval/gold_score": lambda t: -t}, {"eval/gold_score": lambda t: 0.01 * t}),
    ("A number is not finite", {"loss/value_avg": lambda t: math.nan if t > 0.5 else 1.0}, {}),
]


@pytest.mark.parametrize(("alarm", "sick", "well"), ALARMS)
def test_each_sickness_raises_its_own_alarm_and_no_other(alarm: str, sick: dict[str, Shape], well: dict[str, Shape]) -> None:
    assert online(sick) == [alarm]
    assert online(well) == []


def test_every_alarm_stands_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "health.md").read_text().lower()
    for title, _, _ in ALARMS:
        words = title.lower().removeprefix("the ").removesuffix(" does not rise")
        assert words in page, title


def test_updates_that_clip_nothing_are_timid_only_where_nothing_is_learned() -> None:
    still: dict[str, Shape] = {"policy/clipfrac_avg": lambda t: 0.001}
    assert online(still) == []
    metrics = online_metrics(changed={**still, "objective/rlhf_reward": lambda t: 0.0})
    (note,) = (n for n in health_notes(run_from_dict({"stages": [StageRun("ppo", metrics)]})) if not n.ok)
    assert "updates are timid, raise the learning rate" in note.text


def test_trends_need_ten_reports() -> None:
    sick: dict[str, Shape] = {"response/distinct_2": lambda t: 0.8 - 0.6 * t, "response/length_reward_corr": lambda t: t}
    assert online(sick, n=9) == []
    assert len(online(sick, n=10)) == 2


def test_a_noisy_kl_round_zero_is_no_alarm() -> None:
    noise = iter(np.random.default_rng(0).normal(size=60) * 0.05)
    assert online({"objective/kl": lambda t: abs(next(noise)) - 0.03}) == []


@pytest.mark.parametrize("n", [12, 32, 60])
def test_a_noisy_gold_score_that_rises_has_lost_nothing(n: int) -> None:
    """Risen by three deviations of a report's noise: hardly a run in twenty is alarmed on its way. Without the allowance for
    noise nearly all are. The same noise hides no fall of twice the gain."""
    t, wrong = np.linspace(0, 1, n), 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=n) * 0.15

        def alarmed(shape: np.ndarray, end: int, noise: np.ndarray = noise) -> bool:
            rows = [row | {"eval/gold_score": value} for row, value in zip(online_metrics(n), (shape + noise).tolist())]
            return "The reward model is over-optimised" in failed(StageRun("ppo", rows[:end]))

        wrong += any(alarmed(0.45 * t, end) for end in range(10, n + 1))
        assert alarmed(4 * t * (1 - t) - t**2, n)
    assert wrong <= 2


def test_a_number_written_as_null_because_it_was_not_finite_is_seen() -> None:
    assert failed(StageRun("sft", [{"step": 1, "train/loss": None, "nonfinite": 1}])) == ["A number is not finite"]
    assert failed(StageRun("sft", [{"step": 1, "note": None}])) == []


def test_overfitting_and_an_impossible_accuracy_are_seen() -> None:
    losses = [2.0, 1.5, 1.4, 1.6]
    rows = [{"step": i, "eval/loss": loss} for i, loss in enumerate(losses)]
    assert failed(StageRun("sft", rows)) == ["Supervised fine-tuning overfits"]
    assert failed(StageRun("sft", rows[:3])) == []
    accuracy = {"estimate": 0.8, "low": 0.75, "high": 0.85, "n": 500}
    assert failed(StageRun("reward", []), accuracy=accuracy, bayes_accuracy=0.72) == [
        "Reward model beats the best possible accuracy"
    ]
    assert failed(StageRun("reward", []), accuracy=accuracy, bayes_accuracy=0.78) == []


# ---- while the run goes ----------------------------------------------------------------------------------------------


def watched(rows: list[dict[str, Any]], total: int, before: int = 0) -> list[tuple[int, str]]:
    watch = Watch(total, rows[:before])
    return [(row["step"], note.title) for row in rows[before:] for note in watch.add(row)]


def test_an_alarm_is_raised_once_and_long_before_the_gold_score_would_show_it() -> None:
    hacked: dict[str, Shape] = {"response/distinct_2": after(0.3, 0.8, 0.2), "eval/gold_score": lambda t: t if t < 0.7 else 0.0}
    alarms = {title: step for step, title in watched(online_metrics(60, hacked), 60)}
    assert sorted(alarms, key=alarms.__getitem__) == [
        "Answers become alike while the score rises",
        "The reward model is over-optimised",
    ]
    assert alarms["Answers become alike while the score rises"] < 0.7 * 60 < alarms["The reward model is over-optimised"]


def test_what_a_run_should_reach_is_asked_from_its_half_on() -> None:
    poor: dict[str, Shape] = {"val/explained_variance": lambda t: 0.05, "response/eos_rate": lambda t: 0.5}
    found = watched(online_metrics(60, poor), 60)
    assert found == [(30, "Answers are cut off"), (30, "The critic explains little")]


def test_a_resumed_run_does_not_repeat_the_alarms_of_before_and_remembers_its_start() -> None:
    rows = online_metrics(60, {"val/ratio": lambda t: 1.1, "response/distinct_2": after(0.5, 0.8, 0.2)})
    rows[2]["alarms"] = ["The ratio is far from 1"]
    assert [title for _, title in watched(rows, 60, before=20)] == ["Answers become alike while the score rises"]


def test_the_report_says_when_an_alarm_was_first_seen_and_keeps_those_that_went_away() -> None:
    rows = online_metrics(60, {"val/explained_variance": lambda t: 0.05})
    rows[29]["alarms"] = ["The critic explains little"]
    rows[39]["alarms"] = ["Updates are large"]
    notes = [note for note in health_notes(run_from_dict({"stages": [StageRun("ppo", rows)]})) if not note.ok]
    assert [note.title for note in notes] == ["The critic explains little", "Updates are large, for a while"]
    assert notes[0].text.endswith("First seen at step 30.")
    assert "step 40" in notes[1].text


def test_a_long_run_asks_its_rules_ever_more_rarely_and_still_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def rule(curve: Any) -> list[Any]:
        asked.append(len(curve("objective/kl")[0]))
        return []

    monkeypatch.setattr("rlhf_kit.health.ANY_TIME", (rule,))
    monkeypatch.setattr("rlhf_kit.health.ONCE_SETTLED", ())
    assert watched([{"step": i, "objective/kl": 1.0} for i in range(1, 5_001)], 5_000) == []
    assert asked[:300] == list(range(1, 301))  # the first 399 reports all
    assert asked[-1] == 5_000
    assert len(asked) < 1_200
    assert max(after / before for before, after in itertools.pairwise(asked[399:])) <= 1.0051


def test_a_run_that_games_its_reward_is_called_out_while_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One point for each token 3: the policy soon says nothing else, until it is cut off."""
    options: dict[str, Any] = {"total_steps": 24, "batch_size": 64, "micro_batch_size": 64, "max_new_tokens": 12, "kl_coef": 0.0}
    train(tmp_path, scorer=count_threes, **options)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    expected = {
        "Answers become alike while the score rises", "Length decides the score", "Some answers score far above the rest",
        "Answers are cut off",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    written = [(row["step"], title) for row in rows for title in row.get("alarms", ())]
    assert expected <= {title for _, title in written}
    assert len(lines) == len(written) == len(set(written))
    for line, (step, title) in zip(lines, written):
        assert line.startswith(f"warning: step {step}: {title}: ")
        assert line.isascii()
    assert expected <= {title.removesuffix(", for a while") for title in failed(StageRun("ppo", rows))}


def test_a_run_that_learns_one_thing_gently_raises_none_of_the_alarms_of_gaming(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One point for an answer that does not begin with the token 5: learned at once, and nothing else changes."""

    def not_five(rollout: Any, rows: Any) -> Any:
        return (rollout.response_ids[:, 0] != 5).float()

    options: dict[str, Any] = {"total_steps": 24, "batch_size": 64, "micro_batch_size": 64, "kl_coef": 0.2, "learning_rate": 1e-3}
    train(tmp_path, scorer=not_five, missing_eos_penalty=1.0, max_new_tokens=12, **options)
    said = capsys.readouterr().err
    assert "scores" in said  # the line of progress
    for alarm in ("Answers become alike", "Length decides", "score far above", "KL", "first ratio", "disagree", "not finite"):
        assert alarm not in said, said
