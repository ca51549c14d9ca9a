"""The speed benchmark: its arithmetic, the shape of its report, and that a row runs from the command line."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.speed import work
from benchmarks.speed.measure import Clock, Row, Times, compare, interleave, table
from benchmarks.speed.memory import LargestTensor
from benchmarks.speed.rows import GROUPS, flops_a_step


def test_a_ratio_is_their_median_over_ours_so_that_more_is_better_for_us():
    row = compare("a", "w", Times([1.0, 2.0, 9.0], [1.0, 1.0, 1.0]), Times([6.0, 1.0, 8.0], [4.0, 4.0, 9.0]), "peer")
    assert (row.ours, row.theirs, row.ratio, row.ratio_cpu) == (2.0, 6.0, 3.0, 4.0)


def test_contenders_take_turns_and_their_making_is_not_timed():
    order = []

    def setup(name):
        def build():
            order.append(f"make {name}")
            return lambda clock: order.append(name)

        return build

    times = interleave({"ours": setup("ours"), "theirs": setup("theirs")}, rounds=2)
    assert order == ["make ours", "ours", "make theirs", "theirs"] * 2
    assert len(times["ours"].wall) == len(times["theirs"].cpu) == 2


def test_a_clock_stops_once():
    clock = Clock()
    clock.stop()
    first = clock.wall
    clock.stop()
    assert clock.wall == first > 0


def test_a_loss_and_a_missed_aim_are_printed_as_such():
    text = table(
        [Row("slow", "w", 2.0, 1.0, "s", 0.5, "peer", target=3.0), Row("fast", "w", 1.0, 4.0, "s", 4.0, "peer", target=3.0)]
    )
    slow, fast = text.splitlines()[1:]
    assert "LOST" in slow and "missed" in slow
    assert "LOST" not in fast and "missed" not in fast


def test_every_pair_names_contenders_that_exist():
    for group in GROUPS.values():
        names = set(group.contenders(work.quick(group.size)))
        assert {name for pair in group.pairs for name in (pair.ours, pair.theirs)} <= names


def test_twins_have_the_same_weights_but_for_positions_norms_and_biases():
    size = work.quick(work.Size())
    ours, theirs = work.our_model(size).num_parameters(), work.gpt2(size)
    positions = theirs.transformer.wpe.weight.numel()
    assert ours == pytest.approx(theirs.num_parameters() - positions, rel=0.1)


def test_examples_have_the_mean_length_asked_for():
    size = work.SMALL
    lengths = [len(ids) for ids in work.examples(size)]
    assert len(lengths) == size.sequences and max(lengths) <= size.length
    assert sum(lengths) / len(lengths) == pytest.approx(size.mean_length, rel=0.02)


def test_flops_count_six_a_weight_and_half_of_attention():
    size = work.Size(vocab=10, d_model=4, n_layers=1, n_heads=1, length=2, batch=1)
    assert flops_a_step(size) == 2 * (6 * (12 * 16 + 40) + 6 * 2 * 4)


def test_the_largest_tensor_is_seen_also_in_the_backward():
    x = torch.ones(3, requires_grad=True)
    with LargestTensor() as seen:
        x.sum().backward()
        (x.unsqueeze(1) * torch.ones(5)).sum().backward()
    assert seen.elements == 15


def test_a_quick_row_leaves_a_json_report_without_names_of_the_machine(tmp_path):
    file = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--rows", "largest-tensor", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    fields = {"name", "work", "ours", "theirs", "unit", "ratio", "reference", "target", "ratio_cpu"}
    assert [set(row) for row in report["rows"]] == [fields]
    assert report["rows"][0]["ours"] < 1 <= report["rows"][0]["theirs"]
    assert set(report["machine"]) == {"torch", "transformers", "accelerate", "trl", "threads", "cpu_capability", "python"}
