"""The command line: one config a command, filled as the recipes' are.

python -m annotate serve --admin ada
python -m annotate import --project stories --file runs/tiny/pairs.jsonl
python -m annotate export --project stories --output exports/1
python -m annotate users add --name grace
python -m annotate users list | disable | enable | reset
python -m annotate stats --project stories --json true
python -m annotate simulate --project stories --people 5 --labels 200

Each says more with --help. The database is --database URL, else $ANNOTATE_DATABASE, else a file in your data folder.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from annotate.store.database import Database, open_database
from annotate.store.projects import Project, Settings, create_project, get_project, list_projects
from annotate.store.users import User, create_user, list_users, set_active, set_password
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.errors import InputError

DATABASE = "ANNOTATE_DATABASE"


def default_database() -> str:
    """The database where none is named: $ANNOTATE_DATABASE, else `annotate.db` in the user's data folder.

    Never the working directory: a folder that is served, shared or committed is no place for votes and password hashes.
    """
    if given := os.environ.get(DATABASE):
        return given
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return f"sqlite:///{Path(data) / 'rlhf_kit' / 'annotate.db'}"


@dataclass
class DatabaseConfig:
    """Where the votes are."""

    database: str = ""  # sqlite:////folder/votes.db or postgresql://...; empty: $ANNOTATE_DATABASE, else in your data folder

    def __post_init__(self) -> None:
        self.database = self.database or default_database()

    @contextmanager
    def open(self) -> Iterator[Database]:
        """The database, made where it is missing, and named on stderr."""
        if self.database == default_database() and self.database.startswith("sqlite:///"):
            Path(self.database.removeprefix("sqlite:///")).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = open_database(self.database)
        print(f"database: {database.shown_url}", file=sys.stderr)
        try:
            yield database
        finally:
            database.close()


@dataclass
class ServeConfig(DatabaseConfig):
    """Serve the app."""

    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines in: put a server with TLS before it
    port: int = 7860
    https: bool = (
        False  # a server with TLS stands before this one: cookies travel by it alone, and its X-Forwarded-For is believed
    )
    public_host: tuple[str, ...] = ()  # names by which people reach it, beside this machine's own; 0.0.0.0 and none: any
    admin: str | None = None  # an admin, made with a password that is printed once; None: `admin`, where there is none yet
    project: str | None = None  # made where it is missing; None: `default`, where there is none yet
    demo: bool = False  # fill the project, where it is empty, with the embedded world's comparisons
    models: tuple[str, ...] = ()  # two checkpoints (or one, twice) to chat with and compare
    max_new_tokens: int = 256  # of their answers
    temperature: float = 0.7  # of their answers


@dataclass
class ImportConfig(DatabaseConfig):
    """Add comparisons to a project."""

    project: str = "default"  # made where it is missing
    file: str | None = None  # .jsonl, also .gz, .xz, .bz2, or .parquet, or a folder of those
    demo: bool = False  # comparisons from the embedded world, instead of a file
    demo_pairs: int = 200
    demo_rankings: int = 20
    preferences: Literal["pairs", "gold"] = "pairs"  # rows of chosen and rejected: to be judged, or gold items
    labelled: str | None = None  # the file has its people's labels: `records`, or a published form (pandalm_3annotators, ...)
    skip_bad: bool = False  # leave bad rows out and count them, instead of storing nothing
    choose: int | None = None  # so many of the file's comparisons, those that teach a reward model most; None: all
    uncertainty: Literal["disagreement", "entropy"] = "disagreement"  # of the rows' member_scores, by which is chosen
    uniform_share: float = 0.2  # of a chosen comparison's chance, the same for all
    gold_share: float = 0.05  # of the chosen ones, where the file has gold items
    overlap: int = 1  # people a comparison, in a project that is made now
    guidelines: Path | None = None  # markdown, of a project that is made now
    seed: int = 0  # of the demo, and of what is chosen


@dataclass
class ExportConfig(DatabaseConfig):
    """Write what people said as training data."""

    project: str = "default"
    output: Path = Path("export")  # a new folder
    prompt: Literal["explicit", "implicit"] = "explicit"  # a column of its own, or at the beginning of chosen and rejected
    style: Literal["conversational", "plain"] = "conversational"
    format: Literal["jsonl", "parquet", "datasets"] = "jsonl"
    aggregate: Literal["mean", "majority"] = "mean"  # how several votes on a pair become one
    margin: bool = True  # how much better the chosen answer is, as a column
    test_fraction: float = 0.1  # of the prompts
    without: tuple[str, ...] = ()  # people whose votes are left out
    late: bool = True  # keep votes that came after their lease had run out
    flagged: bool = True  # keep votes with marks beside them
    gold: bool = False  # keep gold items
    min_votes: int = 1  # of a comparison that no adjudicator decided


@dataclass
class AddUserConfig(DatabaseConfig):
    """Add a person; the password is drawn and printed once, or read from stdin."""

    name: str = ""
    role: Literal["annotator", "admin"] = "annotator"
    stdin: bool = False  # read the password from stdin


@dataclass
class UserConfig(DatabaseConfig):
    """Change a person."""

    name: str = ""


@dataclass
class ResetConfig(UserConfig):
    """Give a person another password, drawn and printed once, or read from stdin; their sessions end."""

    stdin: bool = False  # read the password from stdin


@dataclass
class ListUsersConfig(DatabaseConfig):
    """Everybody, by name."""

    json: bool = False


@dataclass
class StatsConfig(DatabaseConfig):
    """Progress, agreement and people."""

    project: str | None = None  # None: all
    json: bool = False


@dataclass
class SimulateConfig(DatabaseConfig):
    """Let simulated people answer, by the embedded world's gold score."""

    project: str = "default"
    people: int = 5
    labels: int = 200  # between them
    temperature: float = 0.5  # noise, in the gold score's units
    side_bias: float = 0.0  # log-odds in favour of the answer shown first
    length_bias: float = 0.0  # gold score that ten more words seem to be worth
    careless: float = 0.0  # share of tasks that are answered without reading
    bad_below: float = -2.0  # gold score below which both answers are bad
    seed: int = 0


def serve(config: ServeConfig) -> None:
    """Start the app; it runs until it is stopped."""
    importlib.import_module("annotate.app.server").main(config)


def import_(config: ImportConfig) -> None:
    """Import, and say what became of the rows."""
    check_least(config, demo_pairs=0, demo_rankings=0, overlap=1)
    if config.demo == (config.file is not None):
        raise InputError("--file", config.file, "expected a file, or --demo true, and not both")
    if config.labelled is not None and config.demo:
        raise InputError("--labelled", config.labelled, "expected a file with labels: the demo has none")
    if config.choose is not None and (config.demo or config.labelled is not None):
        raise InputError("--choose", config.choose, "expected a file of comparisons to be judged: leave --demo or --labelled out")
    with config.open() as database:
        project = ensure_project(database, config)
        words = _import_labelled(database, project, config) if config.labelled else _import_rows(database, project, config)
    print(f"{project.name}: {words}")


def _import_rows(database: Database, project: Project, config: ImportConfig) -> str:
    from annotate.demo import demo_comparisons
    from annotate.importing import Report, add_all, import_file

    if config.file is None:
        found = demo_comparisons(config.demo_pairs, config.demo_rankings, seed=config.seed)
        report = add_all(database, project.id, found, Report())
    elif config.choose is not None:
        from annotate.choosing import import_chosen

        names = ("uncertainty", "uniform_share", "gold_share", "preferences", "skip_bad", "seed")
        options = {name: getattr(config, name) for name in names}
        report = import_chosen(database, project.id, config.file, config.choose, **options)
    else:
        report = import_file(database, project.id, config.file, preferences=config.preferences, skip_bad=config.skip_bad)
    for error in report.errors:
        print(f"skipped: {error}", file=sys.stderr)
    return (
        f"{report.added} comparisons added, {report.duplicates} were there, {report.twins} left out because two answers are "
        f"equal, {report.bad} bad rows left out"
    )


def _import_labelled(database: Database, project: Project, config: ImportConfig) -> str:
    from annotate.imports.human import READERS
    from annotate.labelled import import_labelled
    from rlhf_kit.data.files import iter_rows

    readers = {"records": iter, **READERS}
    if config.labelled not in readers:
        raise InputError("--labelled", config.labelled, f"expected one of {', '.join(readers)}")
    records = readers[config.labelled](row for _, row in iter_rows(config.file or ""))
    report = import_labelled(database, project.id, records)
    return (
        f"{report.comparisons} comparisons and {report.labels} labels added, {report.duplicates} labels were there, "
        f"{report.twins} pairs left out because their answers are equal"
    )


def ensure_project(database: Database, config: ImportConfig) -> Project:
    """The project that the config names, made with the config's settings where it is missing."""
    if any(each.name == config.project for each in list_projects(database)):
        return get_project(database, config.project)
    from annotate.demo import GUIDELINES

    guidelines = GUIDELINES if config.demo else ""
    if config.guidelines is not None:
        try:
            guidelines = config.guidelines.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("--guidelines", str(config.guidelines), f"expected a readable text file ({error})") from error
    return create_project(database, config.project, Settings(guidelines=guidelines, overlap=config.overlap))


def export(config: ExportConfig) -> None:
    """Export, and say what is in it."""
    from annotate.export_rows import ExportSettings
    from annotate.exporting import export_project

    settings = ExportSettings(**{field.name: getattr(config, field.name) for field in fields(ExportSettings)})
    with config.open() as database:
        manifest = export_project(database, get_project(database, config.project), config.output, settings)
    rows = ", ".join(f"{count} {name}" for name, count in manifest["rows"].items())
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items()) or "nothing"
    print(f"{config.output}: {rows}; left out: {left_out}")


def add_user(config: AddUserConfig) -> None:
    """Add a person."""
    password = _password(config.stdin)
    with config.open() as database:
        create_user(database, config.name, password, config.role)
    _tell(config.name, password, config.stdin)


def list_people(config: ListUsersConfig) -> None:
    """Print everybody."""
    with config.open() as database:
        people = [asdict(person) for person in list_users(database)]
    if config.json:
        print(json.dumps(people, ensure_ascii=False, indent=2))
    else:
        for person in people:
            print(f"{person['name']}\t{person['role']}\t{'active' if person['active'] else 'disabled'}")


def disable(config: UserConfig) -> None:
    """Let a person in no more."""
    with config.open() as database:
        set_active(database, _user(database, config.name).id, False)


def enable(config: UserConfig) -> None:
    """Let a person in again."""
    with config.open() as database:
        set_active(database, _user(database, config.name).id, True)


def reset(config: ResetConfig) -> None:
    """Give a person another password."""
    password = _password(config.stdin)
    with config.open() as database:
        set_password(database, _user(database, config.name).id, password)
    _tell(config.name, password, config.stdin)


def stats(config: StatsConfig) -> None:
    """Print how projects stand."""
    from annotate.stats import project_stats, stats_text

    with config.open() as database:
        projects = list_projects(database) if config.project is None else [get_project(database, config.project)]
        found = [project_stats(database, project) for project in projects]
    print(json.dumps(found, ensure_ascii=False, indent=2) if config.json else "\n".join(map(stats_text, found)))


def simulate(config: SimulateConfig) -> None:
    """Simulate, and say what was answered."""
    from annotate.simulate import Habits, simulate, simulated_people

    check_least(config, people=1, labels=1)
    names = ("temperature", "side_bias", "length_bias", "careless", "bad_below")
    habits = Habits(**{name: getattr(config, name) for name in names})
    with config.open() as database:
        people = simulated_people(database, config.project, config.people, habits=habits, seed=config.seed)
        counts = simulate(people, config.labels)
    print(f"{sum(counts.values())} answers: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items())) or 'none'}")


def _user(database: Database, name: str) -> User:
    found = [person for person in list_users(database) if person.name == name]
    if not found:
        raise InputError("--name", name, "which is nobody's name: see `python -m annotate users list`")
    return found[0]


def _password(from_stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else secrets.token_urlsafe(12)


def _tell(name: str, password: str, from_stdin: bool) -> None:
    print(f"{name}: the password is set" if from_stdin else f"{name}: the password is {password} (shown this once)")


COMMANDS: dict[str, tuple[Callable[[Any], object], type]] = {
    "serve": (serve, ServeConfig),
    "import": (import_, ImportConfig),
    "export": (export, ExportConfig),
    "users list": (list_people, ListUsersConfig),
    "users add": (add_user, AddUserConfig),
    "users disable": (disable, UserConfig),
    "users enable": (enable, UserConfig),
    "users reset": (reset, ResetConfig),
    "stats": (stats, StatsConfig),
    "simulate": (simulate, SimulateConfig),
}


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv` (without the program's name; `sys.argv[1:]` where None) begins with.

    Wrong input is one line and status 2, as of the recipes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    size = 2 if words[:1] == ["users"] else 1
    name = " ".join(words[:size])
    if name in COMMANDS:
        main, config = COMMANDS[name]
        run_recipe(main, config, words[size:], description=config.__doc__)
    elif {"-h", "--help"} & set(words):
        print(__doc__)
    else:
        error = InputError("command", name, f"expected one of {', '.join(COMMANDS)}: see `python -m annotate --help`")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
