"""An undo that has begun before an export ends before it: no vote is both taken back and handed over."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import insert, select

from annotate.exporting import export_project
from annotate.store.schema import assignment, export, judgment
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good


def test_an_export_waits_for_an_undo_that_has_begun(database, tmp_path):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    (held,) = world.rows(assignment)
    caught: list[InputError] = []

    def run() -> None:
        with pytest.raises(InputError, match="nobody has voted") as error:
            export_project(database, world.project, tmp_path / "out")
        caught.append(error.value)

    thread = threading.Thread(target=run)
    with database.write() as connection:  # what an undo does: first it looks whether the vote was exported
        assert connection.execute(select(export)).all() == []
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        whose = {"assignment_id": held.id, "project_id": world.project.id, "user_id": held.user_id, "revision": 2}
        said = {"kind": "undo", "justification": "", "guidelines_version": 1, "late": False, "created": 0.0}
        connection.execute(insert(judgment).values(**whose, **said))
    thread.join(30)
    assert len(caught) == 1
    assert not (tmp_path / "out").exists()
