"""Skip, flag, undo and one's own history."""

from __future__ import annotations

import pytest

from annotate.store.projects import Settings
from annotate.store.records import Verdict
from annotate.store.schema import assignment, comparison, judgment
from tests.annotate.world import World, pair, prefer_good, question, ranking, record_export


def counts(world: World) -> list[tuple]:
    return [(row.done, row.leased, row.skips, row.flagged, row.state) for row in world.rows(comparison)]


def test_undo_reopens_the_same_task_in_the_same_order_and_keeps_what_was_said(database):
    world = World(database)
    world.add(pair(1), pair(2))
    me = world.people[0]
    task = world.protocol.claim(me)
    following = world.protocol.submit(task.assignment, me, prefer_good(task, 3)).next
    undone = world.protocol.undo(task.assignment, me)
    assert undone.status == "accepted"
    assert (undone.next.assignment, undone.next.responses, undone.next.revision) == (task.assignment, task.responses, 3)
    assert world.protocol.claim(me).assignment == task.assignment  # a reload shows it, not the one that came after
    redone = world.protocol.submit(task.assignment, me, Verdict(3, "tie"))
    assert redone.next.assignment == following.assignment
    assert [(row.revision, row.kind, row.strength) for row in world.rows(judgment)] == [
        (1, "preference", 3),
        (2, "undo", None),
        (3, "tie", 0),
    ]
    assert counts(world) == [(1, 0, 0, 0, "done"), (0, 1, 0, 0, "open")]


def test_a_retry_of_the_vote_that_was_undone_does_not_bring_it_back(database):
    world = World(database)
    world.add(pair(1))
    me = world.people[0]
    task = world.protocol.claim(me)
    world.protocol.submit(task.assignment, me, prefer_good(task))
    world.protocol.undo(task.assignment, me)
    assert world.protocol.submit(task.assignment, me, prefer_good(task)).status == "duplicate"
    assert [row.state for row in world.rows(assignment)] == ["leased"]


def test_a_repeated_undo_changes_nothing(database):
    world = World(database)
    world.add(pair(1))
    me = world.people[0]
    task = world.protocol.claim(me)
    assert world.protocol.undo(task.assignment, me).status == "refused"  # nothing was said yet
    world.protocol.submit(task.assignment, me, prefer_good(task))
    assert [world.protocol.undo(task.assignment, me).status for _ in range(2)] == ["accepted", "duplicate"]
    assert counts(world) == [(0, 1, 0, 0, "open")]


def test_an_exported_vote_is_taken_back_only_by_an_admins_force_and_that_is_on_record(database):
    world = World(database)
    world.add(pair(1), pair(2))
    me = world.people[0]
    task = world.protocol.claim(me)
    following = world.protocol.submit(task.assignment, me, prefer_good(task)).next
    record_export(database, world.project.id, "hash", world.rows(judgment)[-1].id, by=world.admin)
    world.protocol.submit(following.assignment, me, prefer_good(following))
    assert [past.undoable for past in world.protocol.history(me)] == [True, False]
    assert world.protocol.undo(task.assignment, me).reason == "it was exported"
    assert world.protocol.undo(task.assignment, me, force=True).status == "refused"
    assert world.protocol.undo(task.assignment, world.people[1], force=True).status == "refused"
    assert world.protocol.undo(task.assignment, world.admin).status == "refused"
    forced = world.protocol.undo(task.assignment, world.admin, force=True)
    assert (forced.status, forced.next) == ("accepted", None)
    [event] = world.events("undo")
    assert (event.user_id, event.details["forced"]) == (world.admin, True)
    assert len(world.events("refuse")) == 4


def test_a_skipped_task_goes_to_somebody_else_and_never_back_to_the_same_person(database):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    assert world.protocol.skip(task.assignment, world.people[0], task.revision, "not my subject").next is None
    assert world.protocol.skip(task.assignment, world.people[0], task.revision).status == "duplicate"
    assert question(world.protocol.claim(world.people[1])) == 1
    assert world.protocol.claim(world.people[0]) is None


def test_as_many_skips_as_the_project_says_send_a_comparison_to_adjudication(database):
    world = World(database, Settings(gold_share=0.0, skips_before_adjudication=2))
    world.add(pair(1))
    for person in world.people[:2]:
        task = world.protocol.claim(person)
        world.protocol.skip(task.assignment, person, task.revision)
    assert counts(world) == [(0, 0, 2, 0, "adjudicate")]
    assert world.protocol.claim(world.people[2]) is None


def test_one_flag_sends_a_comparison_to_adjudication_and_undoing_it_brings_it_back(database):
    world = World(database)
    world.add(pair(1))
    me = world.people[0]
    task = world.protocol.claim(me)
    world.protocol.flag(task.assignment, me, task.revision, ["private data"], "a phone number")
    assert counts(world) == [(0, 0, 0, 1, "adjudicate")]
    world.protocol.undo(task.assignment, me)
    assert counts(world) == [(0, 1, 0, 0, "open")]


def test_an_undone_skip_whose_slot_was_taken_leaves_both_votes(database):
    world = World(database)
    world.add(pair(1))
    first, second = world.people[:2]
    skipped = world.protocol.claim(first)
    world.protocol.skip(skipped.assignment, first, skipped.revision)
    other = world.protocol.claim(second)
    reopened = world.protocol.undo(skipped.assignment, first).next
    world.protocol.submit(other.assignment, second, prefer_good(other))
    world.protocol.submit(reopened.assignment, first, prefer_good(reopened))
    assert counts(world) == [(2, 0, 0, 0, "done")]


@pytest.mark.parametrize("first", [3, -1])
def test_history_shows_ones_own_answers_as_they_were_shown_newest_first(database, first):
    world = World(database)
    world.add(pair(1), pair(2), ranking(3))
    me = world.people[0]
    task = world.protocol.claim(me)
    result = world.protocol.submit(task.assignment, me, Verdict(1, "preference", first, justification="so"))
    world.protocol.skip(result.next.assignment, me, 1, "no idea")
    rank = world.protocol.claim(me, "rank")
    world.protocol.submit(rank.assignment, me, Verdict(1, "rank", ranking=[4, 1, 1, 3]))
    ranked, skipped, said = world.protocol.history(me)
    assert (ranked.task.responses, ranked.ranking) == (rank.responses, [3, 1, 1, 2])
    assert (skipped.kind, skipped.justification, skipped.strength) == ("skip", "no idea", None)
    assert (said.task.responses, said.strength, said.justification) == (task.responses, first, "so")
    assert len(world.protocol.history(me, limit=2)) == 2
    assert world.protocol.history(world.people[1]) == []
