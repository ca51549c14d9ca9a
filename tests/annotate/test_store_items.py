"""Imports: once each, by name where wrong, and safe to repeat. Projects and progress."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from annotate.store import items
from annotate.store.audit import events
from annotate.store.items import Added, add_comparisons, add_live
from annotate.store.progress import people_progress, project_progress
from annotate.store.projects import Settings, change_project, create_project, get_project, list_projects
from annotate.store.records import NewComparison, NewResponse, Verdict
from annotate.store.schema import assignment, candidate, comparison, item, judgment, response
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good, question, ranking, record_export

MESSAGES = [{"role": "user", "content": "hello"}]


def test_an_import_repeated_adds_nothing_and_neither_do_the_same_answers_the_other_way_round(database):
    world = World(database)
    assert add_comparisons(database, world.project.id, [pair(1), pair(2), pair(1)]) == Added(2, 1)
    turned = dataclasses.replace(pair(2), responses=list(reversed(pair(2).responses)))
    assert add_comparisons(database, world.project.id, [pair(1), turned, pair(3)]) == Added(1, 2)
    assert [len(world.rows(table)) for table in (item, response, comparison, candidate)] == [3, 6, 3, 6]


def test_two_comparisons_of_one_conversation_share_its_item_and_their_common_answer(database):
    world = World(database)
    first, second, third = (NewResponse(text) for text in "abc")
    world.add(NewComparison(MESSAGES, [first, second]), NewComparison(MESSAGES, [first, third]))
    assert [len(world.rows(table)) for table in (item, response, comparison)] == [1, 3, 2]


def test_the_same_text_from_two_models_is_two_answers(database):
    world = World(database)
    world.add(NewComparison(MESSAGES, [NewResponse("a", model="x"), NewResponse("b")]))
    world.add(NewComparison(MESSAGES, [NewResponse("a", model="y"), NewResponse("b")]))
    assert [len(world.rows(table)) for table in (item, response, comparison)] == [1, 3, 2]


def test_everything_about_a_comparison_is_stored(database):
    world = World(database, Settings(overlap=2))
    answers = [NewResponse("a", "model", "step 5", {"temperature": 0.7}, rm_score=1.25), NewResponse("b\nü∑🙂")]
    world.add(NewComparison(MESSAGES, answers, overlap=3, priority=2.0, propensity=0.25, sampled_by="uncertainty"))
    [row] = world.rows(comparison)
    assert (row.kind, row.source, row.overlap, row.place, row.propensity, row.sampled_by) == (
        "pair",
        "queue",
        3,
        -2.0,
        0.25,
        "uncertainty",
    )
    first, second = world.rows(response)
    assert (first.model, first.checkpoint, first.sampling, first.rm_score) == ("model", "step 5", {"temperature": 0.7}, 1.25)
    assert (second.text, second.rm_score) == ("b\nü∑🙂", None)
    assert [row.position for row in world.rows(candidate)] == [0, 1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"responses": [NewResponse("one")]}, "responses"),
        ({"responses": [NewResponse("one"), NewResponse("one", model="other")]}, "responses"),
        ({"responses": [NewResponse(str(number)) for number in range(10)]}, "responses"),
        ({"responses": [NewResponse("a\0"), NewResponse("b")]}, "response"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages, role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages, content"),
        ({"responses": [NewResponse("one", model="\0"), NewResponse("two")]}, "response"),
        ({"responses": [NewResponse("one", rm_score=float("inf")), NewResponse("two")]}, "rm_score"),
        ({"overlap": 0}, "overlap"),
        ({"priority": float("nan")}, "priority"),
        ({"propensity": 0.0}, "propensity"),
        ({"gold_strength": 4}, "gold_strength"),
        ({"gold_ranking": [1, 2]}, "gold_ranking"),
    ],
)
def test_a_record_that_makes_no_comparison_is_named_by_its_number_and_its_chunk_is_not_added(database, change, field):
    world = World(database)
    with pytest.raises(InputError) as error:
        world.add(pair(1), dataclasses.replace(pair(2), **change))
    assert error.value.field == f"record 2, {field}"
    assert world.rows(comparison) == []


@pytest.mark.parametrize("value", [float("nan"), b"bytes"])
def test_sampling_parameters_that_are_no_json_are_named(database, value):
    world = World(database)
    with pytest.raises(InputError, match=r"record 1 .*plain JSON"):
        world.add(NewComparison(MESSAGES, [NewResponse("a", sampling={"temperature": value}), NewResponse("b")]))


def test_an_import_cut_short_goes_on_where_it_stopped(database, monkeypatch):
    world = World(database)
    monkeypatch.setattr(items, "CHUNK", 4)

    def cut_short():
        yield from (pair(number) for number in range(10))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_comparisons(database, world.project.id, cut_short())
    assert len(world.rows(comparison)) == 8
    assert add_comparisons(database, world.project.id, (pair(number) for number in range(12))) == Added(4, 8)


def test_imports_at_once_of_the_same_records_in_different_orders_add_each_once(database):
    world = World(database)
    records = [pair(number) for number in range(40)]
    counts = []
    orders = (records, records[::-1], records[20:] + records[:20])
    threads = [
        threading.Thread(target=lambda order=order: counts.append(add_comparisons(database, world.project.id, order).added))
        for order in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(counts), sum(counts)) == (3, 40)
    assert [len(world.rows(table)) for table in (item, response, comparison, candidate)] == [40, 80, 40, 80]


def test_a_live_comparison_goes_to_its_chatter_alone(database):
    world = World(database)
    key = add_live(database, world.project.id, pair(1), by=world.people[0])
    assert world.protocol.claim(world.people[1]) is None
    task = world.protocol.serve(key, world.people[0])
    assert world.protocol.claim(world.people[0]) is None  # the chat's page holds it, the queue's does not
    with pytest.raises(InputError, match="nobody has been given"):
        world.protocol.serve(key, world.people[1])
    assert world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).status == "accepted"
    assert [row.strength for row in world.rows(judgment)] == [2]
    with pytest.raises(InputError, match="exists already"):
        add_live(database, world.project.id, pair(1), by=world.people[0])


def test_projects_are_found_by_name_and_new_guidelines_raise_their_version(database):
    world = World(database)
    world.add(pair(1), pair(2))
    task = world.protocol.claim(world.people[0])
    changed = Settings(guidelines="be kind", aspects=["tone"], gold_share=0.0)
    assert change_project(database, world.project.id, changed, by=world.admin).guidelines_version == 2
    assert change_project(database, world.project.id, changed).guidelines_version == 2
    assert get_project(database, "project").settings == dataclasses.replace(changed, aspects=["tone"])
    result = world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    world.protocol.submit(result.next.assignment, world.people[0], Verdict(1, "tie", aspects={"tone": 1}))
    assert [row.guidelines_version for row in world.rows(judgment)] == [1, 2]  # what was shown, not what is valid now
    with pytest.raises(InputError, match="exists already"):
        create_project(database, "project")
    with pytest.raises(InputError, match=r"expected one of .'project'"):
        get_project(database, "other")
    assert [each.name for each in list_projects(database)] == ["project"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 4},
        {"overlap": 0},
        {"lease_seconds": 0},
        {"skips_before_adjudication": 0},
        {"gold_share": 0.9},
        {"aspects": ["a", "a"]},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"project.{next(iter(wrong))}"):
        Settings(**wrong)


def test_progress_counts_slots_votes_and_people_and_foresees_the_end(database, clock):
    world = World(database, Settings(overlap=2, gold_share=0.0, lease_seconds=60.0))
    world.add(*(pair(number) for number in range(5)), ranking(9))
    assert project_progress(database, world.project.id).eta_seconds is None
    first, second = world.people[:2]
    for person, votes in ((first, 4), (second, 2)):
        task = world.protocol.claim(person)
        for _ in range(votes):
            clock.time += 30
            task = world.protocol.submit(task.assignment, person, prefer_good(task)).next
    clock.time += 100
    world.protocol.submit(task.assignment, second, prefer_good(task))
    task = world.protocol.claim(second)
    world.protocol.skip(task.assignment, second, task.revision)
    found = project_progress(database, world.project.id)
    assert (found.open, found.done, found.slots, found.slots_done, found.votes, found.late) == (3, 3, 12, 7, 7, 1)
    assert found.leased == sum(row.state == "leased" for row in world.rows(assignment))
    assert found.eta_seconds == pytest.approx(5 / 7 * 250, rel=1e-12)  # seven votes since the first, 250 seconds ago
    people = people_progress(database, world.project.id)
    assert [(each.name, each.votes, each.skips, each.late) for each in people] == [("person 0", 4, 0, 0), ("person 1", 3, 1, 1)]
    clock.time += 3601
    assert project_progress(database, world.project.id).eta_seconds is None


def test_a_vote_taken_back_is_no_progress(database):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    world.protocol.undo(task.assignment, world.people[0])
    found = project_progress(database, world.project.id)
    assert (found.slots_done, found.votes, found.leased) == (0, 0, 1)
    assert question(world.protocol.claim(world.people[0])) == 1


def test_every_deed_in_a_project_is_on_record_in_its_order(database):
    world = World(database)
    me = world.people[0]
    world.add(pair(1), pair(2))
    task = world.protocol.claim(me)
    following = world.protocol.submit(task.assignment, me, prefer_good(task)).next
    world.protocol.undo(task.assignment, me)
    world.protocol.skip(following.assignment, me, following.revision)
    record_export(database, world.project.id, "hash", 3, by=world.admin)
    trail = [event.action for event in reversed(events(database, project=world.project.id))]
    assert trail == ["create_project", "import", "lease", "submit", "lease", "undo", "skip", "export"]
    newest = events(database, limit=2)
    assert [event.action for event in newest] == ["export", "skip"]
    assert events(database, limit=1, before=newest[-1].id)[0].action == "undo"
