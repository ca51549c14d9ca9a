"""Every row of `python -m benchmarks.parity`, within its tolerance; and that an error would be seen."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from benchmarks.parity import golden, grouped, ppo, preference, sft, world
from benchmarks.parity.cases import CASES, chosen, family
from benchmarks.parity.rows import Case, Row, compared, number, relative_difference, table

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def rows_of(case):
    return compared(case, case.ours(), case.theirs())


@EVERY_CASE
def test_every_quantity_equals_trls(case):
    pytest.importorskip("trl")
    rows = rows_of(case)
    assert [row for row in rows if row.exceeds] == []
    assert all(row.reason for row in rows if row.tolerance > (1e-12 if row.precision == "fp64" else 1e-6))


@EVERY_CASE
def test_ours_equal_the_numbers_recorded_from_trl_without_trl(case, monkeypatch):
    """Within ten tolerances: another machine, or another release of torch, adds up in another order."""
    monkeypatch.setitem(sys.modules, "trl", None)
    recorded = json.loads(golden.GOLDEN.read_text())["theirs"][case.name]
    assert {name: x for name, x in golden.distance(case, recorded).items() if not x <= 10} == {}


def test_what_was_recorded_is_what_there_is():
    recorded = json.loads(golden.GOLDEN.read_text())
    assert recorded["trl"].startswith("1.12.")
    assert list(recorded["theirs"]) == [case.name for case in CASES]


def test_every_algorithm_has_a_row_of_its_loss_and_its_gradients():
    sfts = {f"sft, {name}" for name in ("assistant-only", "completion-only", "whole text", "packed", "padding-free")}
    rewards = {"process reward", *(f"reward, {name}" for name in ("plain", "margin", "centring", "margin, centring"))}
    offline = {"dpo", "cdpo", "robust", "hinge", "ipo", "simpo", "orpo", "kto"}
    online = {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "gspo", "grpo, no KL", "grpo, two-sided clip", "rloo", "ppo"}
    recorded = json.loads(golden.GOLDEN.read_text())["theirs"]
    for algorithm in sfts | rewards | offline | online:
        for precision in ("fp64", "fp32"):
            assert {"loss", "gradients"} <= recorded[f"{algorithm}, {precision}"].keys()
    for algorithm in sfts:
        assert "trained tokens" in recorded[f"{algorithm}, fp64"]


@pytest.mark.parametrize("algorithm", [name for name in preference.LOSSES if name != "simpo"])
def test_another_beta_would_be_seen(algorithm):
    """In both loss and gradients, here a millionth more; simpo's own is 2 and not BETA."""
    pytest.importorskip("trl")
    ours, theirs, metrics, reference = preference.LOSSES[algorithm]
    wrong = partial(ours, beta=preference.BETA * (1 + 1e-6))
    planted = preference._case(algorithm, wrong, theirs, metrics, preference._models(reference))
    rows = rows_of(planted)
    assert {"loss", "gradients"} <= {row.quantity for row in rows if row.exceeds}
    assert table(rows).count("EXCEEDS") == sum(row.exceeds for row in rows)
    recorded = json.loads(golden.GOLDEN.read_text())["theirs"][planted.name]
    assert min(golden.distance(planted, recorded)[quantity] for quantity in ("loss", "gradients")) > 10


@pytest.mark.parametrize("setting", ["cliprange", "kl_coef", "temperature"])
def test_another_setting_of_grpo_would_be_seen(setting, monkeypatch):
    recorded = json.loads(golden.GOLDEN.read_text())["theirs"]["grpo, fp32"]
    case = next(case for case in CASES if case.name == "grpo, fp32")
    assert max(golden.distance(case, recorded).values()) < 1
    wrong = {"cliprange": 0.06, "kl_coef": 0.0401, "temperature": 0.7001}[setting]
    if setting == "temperature":
        monkeypatch.setattr(grouped, "TEMPERATURE", wrong)
    else:
        monkeypatch.setitem(grouped.SETTINGS, "grpo", ("grpo", {setting: wrong}, {}))
    found = golden.distance(case, recorded)
    assert found["loss"] > 10 and found["gradients"] > 10


def test_a_parameter_whose_gradient_is_wrong_does_not_hide_behind_larger_ones():
    theirs = {"large": torch.full((100,), 1e3), "small": torch.tensor([1e-3, 1e-3])}
    ours = theirs | {"small": torch.tensor([1e-3, -1e-3])}
    assert number(ours) == pytest.approx(number(theirs), rel=1e-12)
    assert relative_difference(ours, theirs) == pytest.approx(2**0.5)
    assert relative_difference({"large": theirs["large"]}, theirs) == float("inf")


def test_differences_are_relative_and_what_cannot_be_compared_exceeds():
    assert relative_difference(1.1, 1.0) == pytest.approx(0.1)
    assert relative_difference(0.0, 0.0) == 0.0
    assert relative_difference([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert relative_difference(torch.zeros(2), torch.ones(3)) == float("inf")
    assert relative_difference(torch.tensor([1, -100]), torch.tensor([1, 7])) == 0.5
    assert Row("a", "loss", "fp32", 1.0, 1.0, float("nan"), 1e-6).exceeds
    assert not Row("a", "loss", "fp32", 1.0, 1.0, 1e-6, 1e-6).exceeds
    with pytest.raises(ValueError, match="quantities differ"):
        compared(Case("a", dict, dict), {"loss": 1.0}, {"loss": 1.0, "gradients": 1.0})


def test_the_cases_test_what_their_names_say():
    lengths = [len(ids) for ids, _ in sft.our_examples("packed")]
    assert sum(lengths) > sft.LENGTH > 2 * min(lengths) and max(lengths) <= sft.LENGTH  # several rows, of several examples
    assert {family(case) for case in chosen(["sft"])} == {"sft"}
    kl = {phase: _baseline(phase) for phase in (preference.REFERENCE, preference.CLAMPED)}
    assert kl[preference.REFERENCE] > 0.1 and kl[preference.CLAMPED] == 0.0
    start, (end,) = ppo.models("fp64")["policy"], [ppo.run_ours("fp64")["weights"]]
    assert max(float((end[f"policy.{name}"] - p.detach()).abs().max()) for name, p in start.named_parameters()) > 1e-2


def _baseline(phase):
    _, stats = preference.ours_on_feedback(world.language_model(), world.language_model(phase), preference.FEEDBACK)
    return stats["kl"]


def test_one_command_prints_the_table_and_says_whether_all_is_well(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "benchmarks.parity", "--only", "masked moments", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 rows, 0 beyond their tolerance" in done.stdout
    report = json.loads((tmp_path / "rows.json").read_text())
    assert {"trl", "torch", "rows"} == report.keys()
    wanted = {"algorithm", "quantity", "ours", "theirs", "relative_difference", "tolerance"}
    assert all(wanted <= row.keys() for row in report["rows"])
    done = subprocess.run([*command[:4], "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "nonsense" in done.stderr and "masked moments" in done.stderr
