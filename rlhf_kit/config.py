"""Dataclass -> YAML -> command line. A recipe's config is one flat dataclass; this file fills it and refuses what does not fit.

Precedence: defaults in the dataclass < `--config file.yaml` < the command line. Everything is strict: an unknown name, a wrong
type, a key given twice and a missing file are each an `InputError` that names the place and the mend. Two deviations from plain
PyYAML: numbers and booleans are read as YAML 1.2 has them, so `learning_rate: 3e-4` is a number and `mixed_precision: no` a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from rlhf_kit.errors import InputError

C = TypeVar("C")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_FLAG = re.compile(r"--([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)


def parse_config(cls: type[C], argv: Sequence[str] | None = None, description: str | None = None) -> C:
    """Fill the dataclass `cls` from its defaults, then from `--config FILE`, then from the other flags.

    Args:
        cls: a flat dataclass of int, float, str, bool, Path, Literal, `X | None`, and lists or tuples of those.
        argv: the command line without the program's name; `sys.argv[1:]` where None. `--learning_rate` and `--learning-rate` are
            the same flag; a bool is `--flag`, `--no-flag` or `--flag true`; a list is `--betas 0.9 0.95`.
        description: opens the `--help` page; the docstring of the module that defines `cls` where None.
    Raises:
        InputError: a name nobody knows, a value of the wrong type, a required field that is missing, a file that cannot be read.
            What the dataclass itself raises in `__post_init__` passes through.
        SystemExit: status 0, after `--help`.
    """
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in _defaults(cls)}
    rest, given, path = _flags(list(sys.argv[1:] if argv is None else argv), hints)
    values = _defaults(cls) | (read_yaml(path, hints) if path else {})
    # tyro fills a blank twin without __post_init__: it would swallow what that raises, and half-filled values must not reach it.
    copied = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    twin = type(cls.__name__, (cls,), {"__post_init__": lambda self: None, **copied})
    blank: Any = object.__new__(twin)
    for name, value in values.items():
        object.__setattr__(blank, name, value)
    about = description or sys.modules[cls.__module__].__doc__ or ""
    about += "\n\nEvery field can also stand in a YAML file given with --config FILE; the command line wins over the file."
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(twin, args=rest, default=blank, use_underscores=True, description=about)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _translate(complaint.getvalue(), given, hints) from None
    return cls(**{name: getattr(parsed, name) for name in hints})


def save_config(config: Any, path: str | Path) -> None:
    """Write the dataclass `config` as YAML that `--config` reads back to an equal one. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = plain_settings(config)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        yaml.dump(values, file, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def plain_settings(config: Any) -> dict[str, Any]:
    """The fields of the dataclass `config` as numbers, words and lists, for YAML and for trackers."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def check_least(config: Any, **least: float) -> None:
    """Raise InputError for the first field of `config` below what is given for it, infinite or NaN; None passes.

    Raises:
        InputError: naming the flag, its value and the bound.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not bound <= value < math.inf:
            raise InputError(
                f"--{name}", value, f"expected {'a finite number of ' if value == math.inf else ''}at least {bound:g}"
            )


def run_recipe(
    main: Callable[[C], object], cls: type[C], argv: Sequence[str] | None = None, description: str | None = None
) -> None:
    """Parse the command line into `cls`, call `main` with it; wrong input is one line and status 2, Ctrl-C status 130.

    Under a launcher the line comes from rank 0, and from the other ranks only once they are joined in a process group: before
    that every rank makes the same complaint, after it one rank may be alone with it. A full disk and a place that cannot be
    written are wrong input, too. Any other exception keeps its traceback.
    """
    try:
        try:
            main(parse_config(cls, argv, description))
        except OSError as error:
            raise (_storage_error(error) or error) from error
    except InputError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or _process_group():
            print(f"error: {error}" if rank == 0 else f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if str(stop) and os.environ.get("RANK", "0") == "0":  # a loop that saved and left says how to go on
            print(stop, file=sys.stderr, flush=True)
        sys.exit(130)
    finally:
        # gloo's threads that still run when the interpreter ends abort the process, one time in three.
        if group := _process_group():
            group.destroy_process_group()


def _process_group() -> Any | None:
    """`torch.distributed` where this process has joined a group. Torch is not imported for it: some do without."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def _storage_error(error: OSError) -> InputError | None:
    """A full disk or a path that may not be written, which is the user's to mend; None for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "and was left as it was where possible: free some space, or choose another --output_dir"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        mend = "expected a place that can be written: choose another --output_dir, or change its permissions"
    else:
        return None
    return InputError(f"{error.filename or 'a file'}", error.strerror, mend)


def read_yaml(path: str | Path, hints: dict[str, Any]) -> dict[str, Any]:
    """The mapping in a YAML file, each value checked against `hints` (name -> type) and converted to it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "--config", str(path), f"expected a readable YAML file ({getattr(error, 'strerror', None) or error})"
        ) from None
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError("--config", str(path), f"expected valid YAML: {' '.join(str(error).split())}") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise InputError(f"{path}", found, "expected a mapping, one `field: value` a line")
    values = {}
    for key, value in found.items():
        if key not in hints:
            raise InputError(f"{path}: {key}", value, f"but there is no such field: {_nearest(str(key), hints)}")
        try:
            values[key] = _convert(hints[key], value)
        except ValueError:
            raise InputError(f"{path}: {key}", value, f"expected {_describe(hints[key])}") from None
    return values


def _defaults(cls: type) -> dict[str, Any]:
    """Name -> default of every field that the constructor takes, tyro.MISSING where there is none."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        elif field.init:
            defaults[field.name] = tyro.MISSING if field.default is dataclasses.MISSING else field.default
    return defaults


def _flags(argv: list[str], hints: dict[str, Any]) -> tuple[list[str], dict[str, list[str]], str | None]:
    """Check every flag's name and spell values as tyro wants them: the new argv, what each flag was given, and `--config`."""
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    path: str | None = None
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        match = _FLAG.fullmatch(token)
        if match is None:
            if token not in ("-h", "--help"):
                raise InputError("command line", token, "expected a flag: --field value")
            rest.append(token)
            continue
        values = [] if match[2] is None else [match[2]]
        while match[2] is None and position < len(argv) and not _FLAG.fullmatch(argv[position]) and argv[position] != "-h":
            values.append(argv[position])
            position += 1
        name = match[1].replace("-", "_")
        if name == "help":
            rest.append("--help")
        elif name == "config":
            if path is not None or len(values) != 1:
                raise InputError("--config", " ".join(values), "expected exactly one YAML file")
            path = values[0]
        elif name.startswith("no_") and hints.get(name[3:]) is bool and name not in hints:
            if values:
                raise InputError(f"--{name}", " ".join(values), f"expected nothing after it, or --{name[3:]} true|false")
            rest.append(f"--{name}")
        elif name not in hints:
            raise InputError(f"--{name}", " ".join(values), f"but there is no such flag: {_nearest(name, hints, '--')}")
        elif hints[name] is bool:
            if len(values) > 1 or (values and values[0].lower() not in _BOOLEANS):
                raise InputError(f"--{name}", " ".join(values), "expected true or false")
            rest.append(f"--{name}" if not values or _BOOLEANS[values[0].lower()] else f"--no_{name}")
        elif len(values) != _count(hints[name], len(values)):
            raise InputError(f"--{name}", " ".join(values), f"expected {_describe(hints[name])}")
        else:
            given[name] = values
            rest += [f"--{name}", *(_spelled(hints[name], value) for value in values)]
    return rest, given, path


def _count(hint: Any, given: int) -> int:
    """How many words a field takes on the command line, where `given` came; a list takes any number."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((given for option in options if _count(option, given) == given), 1)
    if origin in (list, tuple):
        return given if origin is list or Ellipsis in options else len(options)
    return 1


def _spelled(hint: Any, value: str) -> str:
    """tyro wants `None`, `True` and `False` exactly so in an optional field."""
    options = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else ()
    if type(None) in options and value.lower() in ("none", "null"):
        return "None"
    return str(_BOOLEANS[value.lower()]) if bool in options and value.lower() in _BOOLEANS else value


def _translate(complaint: str, given: dict[str, list[str]], hints: dict[str, Any]) -> InputError:
    """tyro's boxed complaint as one line. Only the flag's name is taken from it, so that its wording may change."""
    for name in re.findall(r"--(\w+)", complaint):
        if name in given:
            return InputError(f"--{name}", " ".join(given[name]), f"expected {_describe(hints[name])}")
        if name in hints:
            return InputError(
                f"--{name}",
                None,
                f"expected {_describe(hints[name])}: it is required, pass --{name} or put it in the --config file",
            )
    return InputError("command line", " ".join(complaint.split()), "see --help")


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`. Raises ValueError where it does not fit, TypeError where no config may have such a field."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            with contextlib.suppress(ValueError):
                return _convert(option, value)
        raise ValueError
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise ValueError
        if origin is tuple and Ellipsis not in options:
            if len(options) != len(value):
                raise ValueError
            return tuple(_convert(option, item) for option, item in zip(options, value))
        return origin(_convert(options[0], item) for item in value)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise ValueError
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (int, float, str, bool, Path, type(None)):
        if type(value) is not hint:
            raise ValueError
        return value
    raise TypeError(f"a config field of type {hint} is not supported")


def _describe(hint: Any) -> str:
    """A type as the user knows it."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin in (list, tuple):
        count = "" if origin is list or Ellipsis in options else f"{len(options)} "
        return f"a list of {count}{_describe(options[0])}"
    return {Path: "a path", bool: "true or false", type(None): "null"}.get(hint) or hint.__name__


def _nearest(name: str, known: dict[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(prefix + k for k in known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a word that YAML 1.1 or 1.2 would read as something else."""


_NUMBER = r"([-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+.0123456789"))
