from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.errors import InputError
from rlhf_kit.training import checkpoint
from rlhf_kit.training.checkpoint import Checkpoints, save_model_dir
from rlhf_kit.training.distributed import make_accelerator, seed_everything_for_step, step_generator
from rlhf_kit.training.optim import clip_grad_norm, lr_at, make_optimizer, set_learning_rate


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator()


@pytest.fixture
def checkpoints(tmp_path: Path, accelerator: Accelerator) -> Checkpoints:
    return Checkpoints(tmp_path / "trainer_state", accelerator, keep=2)


def state(number: float) -> dict[str, Any]:
    return {"weights": torch.full((64,), number), "best": number, "names": ["a", {"b": (1, None, True)}]}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((64,), 2.0).numpy().tobytes()) + 17] ^= (
        4  # in the middle of a tensor, where torch.load sees nothing
    )
    path.write_bytes(data)


def full_disk_on(monkeypatch: pytest.MonkeyPatch, call: str, after: int = 0) -> None:
    """The real `os` call, until it has run `after` times: then the disk is full."""
    real, count = getattr(os, call), 0

    def limited(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, limited)


def test_what_is_saved_is_loaded_bit_for_bit(checkpoints: Checkpoints) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bf16": torch.randn(5).bfloat16(),
        "best": float("inf"),
    }
    assert checkpoints.load_latest() is None
    assert checkpoints.save(7, saved, {"cursor": 3})
    step, shared, local = checkpoints.load_latest()
    assert (step, local, shared["best"]) == (7, {"cursor": 3}, float("inf"))
    for name, tensor in saved["model"].items():
        assert torch.equal(shared["model"][name], tensor)
    assert torch.equal(shared["bf16"], saved["bf16"])
    fresh = torch.optim.AdamW(nn.Linear(3, 3).parameters())
    fresh.load_state_dict(shared["optimizer"])
    for old, new in zip(optimizer.state_dict()["state"].values(), fresh.state_dict()["state"].values()):
        assert all(torch.equal(old[key], new[key]) for key in old)


def train(checkpoints: Checkpoints, start: int, steps: int, save_at: int = -1) -> list[torch.Tensor]:
    """A loop as `fit` has it: dropout, AdamW, a schedule, and nothing carried from step to step but what is saved."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = make_optimizer(model, learning_rate=0.01, weight_decay=0.1)
    if start:
        found = checkpoints.load_latest()
        assert found is not None
        assert found[0] == start
        model.load_state_dict(found[1]["model"])
        optimizer.load_state_dict(found[1]["optimizer"])
    for step in range(start, steps):
        batch = torch.randn(8, 4, generator=step_generator(0, step, 0, "batch"))
        seed_everything_for_step(0, step, 0)
        model(batch).square().sum().backward()
        clip_grad_norm(model.parameters(), 1.0)
        set_learning_rate(optimizer, 0.01 * lr_at(step, steps, warmup_steps=2))
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == save_at:
            checkpoints.save(save_at, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, {})
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(checkpoints: Checkpoints) -> None:
    unbroken = train(checkpoints, 0, 10, save_at=4)
    resumed = train(checkpoints, 4, 10)
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed))


def test_the_manifest_says_what_the_files_are(checkpoints: Checkpoints) -> None:
    checkpoints.save(7, state(1.0), {})
    folder = checkpoints.directory / "step-00000007"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["world"], sorted(manifest["files"])) == (7, 1, ["rank-0.pt", "shared.pt"])
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_only_the_newest_are_kept(checkpoints: Checkpoints) -> None:
    for step in (5, 10, 100, 20):  # 100 belongs to a run that was rewound: saving 20 shows it
        checkpoints.save(step, state(step), {})
    assert checkpoints.steps() == [10, 20]
    assert sorted(os.listdir(checkpoints.directory)) == ["step-00000010", "step-00000020"]


def test_a_step_may_be_saved_again(checkpoints: Checkpoints) -> None:
    checkpoints.save(5, state(1.0), {})
    assert checkpoints.save(5, state(2.0), {})
    assert checkpoints.load_latest()[1]["best"] == 2.0


def test_one_flipped_bit_is_seen_and_the_checkpoint_before_it_is_loaded(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(1, state(1.0), {})
    checkpoints.save(2, state(2.0), {})
    path = checkpoints.directory / "step-00000002" / "shared.pt"
    flip_a_bit(path)
    assert not torch.equal(torch.load(path)["weights"], state(2.0)["weights"])  # torch itself loads it without a word
    step, shared, _ = checkpoints.load_latest()
    assert (step, shared["best"]) == (1, 1.0)
    warning = capsys.readouterr().err
    assert re.fullmatch(r"warning: .*step-00000002/shared\.pt is damaged \(its sha256 differs .*step 2 is skipped.*\n", warning)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "shared.pt").unlink(),
        lambda folder: (folder / "rank-0.pt").write_bytes(b""),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text('{"world": 1, "files": {}}'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
    ids=["no shared", "empty rank", "no manifest", "half a manifest", "no files in it", "another shape"],
)
def test_whatever_is_missing_the_checkpoint_before_it_is_loaded(damage: Any, checkpoints: Checkpoints) -> None:
    checkpoints.save(1, state(1.0), {})
    checkpoints.save(2, state(2.0), {})
    damage(checkpoints.directory / "step-00000002")
    assert checkpoints.load_latest()[0] == 1


def test_a_run_with_only_damaged_checkpoints_does_not_start_from_zero_in_silence(checkpoints: Checkpoints) -> None:
    checkpoints.save(2, state(2.0), {})
    flip_a_bit(checkpoints.directory / "step-00000002" / "shared.pt")
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged"):
        checkpoints.load_latest()


def test_another_number_of_processes_is_refused_by_name(checkpoints: Checkpoints) -> None:
    checkpoints.save(2, state(2.0), {})
    path = checkpoints.directory / "step-00000002" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world": 4}))
    with pytest.raises(InputError, match="is 4, but this run has 1: launch it with 4"):
        checkpoints.load_latest()


@pytest.mark.parametrize("moment", ["midway through a file", "before the rename"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before_it(
    moment: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(1, state(1.0), {})
    child = os.fork()
    if child == 0:

        def die(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "before the rename":
            os.rename = die
        else:
            write = checkpoint._Sink.write

            def write_and_die(self: Any, data: bytes) -> int:
                return die() if self.size > 500 else write(self, data)

            checkpoint._Sink.write = write_and_die
        checkpoints.save(2, state(2.0), {})
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (checkpoints.directory / ".tmp-step-00000002" / "shared.pt").stat().st_size > 0
    assert checkpoints.load_latest()[0] == 1
    assert checkpoints.save(3, state(3.0), {})
    assert sorted(os.listdir(checkpoints.directory)) == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0)])
def test_a_full_disk_costs_one_warning_and_neither_the_run_nor_the_last_checkpoint(
    call: str, after: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(1, state(1.0), {})
    with monkeypatch.context() as patch:
        full_disk_on(patch, call, after)
        assert checkpoints.save(2, state(2.0), {}) is False
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "the checkpoint of step 2 was not saved" in warning
    assert re.search(r"No space left on device; it needs [\d.]+ KB, [\d.]+ \wB are free", warning)
    assert "(the last one is of step 1)" in warning
    assert os.listdir(checkpoints.directory) == ["step-00000001"]
    assert checkpoints.load_latest()[0] == 1
    assert checkpoints.save(3, state(3.0), {})


def test_a_write_that_the_system_cuts_short_tells_how_much_was_needed(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # a real refusal in the midst of a tensor, needing no root
    try:
        assert checkpoints.save(2, {"weights": torch.zeros(250_000)}, {}) is False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large; it needs 1 MB" in capsys.readouterr().err
    assert os.listdir(checkpoints.directory) == []


def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(checkpoints: Checkpoints) -> None:
    with pytest.raises(RuntimeError, match=r"rank 0, rank-0\.pt: TypeError: it holds pathlib.PosixPath"):
        checkpoints.save(1, state(1.0), {"path": Path("x")})
    with pytest.raises(RuntimeError, match=r"cannot be saved: rank 0, shared\.pt: .*lambda"):
        checkpoints.save(1, {"f": lambda: None}, {})
    assert os.listdir(checkpoints.directory) == []


def test_a_fresh_run_among_old_checkpoints_is_refused(checkpoints: Checkpoints) -> None:
    checkpoints.refuse_existing()
    checkpoints.save(4, state(1.0), {})
    with pytest.raises(InputError, match="an earlier run left step 4 there: go on with --resume true"):
        checkpoints.refuse_existing()


def test_at_least_one_is_kept(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep_checkpoints is 0"):
        Checkpoints(tmp_path, accelerator, keep=0)


def tiny_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, bos_token_id=0, eos_token_id=0, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<|end|>": 0, "hello": 1, "[UNK]": 2}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), eos_token="<|end|>")


def same_weights(path: Path, model: nn.Module) -> bool:
    loaded = AutoModelForCausalLM.from_pretrained(path).state_dict()
    return all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_a_model_directory_loads_again_and_leaves_its_neighbours_alone(
    tmp_path: Path, accelerator: Accelerator, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "trainer_state").mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "model.safetensors.index.json").write_text("{}")  # the layout of a model that came in shards
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    for seed in (1, 2):
        model = accelerator.prepare(tiny_model(seed))
        save_model_dir(model, tokenizer, tmp_path, accelerator)
        assert same_weights(tmp_path, model)
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).decode([1, 0]) == "hello <|end|>"
    names = {entry.name for entry in tmp_path.iterdir()}
    assert {"trainer_state", "metrics.jsonl", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {".tmp-model", "model.safetensors.index.json", "model-00001-of-00002.safetensors"} & names


def test_a_full_disk_leaves_the_old_model_and_says_so(
    tmp_path: Path, accelerator: Accelerator, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tiny_model(1)
    save_model_dir(old, tokenizer, tmp_path, accelerator)
    with monkeypatch.context() as patch:
        full_disk_on(patch, "fsync", after=2)
        with pytest.raises(
            InputError, match=r"could not be written \(OSError: .*No space left.*: it needs .* are free; what was there"
        ):
            save_model_dir(tiny_model(2), tokenizer, tmp_path, accelerator)
    assert same_weights(tmp_path, old)
    assert not (tmp_path / ".tmp-model").exists()


def test_a_bug_in_saving_a_model_is_not_called_a_full_disk(tmp_path: Path, accelerator: Accelerator) -> None:
    broken = namedtuple("Broken", "save_pretrained")(lambda path: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        save_model_dir(tiny_model(1), broken, tmp_path, accelerator)
