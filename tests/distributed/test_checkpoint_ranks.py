from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlhf_kit.errors import InputError
from rlhf_kit.training import checkpoint
from rlhf_kit.training.checkpoint import Checkpoints, save_model_dir
from rlhf_kit.training.distributed import make_accelerator


def test_each_rank_gets_back_its_own_and_what_is_shared(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> tuple[bool, Any]:
        checkpoints = Checkpoints(tmp_path / "state", make_accelerator())
        saved = checkpoints.save(3, {"weights": torch.arange(4.0) + rank}, {"rank": rank})
        return saved, checkpoints.load_latest()

    for rank, (saved, (step, shared, local)) in enumerate(run_ranks(work)):
        assert (saved, step, shared["weights"].tolist(), local) == (True, 3, [0.0, 1.0, 2.0, 3.0], {"rank": rank})
    assert sorted(os.listdir(tmp_path / "state" / "step-00000003")) == ["manifest.json", "rank-0.pt", "rank-1.pt", "shared.pt"]


def test_damage_that_one_rank_sees_sends_all_to_the_checkpoint_before_it(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> int:
        accelerator = make_accelerator()
        checkpoints = Checkpoints(tmp_path / "state", accelerator)
        for step in (1, 2):
            checkpoints.save(step, {"step": step}, {"rank": rank})
        if rank == 0:
            path = tmp_path / "state" / "step-00000002" / "rank-1.pt"
            path.write_bytes(path.read_bytes()[:-1] + b"\1")
        accelerator.wait_for_everyone()
        found = checkpoints.load_latest()
        assert found is not None
        return found[0]

    assert run_ranks(work) == [1, 1]


def test_a_full_disk_under_one_rank_makes_the_save_fail_for_all_and_the_run_go_on(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> list[Any]:
        checkpoints = Checkpoints(tmp_path / "state", make_accelerator())
        outcomes: list[Any] = [checkpoints.save(1, {}, {"rank": rank})]
        real = os.fsync
        if rank == 1:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            os.fsync = full
        outcomes.append(checkpoints.save(2, {}, {"rank": rank}))
        os.fsync = real
        found = checkpoints.load_latest()
        return [*outcomes, found and found[0], checkpoints.save(3, {}, {"rank": rank})]

    assert run_ranks(work) == [[True, False, 1, True]] * 2
    assert sorted(os.listdir(tmp_path / "state")) == ["step-00000001", "step-00000003"]


def test_a_bug_on_one_rank_is_raised_on_all(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> str:
        with pytest.raises(RuntimeError) as caught:
            Checkpoints(tmp_path / "state", make_accelerator()).save(1, {}, {"path": tmp_path} if rank else {})
        return str(caught.value)

    first, second = run_ranks(work)
    assert first == second
    assert "rank 1, rank-1.pt: TypeError: it holds pathlib.PosixPath" in first


def test_a_checkpoint_of_two_processes_is_refused_by_one_and_by_four(run_ranks: Any, tmp_path: Path) -> None:
    def save(rank: int) -> bool:
        return Checkpoints(tmp_path / "state", make_accelerator()).save(1, {}, {})

    def load(rank: int) -> str:
        with pytest.raises(InputError) as caught:
            Checkpoints(tmp_path / "state", make_accelerator()).load_latest()
        return str(caught.value)

    assert run_ranks(save) == [True, True]
    for world in (1, 4):
        for message in run_ranks(load, world=world):
            assert f"is 2, but this run has {world}: launch it with 2" in message


def test_a_model_under_ddp_is_saved_once_and_a_full_disk_is_told_to_every_rank(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> str:
        torch.manual_seed(0)
        accelerator = make_accelerator()
        config = GPT2Config(vocab_size=5, bos_token_id=0, eos_token_id=0, n_positions=4, n_embd=4, n_layer=1, n_head=1)
        model = accelerator.prepare(GPT2LMHeadModel(config))
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        save_model_dir(model, None, tmp_path / "model", accelerator)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.module.state_dict().items())

        def full(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint._replace_files = full
        with pytest.raises(InputError) as caught:
            save_model_dir(model, None, tmp_path / "model", accelerator)
        return str(caught.value)

    first, second = run_ranks(work)
    assert first == second
    assert "No space left on device" in first
