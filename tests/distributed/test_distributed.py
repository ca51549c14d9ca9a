from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from rlhf_kit.errors import InputError
from rlhf_kit.training import precision
from rlhf_kit.training.distributed import (
    StopSignal,
    any_rank,
    check_launch,
    make_accelerator,
    no_sync,
    reduce_sum,
    seed_everything_for_step,
    step_generator,
    step_seed,
)
from rlhf_kit.training.metrics import Metrics, read_metrics
from rlhf_kit.training.optim import clip_grad_norm
from rlhf_kit.training.precision import agree_on_precision


def test_numbers_are_summed_over_ranks_by_name(run_ranks: Any) -> None:
    def work(rank: int) -> tuple[dict[str, float], int]:
        accelerator = make_accelerator()
        first = {"a": torch.tensor(rank + 1), "b": 0.5}
        return reduce_sum(accelerator, first if rank == 0 else dict(reversed(first.items()))), accelerator.num_processes

    assert run_ranks(work) == [({"a": 3.0, "b": 1.0}, 2)] * 2


def test_the_sum_of_many_tokens_is_exact(run_ranks: Any) -> None:
    def work(rank: int) -> float:
        return reduce_sum(make_accelerator(), {"tokens": torch.tensor(2**30 + rank)})["tokens"]

    assert run_ranks(work) == [2**31 + 1] * 2  # float32 would round the 1 away


def test_ranks_with_different_names_are_told_and_not_added_up(run_ranks: Any) -> None:
    def work(rank: int) -> str:
        with pytest.raises(RuntimeError) as caught:
            reduce_sum(make_accelerator(), {"kl" if rank else "loss": 1.0})
        return str(caught.value)

    own = run_ranks(work)
    assert own == [
        f"reduce_sum: rank {rank} has the names ['{name}'], another rank has others" for rank, name in enumerate(["loss", "kl"])
    ]


def test_one_rank_is_enough_for_any_rank(run_ranks: Any) -> None:
    def work(rank: int) -> list[bool]:
        accelerator = make_accelerator()
        return [any_rank(accelerator, rank == 1), any_rank(accelerator, False)]

    assert run_ranks(work) == [[True, False]] * 2


def test_a_signal_to_one_rank_stops_both_at_the_same_step_and_the_old_handlers_return(run_ranks: Any) -> None:
    def work(rank: int) -> tuple[int, bool]:
        accelerator = make_accelerator()
        before = signal.getsignal(signal.SIGTERM)
        with StopSignal(accelerator) as stop:
            for step in range(10):
                if rank == 1 and step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                if stop.requested():
                    break
        return step, signal.getsignal(signal.SIGTERM) is before

    assert run_ranks(work) == [(3, True)] * 2


def test_a_repeated_ctrl_c_is_forgiven_at_once_and_interrupts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignal(make_accelerator()) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        monkeypatch.setattr("rlhf_kit.training.distributed.SECOND_INTERRUPT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_gradients_accumulate_on_their_rank_until_the_last_micro_batch(run_ranks: Any) -> None:
    def work(rank: int) -> list[float]:
        accelerator = make_accelerator()
        raw = nn.Linear(1, 1, bias=False)
        model = accelerator.prepare(raw)
        seen = []
        for i in range(2):
            with no_sync(accelerator, model, enabled=i == 0):
                accelerator.backward(model(torch.tensor([[float(1 + rank + 10 * i)]])).sum())
            seen.append(raw.weight.grad.item())
        return seen

    # after one: its own 1 or 2; after the last: the average over ranks of both micro-batches, (1 + 11 + 2 + 12) / 2
    assert run_ranks(work) == [[1.0, 13.0], [2.0, 13.0]]


def test_a_rank_that_never_comes_ends_the_wait_at_the_timeout(run_ranks: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> float:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        accelerator = make_accelerator(timeout_minutes=1 / 60)
        start = time.monotonic()
        if rank == 1:
            time.sleep(3)
            return 0.0
        with pytest.raises(RuntimeError, match=r"(?i)timed out|timeout"):
            any_rank(accelerator, False)
        return time.monotonic() - start

    assert 0.5 < run_ranks(work, join=False)[0] < 2.9


def test_the_norm_over_sharded_and_replicated_gradients_is_that_of_the_whole(run_ranks: Any) -> None:
    def work(rank: int) -> tuple[float, float, float]:
        dist.barrier()
        meshes = [
            init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)),
            init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))["b"],
        ]
        generator = torch.Generator().manual_seed(3)
        whole = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
        sharded = nn.Parameter(distribute_tensor(torch.zeros(4, 2).double(), meshes[0], [Shard(0)]))
        replicated = nn.Parameter(distribute_tensor(torch.zeros(4, 2).double(), meshes[1], [Replicate()]))
        plain = nn.Parameter(torch.zeros(4, 2).double())
        sharded.grad = distribute_tensor(whole[0].clone(), meshes[0], [Shard(0)])
        replicated.grad = distribute_tensor(whole[1].clone(), meshes[1], [Replicate()])
        plain.grad = whole[2].clone()
        norm = clip_grad_norm([sharded, replicated, plain], 1.0)
        expected = torch.stack(whole).norm().item()
        after = torch.stack([sharded.grad.full_tensor(), replicated.grad.full_tensor(), plain.grad])
        return norm, expected, (after - torch.stack(whole) / (expected + 1e-6)).abs().max().item()

    for norm, expected, error in run_ranks(work):
        assert norm == pytest.approx(expected, rel=1e-14)
        assert error < 1e-15


def test_seeds_depend_on_everything_they_are_made_of_and_on_nothing_else() -> None:
    variants = [(1, 2, 3, "x"), (2, 2, 3, "x"), (1, 3, 3, "x"), (1, 2, 4, "x"), (1, 2, 3, "y"), (12, 3, 0, "x"), (1, 23, 0, "x")]
    assert len({step_seed(*v) for v in variants}) == len(variants)
    assert step_seed(1, 2, 3, "x") == 8488564359277474622  # frozen: another value would change every resumed run
    draws = [torch.rand(3, generator=step_generator(1, 2, 3, purpose)).tolist() for purpose in ("x", "x", "y")]
    assert draws[0] == draws[1] != draws[2]


def test_dropout_at_a_step_is_the_same_whatever_was_drawn_before() -> None:
    masks = []
    for junk in (0, 5):
        torch.rand(junk)
        seed_everything_for_step(0, 7, 1)
        masks.append(nn.functional.dropout(torch.ones(64)).tolist())
    assert masks[0] == masks[1]


def test_bf16_computes_products_in_bf16_on_the_cpu_and_returns_to_full_precision() -> None:
    linear = nn.Linear(4, 4)
    for mixed, kind in (("bf16", torch.bfloat16), ("no", torch.float32)):  # in one process: accelerate would keep the first
        with make_accelerator(mixed).autocast():
            assert linear(torch.ones(1, 4)).dtype == kind
    with pytest.raises(InputError, match="--mixed_precision is 'fp16', expected no or bf16"):
        make_accelerator("fp16")


def test_a_launch_whose_processes_do_not_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"number of processes is 1, expected 2, .*torchrun --nproc_per_node 2 "):
        make_accelerator()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_split_weights_are_refused_until_both_loops_know_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"ACCELERATE_USE_{name} is 'true', expected a plain launch"):
        check_launch(accelerator)


def test_all_ranks_take_bf16_or_none(run_ranks: Any) -> None:
    def work(rank: int) -> str:
        precision.bf16_speedup = lambda: (4.0, 0.5)[rank]  # type: ignore[assignment]
        return agree_on_precision("auto", make_accelerator())

    assert run_ranks(work) == ["fp32", "fp32"]


RECIPE = """
from dataclasses import dataclass

import torch.distributed

from rlhf_kit.config import run_recipe
from rlhf_kit.training.distributed import make_accelerator, reduce_sum


@dataclass
class Config:
    one: float = 1.0


def main(config):
    accelerator = make_accelerator()
    total = reduce_sum(accelerator, {"n": config.one})["n"]
    accelerator.print("sum", total)


if __name__ == "__main__":
    run_recipe(main, Config)
    assert not torch.distributed.is_initialized(), "a process that leaves with its group open aborts now and then"
"""


def launch(tmp_path: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    (tmp_path / "recipe.py").write_text(RECIPE)
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(tmp_path / "recipe.py")], capture_output=True, text=True, env=environment, timeout=60)


def test_the_accelerate_command_that_starts_only_one_process_is_refused_in_one_line(tmp_path: Path) -> None:
    run = launch(tmp_path, [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"])
    assert run.returncode != 0
    assert "sum" not in run.stdout
    assert "error: number of processes is 1, but several were asked for" in run.stderr


def test_the_command_that_the_refusal_names_works(tmp_path: Path) -> None:
    run = launch(tmp_path, [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"])
    assert (run.returncode, run.stdout.strip()) == (0, "sum 2.0"), run.stderr


def test_a_worker_does_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    worker = (
        "import signal, sys, time\nfrom rlhf_kit.training.distributed import die_with_parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1] + '/stopped', 'w').close(), sys.exit()))\n"
        "die_with_parent()\nopen(sys.argv[1] + '/ready', 'w').close()\ntime.sleep(30)\n"
    )
    parent = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]).wait()\n"
    launcher = subprocess.Popen([sys.executable, "-c", parent, worker, str(tmp_path)])
    for name, act in (("ready", launcher.kill), ("stopped", lambda: None)):
        deadline = time.monotonic() + 20
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline, f"the worker was never {name}"
            time.sleep(0.02)
        act()
    launcher.wait()


def test_only_rank_0_reports_and_a_missing_tracker_is_told_to_all(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> str:
        accelerator = make_accelerator()
        with pytest.raises(InputError) as caught:
            Metrics(accelerator, tmp_path, 2, trackers=["nothing"])
        metrics = Metrics(accelerator, tmp_path, 2)
        metrics.log(1, {"rank": rank})
        metrics.close()
        return str(caught.value)

    first, second = run_ranks(work)
    assert first == second
    assert [row["rank"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0]
