"""Checkpoints that survive: whole or absent, verified when read, and never the reason why training stops.

A checkpoint is a directory `step-00000100/`: `shared.pt` (equal on all ranks, written by rank 0), one `rank-N.pt` a process and
`manifest.json` (size and sha256 of each file, number of processes). It is written under another name, synced, and renamed. sha256
is there because one flipped bit loads silently from torch.save and from safetensors. accelerate's `save_state` is not used: on a
full disk it raises on one rank only and leaves half a directory. The directory must be one that all processes share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import nn

from rlhf_kit.errors import InputError
from rlhf_kit.models.access import unwrap
from rlhf_kit.models.loading import SCORE_BIAS, quiet

State = dict[str, Any]
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "adapter_model*", "adapter_config.json")
_BESIDE = (SCORE_BIAS,)  # what an earlier model may have left that would be read with a new one


class Checkpoints:
    """The checkpoints of one run, in `directory`, the newest `keep` of them. Every method but `steps` is called on all ranks."""

    def __init__(self, directory: str | Path, accelerator: Accelerator, keep: int = 2) -> None:
        if keep < 1:
            raise InputError("keep_checkpoints", keep, "expected at least 1")
        self.directory, self.accelerator, self.keep = Path(directory), accelerator, keep
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; whether they are intact only `load_latest` knows."""
        names = [entry.name for entry in self.directory.glob("step-*") if entry.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def refuse_existing(self) -> None:
        """Raise InputError where an earlier run left checkpoints or a model: a fresh run could mix with them."""
        folder = self.directory.parent
        steps, model = _agree((self.steps(), any(any(folder.glob(p)) for p in _WEIGHTS)) if self.rank == 0 else None)
        if steps:
            mend = f"but an earlier run left step {steps[-1]} there: go on with --resume true, or choose another --output_dir"
            raise InputError("output_dir", str(folder), mend)
        if model:
            mend = "but an earlier run left its model there: choose another --output_dir, or remove this one"
            raise InputError("output_dir", str(folder), mend)

    def require_existing(self) -> None:
        """Raise InputError where there is no checkpoint: `--resume true` would begin anew without a word."""
        if not _agree(self.steps() if self.rank == 0 else None):
            raise InputError(
                "--resume", True, f"but there is no checkpoint in {self.directory}: leave it out, or check --output_dir"
            )

    def save(self, step: int, shared: State, local: State) -> bool:
        """Write the checkpoint of `step`; False, with one warning on stderr and the earlier ones untouched, where that failed.

        A full disk or lost storage does not end training: the next save tries again. Checkpoints of later steps, left by a run
        that was rewound, are removed.

        Args:
            shared: what is equal on all ranks; only rank 0's is written.
            local: what belongs to this rank. Both hold tensors and plain Python containers and values only.
        Raises:
            RuntimeError: a state that could not be read back safely (`torch.load(weights_only=True)`), on all ranks.
        """
        final = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".tmp-{final.name}"
        if self.rank == 0:
            for leftover in self.directory.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with contextlib.suppress(OSError):  # writing into it will say what is wrong
                temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()

        files: dict[str, Any] = {}
        problem: str | None = None
        bug: str | None = None
        parts = ({"shared.pt": shared} if self.rank == 0 else {}) | {f"rank-{self.rank}.pt": local}
        for name, state in parts.items():
            try:
                files[name], error = _write(temporary / name, state)
                problem = problem or error
            except Exception as error:  # the other ranks must hear of it before this one leaves
                bug = f"rank {self.rank}, {name}: {type(error).__name__}: {error}"
        everyone = gather_object([(files, problem, bug)])
        files = {name: entry for part, _, _ in everyone for name, entry in part.items()}
        problem = next((text for _, text, _ in everyone if text), None)
        bug = next((text for _, _, text in everyone if text), None)

        if self.rank == 0 and not problem and not bug:
            try:
                self._publish(step, temporary, final, files)
            except OSError as error:
                problem = str(error)
        problem = _agree(problem)
        if not problem and not bug:
            return True
        if self.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if bug:
            raise RuntimeError(f"the state of step {step} cannot be saved: {bug}")
        if self.rank == 0:
            needed = sum(entry["size"] for entry in files.values())
            last = f"the last one is of step {steps[-1]}" if (steps := self.steps()) else "there is none yet"
            _warn(
                f"the checkpoint of step {step} was not saved in {self.directory}: {problem}; it needs {_size(needed)}, "
                f"{_free(self.directory)} are free. Training goes on; free some space, the next save tries again ({last})"
            )
        return False

    def load_latest(self) -> tuple[int, State, State] | None:
        """The newest intact checkpoint as `(step, shared, local)`, tensors on the CPU; None where there is no checkpoint at all.

        Each rank verifies what it reads; one that is damaged for any rank is skipped by all, with a warning that names the file.

        Raises:
            InputError: it was saved by another number of processes, or all that exist are damaged.
        """
        steps: list[int] = _agree(self.steps() if self.rank == 0 else None)
        for step in reversed(steps):
            folder = self.directory / f"step-{step:08d}"
            world, problem = self._verify(folder)
            problems = [text for text in gather_object([problem]) if text]
            if problems:
                if self.rank == 0:
                    _warn(f"{problems[0]}: the checkpoint of step {step} is skipped, an earlier one is tried")
                continue
            if world != self.world:
                mend = f"but this run has {self.world}: launch it with {world}, or start a new run from the weights with --model"
                raise InputError(f"number of processes that saved {folder}", world, mend)
            if self.rank == 0:
                print(f"resuming after step {step}", flush=True)
            return step, _load(folder / "shared.pt"), _load(folder / f"rank-{self.rank}.pt")
        if steps:
            raise InputError(
                "--resume", True, f"but every checkpoint in {self.directory} is damaged: delete them and start again"
            )
        return None

    def _verify(self, folder: Path) -> tuple[int, str | None]:
        """How many processes saved `folder`, and what is wrong with what this rank would read."""
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            world, files = int(manifest["world"]), manifest["files"]
            for name in ("shared.pt", f"rank-{self.rank}.pt") if world == self.world else ("shared.pt",):
                path = folder / name
                with path.open("rb") as file:
                    if os.fstat(file.fileno()).st_size != files[name]["size"]:
                        return world, f"{path} is damaged (its size differs from the manifest)"
                    if hashlib.file_digest(file, "sha256").hexdigest() != files[name]["sha256"]:
                        return world, f"{path} is damaged (its sha256 differs from the manifest)"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return 0, f"{path} cannot be read ({type(error).__name__}: {error})"
        return world, None

    def _publish(self, step: int, temporary: Path, final: Path, files: dict[str, Any]) -> None:
        """Rank 0: manifest, rename, prune."""
        for name, entry in files.items():
            if (temporary / name).stat().st_size != entry["size"]:
                raise OSError(f"{temporary / name} is not as it was written: do all processes share this directory?")
        manifest = {"step": step, "world": self.world, "files": files}
        with (temporary / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(temporary)
        if final.exists():
            _discard(final)
        os.rename(temporary, final)
        _sync_directory(self.directory)
        past = [other for other in self.steps() if other <= step]
        for other in self.steps():
            if other not in past[-self.keep :]:
                with contextlib.suppress(OSError):  # what cannot be removed only takes room
                    _discard(self.directory / f"step-{other:08d}")


def save_model_dir(
    model: nn.Module, tokenizer: Any, path: str | Path, accelerator: Accelerator, *, required: bool = True
) -> bool:
    """Write `model` (a `PreTrainedModel` or `PeftModel`, prepared or not) and `tokenizer` (or None) as a model directory.

    Called on all ranks. Everything is first written and synced in `path/.tmp-model`, then each file takes its place by a rename,
    the config last; weights of an older layout are removed. What else lives in `path` (checkpoints, metrics) stays.

    Args:
        required: False where training is to go on if the disk is full: a warning, and False is returned.
    Raises:
        InputError: the disk is full or cannot be written, on all ranks; the model that was in `path` is untouched.
    """
    path = Path(path)
    state = accelerator.get_state_dict(model)  # a collective where the parameters are sharded
    needed = sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, torch.Tensor))
    failure: tuple[bool, str] | None = None
    if accelerator.is_main_process:
        temporary = path / ".tmp-model"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            bare = accelerator.unwrap_model(model)
            # No stage resizes an embedding, which peft would look for in the base, warning where that is an adapter itself.
            options = {} if bare is unwrap(bare) else {"save_embedding_layers": False}
            with quiet():
                bare.save_pretrained(temporary, state_dict=state, **options)
            bias = getattr(unwrap(bare).config, "score_bias", 0.0)
            if bare is not unwrap(bare) and bias:  # an adapter is saved without the model's config
                (temporary / SCORE_BIAS).write_text(json.dumps(bias), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            _replace_files(temporary, path)
        except Exception as error:  # tokenizers and safetensors report a full disk as errors of their own kinds
            storage = isinstance(error, (OSError, SafetensorError)) or "os error" in str(error)
            failure = (storage, f"{type(error).__name__}: {error}")
            if not storage:
                _agree(failure)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    failure = _agree(failure)
    if failure is None:
        return True
    storage, text = failure
    if not storage:
        raise RuntimeError(f"rank 0 could not save the model in {path}: {text}")
    room = f"it needs {_size(needed)}, {_free(path)} are free; what was there is untouched"
    if not required:
        if accelerator.is_main_process:
            _warn(f"the model could not be written in {path} ({text}): {room}. Training goes on")
        return False
    raise InputError("output_dir", str(path), f"but the model could not be written ({text}): {room}")


def stopped_at(step: int, saved: bool) -> str:
    """What a run that was told to stop says last."""
    return f"stopped at step {step}; --resume true goes on from {'here' if saved else 'the last checkpoint, if there is one'}"


def trained_state(module: nn.Module) -> State:
    """What training changes of `module`: trainable parameters and buffers. A LoRA run does not save its frozen base again."""
    frozen = {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_state(module: nn.Module, state: State) -> None:
    """Put `trained_state` back.

    Raises:
        RuntimeError: names that `module` does not have, or trainable ones that `state` lacks.
    """
    missing, unexpected = module.load_state_dict(state, strict=False)
    lacking = sorted(set(missing) & set(trained_state(module)))
    if unexpected or lacking:
        raise RuntimeError(f"the checkpoint does not fit the model: unknown {unexpected}, missing {lacking}")


def _replace_files(source: Path, target: Path) -> None:
    """Move every file of `source` over its namesake in `target`, configs last, and drop weights that the new model lacks."""
    files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    for file in files:
        with (source / file).open("rb") as handle:
            os.fsync(handle.fileno())
    for file in sorted(files, key=lambda file: file.name in ("config.json", "adapter_config.json")):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
    for pattern in (*_WEIGHTS, *_BESIDE):
        for old in target.glob(pattern):
            if old.relative_to(target) not in files:
                old.unlink()
    _sync_directory(target)


def _write(path: Path, state: State) -> tuple[dict[str, Any], str | None]:
    """Write and sync one file: its size and sha256, and what the storage had against it.

    Raises:
        TypeError: the state holds something that `torch.load(weights_only=True)` would refuse.
    """
    sink = _Sink()
    with contextlib.ExitStack() as stack:
        try:
            sink.file = stack.enter_context(path.open("wb", buffering=0))
        except OSError as error:
            sink.error = error
        torch.save(state, sink)  # type: ignore[arg-type]
        try:
            if sink.file is not None and sink.error is None:
                os.fsync(sink.file.fileno())
        except OSError as error:
            sink.error = error
    if sink.error is None and (foreign := torch.serialization.get_unsafe_globals_in_checkpoint(path)):
        raise TypeError(f"it holds {', '.join(foreign)}: use tensors and plain Python values")
    return {"size": sink.size, "sha256": sink.digest.hexdigest()}, None if sink.error is None else str(sink.error)


class _Sink:
    """Where torch.save writes: hashes, counts, and keeps an OSError to itself.

    An exception inside torch.save comes out as an unrelated RuntimeError; so after the first OSError this only counts, which also
    tells how much room was needed.
    """

    def __init__(self) -> None:
        self.file: RawIOBase | None = None
        self.error: OSError | None = None
        self.size, self.digest = 0, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Take all of `data`, whatever the file does."""
        self.size += len(data)
        rest = memoryview(data).cast("B")
        self.digest.update(rest)
        try:
            while self.file is not None and self.error is None and len(rest):
                rest = rest[self.file.write(rest) :]  # a raw file may take less than it is given
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def _load(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=True)


def _discard(folder: Path) -> None:
    """Remove a directory so that a crash in the midst leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f".tmp-old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _agree(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    return broadcast_object_list([value])[0]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return _size(shutil.disk_usage(path).free)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
