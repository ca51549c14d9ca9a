"""The report: what it shows of a run, what it refuses, and that nothing in it is fetched or run."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlhf_kit.errors import InputError
from rlhf_kit.evaluation import charts
from rlhf_kit.evaluation.charts import Guide, Series, line_chart, smoothed, thin, ticks
from rlhf_kit.evaluation.report import duration, write_report
from rlhf_kit.evaluation.runs import StageRun, read_run
from rlhf_kit.wording import MINUS, THIN, number, percent
from tests.unit.synthetic_runs import online_metrics

ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'>&amp;"


def fit_metrics(steps: int = 200, loss: float = 2.0, **extra: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        value = loss + 6 * math.exp(-8 * step / steps)
        rows.append(
            {"step": step, "train/loss": value, "lr": 1e-3, "grad_norm": 0.5, "seconds": step * 0.1, "tokens_per_second": 5000}
        )
        if step % 50 == 0:
            rows.append({"step": step, "eval/loss": value + 0.1, **extra})
    return rows


def write_stage(
    path: Path, metrics: list[dict[str, Any]], config: Any = None, evaluation: Any = None, samples: Any = None
) -> Path:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if config is not None:
        (path / "run_config.yaml").write_text(yaml.safe_dump(config))
    if evaluation is not None:
        (path / "evaluation.json").write_text(json.dumps(evaluation))
    if samples is not None:
        (path / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def whole_run(root: Path) -> Path:
    write_stage(root / "ppo", online_metrics(), {"algorithm": "ppo", "kl_coef": 0.05, "nested": {"depth": None}})
    write_stage(root / "pretrain", fit_metrics(loss=2.3), {"learning_rate": 1e-3})
    write_stage(root / "sft", fit_metrics(loss=1.1))
    write_stage(root / "reward", fit_metrics(loss=0.5, **{"eval/accuracy": 0.7, "eval/margin": 0.9}))
    interval = {"estimate": 0.713, "low": 0.661, "high": 0.762, "n": 256}
    evaluation = {
        "gold_win_rate": {**interval, "win": 0.69, "tie": 0.046, "loss": 0.264},
        "proxy_win_rate": {"estimate": 0.86, "low": 0.82, "high": 0.9, "n": 256, "win": 0.85, "tie": 0.02, "loss": 0.13},
        "gold_length_controlled_win_rate": {"estimate": 0.672, "low": 0.61, "high": 0.73, "n": 256},
        "accuracy": {"estimate": 0.709, "low": 0.689, "high": 0.728, "n": 1000},
        "bayes_accuracy": 0.726,
        "calibration": {"predicted": [0.55, 0.7, 0.9], "observed": [0.5, 0.72, 1.0], "pairs": [300, 300, 300], "ece": 0.053},
        "kl": {"estimate": 8.6, "low": 8.1, "high": 9.2, "n": 256},
        "eos_rate": 0.992,
        "attributes": [{"name": "polite", "before": 0.31, "after": 0.84}],
    }
    (root / "evaluation").mkdir()
    (root / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    sample = {"prompt": "Why?", "before": "Because.", "after": "So it is.", "proxy_before": 0, "proxy_after": 1}
    lines = [{**sample, "gold_before": 0.8, "gold_after": 0.1}] + [{**sample, "prompt": f"Number {i}?"} for i in range(8)]
    (root / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = {"tokenizer": 4.2, "pretrain": 330, "sft": 66, "pairs": 41, "reward": 44, "ppo": 380, "evaluate": 33}
    (root / "summary.json").write_text(json.dumps({"seconds": 903.2, "stage_seconds": seconds}))
    return root


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and visible text."""

    void = ("meta", "link", "br", "img", "line", "rect", "circle", "path")

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.raw, self.words = path.read_text(encoding="utf-8"), ""
        self.feed(self.raw)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words += " " + data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", self.words)

    def count(self, tag: str, **attrs: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in attrs.items()) for t, a in self.tags)


def test_one_page_tells_the_whole_run(tmp_path: Path) -> None:
    path = write_report(whole_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    text = page.text
    assert "The trained policy beats the model it started from: it wins 71.3 % of comparisons on 256 prompts" in text
    for tile in (
        "71.3 % 95 % interval 66.1 to 76.2 % 67.2 % at equal length",
        "70.9 %",
        "best possible 72.6 %",
        "8.60 nats",
        "99.2 %",
    ):
        assert tile in text
    assert "15 min 03 s 7 steps" in text
    steps = [
        "1 Tokenizer",
        "2 Pretraining",
        "3 Supervised fine-tuning",
        "4 Answer pairs",
        "5 Reward model",
        "6 PPO",
        "7 Evaluation",
    ]
    assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)
    assert "5 min 30 s" in text  # what the run's summary says, not the last line of the metrics
    for title in (
        "Loss (nats a token)",
        "Loss (nats a pair)",
        "Calibration mean gap (ECE) 5.3 %",
        "Reward score",
        "Score gained over distance",
    ):
        assert title in text
    for title in (
        "KL from the reference",
        "Answer length",
        "Answers that end by themselves",
        "Entropy",
        "Value loss",
        "Clipped share",
        "The answers",
        "Correlation of length and score",
        "Different n-grams",
        "Spread of the scores deviation",
        "The updates",
        "Sampler to update",
    ):
        assert title in text
    assert "polite 31 % 84 %" in text
    assert "nested.depth none" in text
    assert page.count("svg", role="img") == 3 + 3 + 6 + 1 + 16  # two language stages, the reward model, the frontier, PPO
    assert page.count("p", **{"class": "caption"}) == page.count("figure", **{"class": "card"}) == 31
    assert "nan" not in text.lower()


def test_the_page_loads_nothing_and_lets_only_its_own_script_run(tmp_path: Path) -> None:
    page = Page(write_report(whole_run(tmp_path / "run")))
    assert not any(a in attrs for _, attrs in page.tags for a in ("src", "srcset", "action", "onload", "onerror"))
    assert {attrs["href"] for tag, attrs in page.tags if "href" in attrs} == {"data:,", *(f"#stage-{i}" for i in range(1, 5))}
    assert "@import" not in page.raw
    assert "url(" not in page.raw
    assert re.findall(r"https?://[^\"']+", page.raw) == ["http://www.w3.org/2000/svg"]  # a name, which nothing fetches
    (script,) = re.findall(r"<script>(.*?)</script>", page.raw, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_no_text_of_a_run_can_become_markup(tmp_path: Path) -> None:
    root = tmp_path / "run"
    samples = [{"prompt": ATTACK, "before": ATTACK, "after": ATTACK, "gold_before": 0, "gold_after": 1}]
    evaluation = {"attributes": [{"name": ATTACK, "before": 0.1, "after": 0.2}], "baselines": {ATTACK: 2.0}, "bits_per_byte": 1.5}
    config = {ATTACK: ATTACK, "algorithm": ATTACK}
    write_stage(root / "<b>bold", online_metrics(12), config, evaluation, samples)
    write_stage(root / "ppo", online_metrics(12), config)
    page = Page(write_report(root))
    assert page.count("script") == 1
    assert page.count("img") == page.count("b", onerror="alert(1)") == 0
    assert "alert('x')" not in page.raw
    assert page.words.count(ATTACK) == 3 + 1 + 2 * 3  # the sample, the attribute, and both configs
    assert page.words.count(ATTACK.upper()) == 4  # PPO is named by its config: verdict, pipeline, heading, settings
    alone = Page(write_report([root / "<b>bold"], tmp_path / "alone.html"))
    assert "<b>bold" in alone.words
    language = write_stage(tmp_path / "lm", fit_metrics(), evaluation=evaluation)
    assert Page(write_report(language)).words.count(f"{ATTACK} 2.00") == 1


def test_a_single_stage_has_a_report_of_its_own(tmp_path: Path) -> None:
    stage = write_stage(tmp_path / "pretrain", fit_metrics())
    page = Page(write_report(stage, tmp_path / "deep" / "page.html"))
    assert page.count("svg", role="img") == 3
    for words in ("Pretraining: held-out loss 2.10 (perplexity 8.18).", "5 000 tokens/s", "Time 20 s"):
        assert words in page.text
    for absent in ("The pipeline", "Before and after", "Configuration", "What training changed"):
        assert absent not in page.text


def test_a_stage_that_logged_once_or_nothing_is_still_reported(tmp_path: Path) -> None:
    once = Page(write_report(write_stage(tmp_path / "sft", [{"step": 1, "train/loss": 2.0}])))
    assert "training loss 2.00 (perplexity 7.39)" in once.text
    assert once.count("circle") == 1  # one point is a dot, since one point makes no line
    nothing = Page(write_report(write_stage(tmp_path / "ppo", [])))
    assert "no metrics" in nothing.text


def test_plain_data_and_directories_give_the_same_page(tmp_path: Path) -> None:
    stage = write_stage(tmp_path / "sft", fit_metrics(), {"seed": 1}, {"seconds": 5})
    data = {
        "title": "sft",
        "stages": [{"name": "sft", "metrics": fit_metrics(), "config": {"seed": 1}, "evaluation": {"seconds": 5}}],
    }
    from_disk, from_data = write_report(stage), write_report(data, tmp_path / "data.html")
    assert from_disk.read_bytes() == from_data.read_bytes()


def test_the_better_answer_is_marked_by_gold_before_the_reward_model(tmp_path: Path) -> None:
    page = Page(write_report(whole_run(tmp_path / "run")))
    first, second = page.text.split("1 Why?")[1].split("2 Number 0?")
    assert first.startswith(" Before better Because. gold 0.80 reward model 0 After the reward model prefers this So it is.")
    assert second.startswith(" Before Because. reward model 0 After better So it is. reward model 1.00")
    assert "Show 3 more" in page.text


def test_the_gold_peak_is_marked_where_gold_bends_down_and_only_there(tmp_path: Path) -> None:
    def page(name: str, gold: Any) -> Page:
        return Page(write_report(write_stage(tmp_path / name, online_metrics(changed={"eval/gold_score": gold}))))

    bent = page("bent", lambda t: t * (1 - t))
    assert "gold peak" in bent.text
    assert "gold peak" not in page("rising", lambda t: t).text
    assert "gold peak" not in page("flat", lambda t: -4.6).text


@pytest.mark.parametrize(
    ("interval", "verb"),
    [((0.6, 0.52, 0.7), "beats"), ((0.3, 0.2, 0.4), "loses to"), ((0.52, 0.45, 0.6), "cannot be told apart from")],
)
def test_the_verdict_is_only_as_sure_as_the_interval(tmp_path: Path, interval: tuple[float, float, float], verb: str) -> None:
    evaluation = {"proxy_win_rate": dict(zip(("estimate", "low", "high"), interval))}
    page = Page(write_report(write_stage(tmp_path / "ppo", online_metrics(12), evaluation=evaluation)))
    assert f"The trained policy {verb} the model it started from" in page.text
    assert "by the reward model it was trained on" in page.text


def test_half_broken_evaluations_lose_a_part_of_the_page_not_the_page(tmp_path: Path) -> None:
    evaluation = {
        "gold_win_rate": {"estimate": math.nan},
        "accuracy": {"estimate": 0.7},
        "bayes_accuracy": 0.72,
        "calibration": {"predicted": [0.5], "observed": []},
        "attributes": "polite",
        "kl": None,
        "eos_rate": "high",
    }
    page = Page(write_report(write_stage(tmp_path / "reward", fit_metrics(**{"eval/accuracy": 0.7}), evaluation=evaluation)))
    assert "agrees with the held-out choice in 70 % of pairs" in page.text
    assert "Calibration" not in page.text
    assert "nan" not in page.text.lower()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2,}\n{"step": 3}\n', "metrics.jsonl line 2"),
        ("metrics.jsonl", "[1]\n", "expected one JSON object"),
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl line 1, 'step' is None, expected a number"),
        ("run_config.yaml", "a: [1\n", "run_config.yaml"),
        ("run_config.yaml", "- 1\n", "expected a mapping"),
        ("evaluation.json", '{\n"a" 1}', "evaluation.json line 2"),
        ("evaluation.json", "[]", "expected a JSON object"),
        ("samples.jsonl", "hello\nyou\n", "samples.jsonl line 1 is 'hello'"),
        ("samples.jsonl", b"\xff\xfe", "expected UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    stage = write_stage(tmp_path / "sft", fit_metrics())
    (stage / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(message)):
        write_report(stage)
    assert not (stage / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a directory that is there"):
        write_report(tmp_path / "absent")
    with pytest.raises(InputError, match=r"expected metrics.jsonl in it"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="path is None"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="report data"):
        write_report({"stages": []}, tmp_path / "x.html")
    with pytest.raises(InputError, match="expected the fields of StageRun"):
        write_report({"stages": [{"nom": "sft"}]}, tmp_path / "x.html")


def test_a_line_cut_off_by_a_kill_is_left_out_and_a_resumed_step_counts_once(tmp_path: Path) -> None:
    stage = tmp_path / "sft"
    stage.mkdir()
    (stage / "metrics.jsonl").write_text(
        '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a": Infinity}\n{"st'
    )
    run = read_run(stage)
    assert run.stages[0].curve("a") == ([1.0, 2.0], [1.0, 3.0])
    assert run.stages[0].last("a") == 3.0


def test_a_preference_stage_shows_accuracy_margin_and_how_likely_both_sides_stay(tmp_path: Path) -> None:
    shown = {"rewards/margins": 0.7, "rewards/accuracies": 0.75, "logps/chosen": -33.0, "logps/rejected": -65.0}
    rows = [
        {"step": step, "seconds": step, **{f"{part}/{name}": x for name, x in (shown | {"loss": 0.6}).items()}}
        for step in (1, 2, 3)
        for part in ("train", "eval")
    ]
    for loss, right in (("dpo", True), ("kto", False)):
        kept = [{k: v for k, v in row.items() if right or "accuracies" not in k} for row in rows]
        stage = StageRun("dpo", kept, {"loss": loss})
        assert (stage.kind, stage.title) == ("preference", loss.upper())
        page = write_report({"stages": [stage]}, tmp_path / f"{loss}.html").read_text()
        assert all(f">{title}<" in page for title in ("Loss", "Margin", "Log-probability of the answers"))
        assert ("of held-out pairs right" in page) == (">Accuracy<" in page) == right
        assert "held-out margin 0.7" in page
        assert "perplexity" not in page


def test_stages_stand_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "run"))
    assert [stage.name for stage in run.stages] == ["pretrain", "sft", "reward", "ppo"]
    assert [stage.kind for stage in run.stages] == ["lm", "lm", "reward", "online"]
    assert run.find("bayes_accuracy") == 0.726
    assert run.find("unknown") is None


def test_the_clock_of_a_resumed_stage_is_added_to_the_time_before() -> None:
    rows = [{"step": i, "seconds": seconds} for i, seconds in enumerate([1.0, 5.0, 9.0, 2.0, 4.0])]
    assert StageRun("sft", rows).duration == 9 + 4
    assert StageRun("sft", rows, seconds=1.5).duration == 1.5
    assert StageRun("sft", [{"step": 1}]).duration is None
    pairs = [{"step": i, "pairs_per_second": rate} for i, rate in enumerate([7.0, 9.0, 8.0])]
    assert StageRun("reward", pairs).speed == (8.0, "pairs/s")


# ---- charts and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.3, "2.30"),
        (-0.2, f"{MINUS}0.20"),
        (0.0123, "0.012"),
        (0.00123, "0.0012"),
        (9.999, "10.0"),
        (31.26, "31.3"),
        (999.4, "999"),
        (3000, f"3{THIN}000"),
        (3e9, "3e9"),
        (1e-4, f"1e{MINUS}4"),
        (2.5e-5, f"2.5e{MINUS}5"),
    ],
)
def test_numbers_have_three_digits_and_a_true_minus(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_and_durations_read_as_people_write_them() -> None:
    assert [percent(x) for x in (0.7126, 0.5, 1)] == [f"71.3{THIN}%", f"50{THIN}%", f"100{THIN}%"]
    found = [duration(x).replace(THIN, " ") for x in (0.04, 8.44, 44, 59.96, 66, 3599.4, 3840, 90000)]
    assert found == ["0 s", "8.4 s", "44 s", "1 min 00 s", "1 min 06 s", "59 min 59 s", "1 h 04 min", "25 h 00 min"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.37, 0.2), (1.98, 2.02), (0, 3000), (1e-6, 3e-6), (-5e6, 1e7)])
def test_ticks_are_round_inside_and_a_handful(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 * (high - low) <= found[0]
    assert found[-1] <= high + 1e-9 * (high - low)
    steps = np.diff(found)
    assert steps == pytest.approx(steps[0], rel=1e-6)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9), 6) in (1, 2, 2.5, 5)


def test_smoothing_keeps_constants_and_straight_lines_and_does_not_lag() -> None:
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    line = [float(i) for i in range(100)]
    assert smoothed(line)[:97] == pytest.approx(line[:97])  # beyond, the far side of the window is cut
    assert smoothed([]) == []
    noise = np.random.default_rng(0).normal(size=900)
    assert np.std(smoothed(list(noise))) < 0.2  # 61 values a window


def test_thinning_keeps_means_and_the_last_value() -> None:
    values = [float(i % 7) for i in range(5000)]
    few = thin(values)
    assert len(few) == charts.MOST_POINTS
    assert few[-1] == values[-1]
    assert np.mean(few) == pytest.approx(np.mean(values), abs=0.02)
    assert thin(values[:240]) == values[:240]


def test_a_line_runs_from_corner_to_corner_of_its_axes() -> None:
    svg = line_chart([Series("a", [0, 10], [0.0, 1.0])], name="plot", include=(0, 1))
    width, height = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert f'd="M0.0 {height:.1f}L{width:.1f} 0.0"' in svg
    (data,) = re.findall(r'data-series="(.*?)"', svg)
    hover = json.loads(data.replace("&quot;", '"'))
    assert hover[0]["x"] == [charts.LEFT, charts.LEFT + width]
    assert hover[0]["at"] == ["step 0", "step 10"]
    assert hover[0]["value"] == ["0", "1.00"]


def test_a_steep_start_does_not_flatten_the_rest() -> None:
    y = [100.0, *(1 + 0.1 * (i % 2) for i in range(199))]
    plain, settled = (line_chart([Series("loss", range(200), y)], name="p", settle=settle) for settle in (False, True))

    def heights(svg: str) -> list[float]:
        (path,) = re.findall(r'class="line c1" d="M(.*?)"', svg)
        return [float(point.split()[1]) for point in path.split("L")][100:]

    assert np.ptp(heights(plain)) < 1
    assert np.ptp(heights(settled)) > 100


def test_charts_survive_one_point_constants_and_guides_outside_the_data() -> None:
    for series in (Series("a", [3], [2.0]), Series("a", [1, 2], [0.0, 0.0]), Series("a", [1, 2, 3], [1e-9, 1e-9, 1e-9])):
        svg = line_chart([series], name="p", guide=Guide(0.95, 1.0, "healthy"))
        assert "nan" not in svg
        assert "healthy" in svg
        assert svg.count("<svg") == svg.count("</svg>") == 2


def test_a_calibration_below_one_half_stays_inside_its_axes() -> None:
    svg = charts.reliability_chart([0.55, 0.9], [0.21, 0.95], [5, 500])
    centres = [float(y) for y in re.findall(r'cy="(.*?)"', svg)]
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for y in centres)
    assert "nan" not in svg
