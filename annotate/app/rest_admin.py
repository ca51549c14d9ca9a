"""Files in and out, for admins: the guard lets nobody else reach `/api/admin`.

    POST /api/admin/import?project=NAME&name=pairs.jsonl&preferences=pairs|gold&skip_bad=true, the file as the body
        -> {"added", "duplicates", "twins", "bad", "errors"}
    GET /api/admin/export?project=NAME, and the fields of `ExportSettings` as they are called there -> a .zip

Both work in a temporary folder of their own, which is gone when the answer is.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from annotate.app.guard import IMPORT, REST
from annotate.export_rows import ExportSettings
from annotate.exporting import export_project
from annotate.importing import Preferences, import_file
from annotate.store.database import Database
from annotate.store.projects import get_project
from rlhf_kit.data.files import ROW_SUFFIXES
from rlhf_kit.errors import InputError

EXPORT = f"{REST}/admin/export"
NAME = re.compile(r"[\w\-. ()+]{1,200}")
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that the format can say, so that the same export is the same bytes
BOOLEANS = {"true": True, "false": False}


def admin_rest_routes(database: Database) -> APIRouter:
    """`/api/admin/import` and `/api/admin/export`; who asks is in `request.state.user`."""
    router = APIRouter()

    @router.post(IMPORT)
    async def import_(request: Request) -> Response:
        query, by = request.query_params, request.state.user.id
        try:
            name, options = _name(query.get("name", "")), _import_options(query)
            project = await to_thread.run_sync(get_project, database, query.get("project", ""))
        except InputError as error:
            return _wrong(str(error))
        with tempfile.TemporaryDirectory(prefix="annotate-import-") as made:
            folder = Path(made)
            file = folder / name
            with file.open("wb") as opened:
                async for chunk in request.stream():
                    await to_thread.run_sync(opened.write, chunk)
            try:
                report = await to_thread.run_sync(lambda: import_file(database, project.id, file, **options, by=by))
            except InputError as error:
                return _wrong(_without_folder(str(error), folder))
        return JSONResponse(asdict(report) | {"errors": [_without_folder(each, folder) for each in report.errors]})

    @router.get(EXPORT)
    async def export(request: Request) -> Response:
        # A link from another site would carry the cookie, and what is exported can no longer be undone.
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return JSONResponse({"error": "the request comes from another site"}, 403)
        query, by = dict(request.query_params), request.state.user.id
        folder = Path(tempfile.mkdtemp(prefix="annotate-export-"))
        try:
            file = await to_thread.run_sync(lambda: _exported(database, query, folder, by))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, InputError):
                return _wrong(_without_folder(str(error), folder))
            raise
        return _Passing(file, filename=file.name, media_type="application/zip", headers={"cache-control": "no-store"})

    return router


class _Passing(FileResponse):
    """A file whose folder goes with it, however the sending ends."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            shutil.rmtree(Path(self.path).parent, ignore_errors=True)


def _exported(database: Database, query: dict[str, str], folder: Path, by: int) -> Path:
    project = get_project(database, query.pop("project", ""))
    export_project(database, project, folder / "export", export_settings(query), by=by)
    words = re.sub(r"[^\w-]+", "-", project.name).strip("-") or "export"
    return zip_folder(folder / "export", folder / f"{words[:80]}.zip")


def zip_folder(folder: Path, output: Path) -> Path:
    """All files of a folder in one .zip; the same files give the same bytes."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), ZIP_DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    return output


def export_settings(query: Mapping[str, str]) -> ExportSettings:
    """The settings that a query names; the rest are the defaults.

    Raises:
        InputError: a name or a value that no setting has.
    """
    kinds = get_type_hints(ExportSettings)
    known = [each.name for each in fields(ExportSettings)]
    for name in query:
        if name not in known:
            raise InputError(name, query[name], f"which is no setting: expected any of {', '.join(known)}")
    return ExportSettings(**{name: _read(name, said, kinds[name]) for name, said in query.items()})


def _read(name: str, said: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return _one_of(name, said, get_args(kind))
    if kind is bool:
        return BOOLEANS[_one_of(name, said, tuple(BOOLEANS))]
    if kind in (int, float):
        try:
            value = kind(said)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(name, said, f"expected a {'whole ' if kind is int else ''}number")
        return value
    return tuple(each.strip() for each in said.split(",") if each.strip())


def _import_options(query: Mapping[str, str]) -> dict[str, Any]:
    return {
        "preferences": _one_of("preferences", query.get("preferences", "pairs"), get_args(Preferences)),
        "skip_bad": BOOLEANS[_one_of("skip_bad", query.get("skip_bad", "false"), tuple(BOOLEANS))],
    }


def _one_of(name: str, said: str, options: tuple[str, ...]) -> str:
    if said not in options:
        raise InputError(name, said, f"expected {' or '.join(options)}")
    return said


def _name(said: str) -> str:
    """The file's name, which decides how it is read and stands in error messages; never a path."""
    if not NAME.fullmatch(said) or said.startswith("."):
        raise InputError("name", said, "expected a file's name of letters, digits, spaces and . - _ ( ) +")
    if not said.endswith(ROW_SUFFIXES):
        raise InputError("name", said, f"expected a file that ends in {', '.join(ROW_SUFFIXES)}")
    return said


def _without_folder(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "").replace(str(folder), "")


def _wrong(message: str) -> Response:
    return JSONResponse({"error": message}, 400)
