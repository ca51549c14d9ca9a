"""The plots of each kind of stage, each with the one line that says what to look for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from rlhf_kit.evaluation.charts import Guide, Series, line_chart, reliability_chart, smoothed
from rlhf_kit.evaluation.runs import Run, StageRun, is_number
from rlhf_kit.wording import THIN, number, percent, thousandths


@dataclass
class Plot:
    """A plot of one or more metrics: their keys with the names of their lines, title, and caption."""

    lines: Mapping[str, str]
    title: str
    caption: str
    form: Callable[[float], str] = number
    guide: Guide | None = None
    from_zero: bool = False
    settle: bool = False
    smooth: bool = True
    optional: bool = False  # shown only where the metric moves

    def draw(self, stage: StageRun) -> str:
        """The figure as HTML, empty where the stage did not log the metrics."""
        curves = [stage.curve(key) for key in self.lines]
        if self.optional and not any(len(set(y)) > 1 for _, y in curves):
            return ""
        series = [
            Series(name, *c, colour=i, smooth=self.smooth) for i, (name, c) in enumerate(zip(self.lines.values(), curves), 1)
        ]
        include = (0.0,) if self.from_zero else ()
        return figure(self.title, series, self.caption, self.form, include=include, guide=self.guide, settle=self.settle)


GRADIENT = Plot(
    {"grad_norm": "norm"},
    "Gradient norm",
    "Steady or falling. Spikes that do not come back ask for a lower learning rate.",
    settle=True,
)
LEARNING_RATE = Plot(
    {"lr": "rate"},
    "Learning rate",
    "The schedule that was really used: warm-up, then decay.",
    from_zero=True,
    smooth=False,
)

# What an online run shows after its rewards, in groups. What raises an alarm is in rlhf_kit/health_rules.py.
REWARD = (
    Plot(
        {"objective/kl": "KL"},
        "KL from the reference (nats an answer)",
        "Starts at 0, rises, then flattens. Steadily below 0 is a bug; rising without end, the reward is being gamed.",
        from_zero=True,
    ),
    Plot(
        {"objective/scores_std": "deviation", "objective/scores_max": "best answer"},
        "Spread of the scores",
        "Narrows as the policy learns. A sudden widening: a few answers have found something that pays. Read them.",
    ),
    Plot(
        {"reward/ensemble_spread": "spread"},
        "Disagreement of the reward models",
        "Flat where they know what they judge. Rising, the answers have left what they were trained on.",
        from_zero=True,
    ),
    Plot(
        {"eval/gold_reward_corr": "correlation"},
        "Correlation of reward and gold score",
        "Sinks as answers become alike. A plunge: some answers earn the reward by what gold does not like. Read them.",
        optional=True,
    ),
    Plot(
        {"frac_reward_zero_std": "share"},
        "Prompts whose answers all score the same",
        "Nothing is learned from them: too easy, or too hard.",
        percent,
        from_zero=True,
    ),
    Plot(
        {"objective/kl_coef": "beta"},
        "KL coefficient",
        "The price of a nat of distance; it moves only where a KL target is set.",
        from_zero=True,
        optional=True,
    ),
)
ANSWERS = (
    Plot(
        {"response/length": "length"},
        "Answer length (tokens)",
        "Growing while gold does not improve: the reward pays for length.",
    ),
    Plot(
        {"response/eos_rate": "share"},
        "Answers that end by themselves",
        f"Should stay above 95{THIN}%. A fall means that answers run into the length limit.",
        percent,
        Guide(0.95, 1.0, "healthy"),
    ),
    Plot(
        {"response/length_reward_corr": "correlation"},
        "Correlation of length and score",
        "Near 0 or steady. Rising towards 1, the reward pays for length; falling towards −1, for brevity.",
        guide=Guide(-0.5, 0.5, "usual"),
    ),
    Plot(
        {"response/distinct_1": "tokens", "response/distinct_2": "pairs of tokens"},
        "Different n-grams, of all",
        "Falls a little as answers get longer or alike. A plunge while the score rises: one phrase is repeated.",
        percent,
    ),
    Plot(
        {"objective/entropy": "entropy"},
        "Entropy (nats an answer)",
        "Falls slowly. A collapse to 0 means the policy says one thing only.",
    ),
)
UPDATES = (
    Plot(
        {"policy/approxkl_avg": "step"},
        "Step size (approximate KL, nats)",
        "How far one rollout moves the policy. Above the line: lower the learning rate.",
        guide=Guide(0.02, 0.02, "0.02"),
        from_zero=True,
    ),
    Plot(
        {"policy/clipfrac_avg": "clipped"},
        "Clipped share of tokens",
        "Some is normal (the band). More: the updates are too large; none, while nothing is learned: too timid.",
        percent,
        Guide(0.05, 0.25, "usual"),
        from_zero=True,
    ),
    Plot(
        {"val/ratio": "ratio"},
        "Probability ratio, new to old",
        "Stays in the band round 1. Far from it, sampling and training disagree.",
        thousandths,
        Guide(0.98, 1.02, "healthy"),
    ),
    Plot(
        {"val/sampler_logprob_gap": "mean", "val/sampler_logprob_gap_max": "largest"},
        "Sampler to update (nats a token)",
        "How far the log-probabilities of sampling and training are apart. More than rounding is a bug.",
        from_zero=True,
    ),
    replace(GRADIENT, lines={"grad_norm": "policy", "grad_norm/critic": "critic"}),
    Plot(
        {"val/skipped_steps": "steps"},
        "Updates left out",
        "Steps of a rollout whose gradient was not finite. Any is too many: look at the scores.",
        from_zero=True,
        smooth=False,
        optional=True,
    ),
    Plot(
        {"loss/value_avg": "loss"},
        "Value loss",
        "The critic’s error. It should fall early, then follow the rewards.",
        settle=True,
    ),
    Plot(
        {"val/explained_variance": "share of 1"},
        "Explained variance of the critic",
        "A constant would explain 0; how much can be known before an answer is finished is the task’s.",
        guide=Guide(0.1, 1.0, "healthy"),
        settle=True,
    ),
)


def figure(
    title: str,
    series: Sequence[Series],
    caption: str,
    form: Callable[[float], str] = number,
    *,
    x_label: str = "step",
    include: Sequence[float] = (),
    guide: Guide | None = None,
    settle: bool = False,
    mark: tuple[float, str] | None = None,
) -> str:
    """One plot in its card: title, last values as the legend, the lines, the caption (HTML). Empty without a point."""
    shown = [s for s in series if len(s.x)]
    if not shown:
        return ""
    legend = "".join(
        f'<span class="k{s.colour}"><i></i>{escape(s.label)}<b>{form((smoothed(s.y) if s.smooth else s.y)[-1])}</b></span>'
        for s in shown
    )
    svg = line_chart(shown, name=title, x_label=x_label, y_format=form, include=include, guide=guide, settle=settle, mark=mark)
    return card(title, legend, svg, caption)


def card(title: str, legend: str, content: str, caption: str) -> str:
    """A titled card round HTML content."""
    legend = f'<p class="legend">{legend}</p>' if legend else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{legend}{content}<p class="caption">{caption}</p></figure>'


def stage_figures(stage: StageRun, run: Run) -> str:
    """All plots of a stage, as HTML."""
    if stage.kind == "online":
        groups = {"Reward and distance": REWARD, "The answers": ANSWERS, "The updates": UPDATES}
        drawn = {name: "".join(plot.draw(stage) for plot in plots) for name, plots in groups.items()}
        drawn["Reward and distance"] = _rewards(stage) + drawn["Reward and distance"]
        return "".join(f'<p class="group">{name}</p>{plots}' for name, plots in drawn.items() if plots)
    caption = "It should fall and flatten. Held out rising while training falls means overfitting."
    own = figure("Loss (nats a token)", _both(stage, "loss"), caption, settle=True)
    if stage.kind == "reward":
        own = _reward_model(stage, run)
    elif stage.kind == "preference":
        own = _preference(stage)
    return own + GRADIENT.draw(stage) + LEARNING_RATE.draw(stage)


def _both(stage: StageRun, key: str) -> list[Series]:
    train, held_out = stage.curve(f"train/{key}"), stage.curve(f"eval/{key}")
    return [Series("training", *train, smooth=True), Series("held out", *held_out, colour=2, style="both")]


def _reward_model(stage: StageRun, run: Run) -> str:
    ceiling = run.find("bayes_accuracy")
    guide = Guide(ceiling, ceiling, f"best possible {percent(ceiling)}") if is_number(ceiling) else None
    loss = "It should fall and flatten; 0.69 is guessing. Held out rising while training falls means overfitting."
    right = f"How often the chosen answer scores higher; 50{THIN}% is guessing"
    right += ", and the line is what no model can beat." if guide else "."
    margin = "Mean score of the chosen answer less the rejected one\u2019s. It grows with confidence, right or wrong."
    return (
        figure("Loss (nats a pair)", _both(stage, "loss"), loss, settle=True)
        + figure("Accuracy", _both(stage, "accuracy"), right, percent, guide=guide)
        + _calibration(stage.evaluation.get("calibration") or run.find("calibration"))
        + figure("Margin", _both(stage, "margin"), margin)
    )


def _preference(stage: StageRun) -> str:
    loss = "It should fall and flatten. Held out rising while training falls means overfitting: one pass is often enough."
    right = f"How often the chosen answer gains more than the rejected one; 50{THIN}% is guessing."
    margin = "What the chosen answer gained less what the rejected one did. It grows with confidence, right or wrong."
    level = "Both often fall together: the policy learns what not to say. Falling fast, it forgets how to answer."
    sides = [Series("chosen", *stage.curve("train/logps/chosen"), smooth=True)]
    sides.append(Series("rejected", *stage.curve("train/logps/rejected"), colour=2, smooth=True))
    return (
        figure("Loss", _both(stage, "loss"), loss, settle=True)
        + figure("Accuracy", _both(stage, "rewards/accuracies"), right, percent)
        + figure("Margin", _both(stage, "rewards/margins"), margin)
        + figure("Log-probability of the answers", sides, level)
    )


def _calibration(found: Any) -> str:
    if not isinstance(found, Mapping):
        return ""
    columns = [found.get(key) or [] for key in ("predicted", "observed", "pairs")]
    if not all(
        isinstance(column, list) and 0 < len(column) == len(columns[0]) and all(map(is_number, column)) for column in columns
    ):
        return ""
    ece = found.get("ece")
    legend = f"<span>mean gap (ECE)<b>{percent(float(ece))}</b></span>" if ece is not None and is_number(ece) else ""
    caption = (
        f"When it says 80{THIN}%, is it right in 80{THIN}%? Points below the dashed line: too sure of itself. "
        f"Bars: 95{THIN}% sampling noise."
    )
    return card("Calibration", legend, reliability_chart(columns[0], columns[1], columns[2]), caption)


def _rewards(stage: StageRun) -> str:
    series = [
        Series("score", *stage.curve("objective/scores"), smooth=True),
        Series("after KL", *stage.curve("objective/rlhf_reward"), colour=3, smooth=True),
    ]
    gold = [Series("gold", *stage.curve("eval/gold_score"), colour=2, smooth=True)]
    raised = "What training raises: the reward model\u2019s score, less the price of distance (after KL)."
    watched = "The true aim, watched and never trained on. Falling while the score rises: over-optimised."
    return figure("Reward", series, raised) + figure("Gold score", gold, watched)


def frontier(stage: StageRun) -> str:
    """Score gained over the square root of KL, as Gao et al. 2022 draw it; empty where the run logged too little."""
    distance = dict(zip(*stage.curve("objective/kl")))
    series, peak = [], None
    for label, key, colour in (("reward model", "objective/scores", 1), ("gold", "eval/gold_score", 2)):
        points = [(step, y) for step, y in zip(*stage.curve(key)) if step in distance]
        if len(points) < 5:
            continue
        # Smoothed over steps, not over distance: two noisy readings at one distance are neighbours in time.
        far = [math.sqrt(max(d, 0.0)) for d in smoothed([distance[step] for step, _ in points])]
        score = smoothed([y for _, y in points])
        rounding = 1e-9 * max(map(abs, score))
        gain = [y - score[0] if abs(y - score[0]) > rounding else 0.0 for y in score]  # the two scores have different zeros
        series.append(Series(label, far, gain, colour))
        top = max(range(len(gain)), key=gain.__getitem__)
        if key == "eval/gold_score" and gain[top] - gain[-1] > 0.1 * (max(gain) - min(gain)):
            peak = (far[top], "gold peak")
    bend = " Where gold bends down and the reward model does not, stop." if len(series) > 1 else ""
    text = f"What each step away from the reference buys, counted from the start.{bend}"
    return figure("Score gained over distance", series, text, x_label="square root of KL", mark=peak)
