"""What an adjudicator sees and decides."""

from __future__ import annotations

import pytest

from annotate.store.adjudication import (
    Decision,
    count_cases,
    decide,
    list_cases,
    list_disagreements,
    load_case,
    models_of,
    send_to_adjudication,
)
from annotate.store.records import Verdict
from annotate.store.schema import adjudication, comparison, judgment
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good, question, ranking


@pytest.fixture
def flagged(database) -> World:
    world = World(database)
    world.add(pair(1), pair(2, overlap=2), ranking(3))
    task = world.protocol.claim(world.people[0])
    world.protocol.flag(task.assignment, world.people[0], task.revision, ["unsafe"], "look at this")
    return world


def key(world: World, number: int = 0) -> int:
    return world.rows(comparison)[number].id


def test_a_case_shows_the_answers_in_canonical_order_and_what_each_person_said(flagged):
    [case] = list_cases(flagged.database, flagged.project.id)
    assert (case.kind, case.responses) == ("pair", ["good 1", "bad 1"])
    [said] = case.said
    assert (said.user, said.kind, said.flags, said.justification) == ("person 0", "flag", ["unsafe"], "look at this")


def test_a_decision_settles_a_comparison_for_good_and_is_on_record(flagged):
    decide(flagged.database, key(flagged), Decision("preference", 2, reason="clear"), by=flagged.admin)
    assert list_cases(flagged.database, flagged.project.id) == []
    assert flagged.rows(comparison)[0].state == "decided"
    assert question(flagged.protocol.claim(flagged.people[1])) == 2
    [row] = flagged.rows(adjudication)
    assert (row.decision, row.strength, row.reason, row.user_id) == ("preference", 2, "clear", flagged.admin)
    decide(flagged.database, key(flagged), Decision("discard"), by=flagged.admin)
    assert [row.decision for row in flagged.rows(adjudication)] == ["preference", "discard"]
    assert [event.user_id for event in flagged.events("decide")] == [flagged.admin] * 2


def test_a_reopened_comparison_is_served_again_with_its_skips_and_flags_forgotten(flagged):
    decide(flagged.database, key(flagged), Decision("reopen"), by=flagged.admin)
    row = flagged.rows(comparison)[0]
    assert (row.state, row.flagged, row.skips) == ("open", 0, 0)
    assert question(flagged.protocol.claim(flagged.people[1])) == 1


def test_a_flag_undone_after_reopening_breaks_no_count(flagged):
    decide(flagged.database, key(flagged), Decision("reopen"), by=flagged.admin)
    past = flagged.protocol.history(flagged.people[0])[0]
    assert flagged.protocol.undo(past.task.assignment, flagged.people[0]).status == "accepted"
    assert (flagged.rows(comparison)[0].flagged, flagged.rows(comparison)[0].leased) == (0, 1)


def test_a_decided_comparison_can_be_reopened(flagged):
    decide(flagged.database, key(flagged), Decision("tie"), by=flagged.admin)
    decide(flagged.database, key(flagged), Decision("reopen"), by=flagged.admin)
    assert question(flagged.protocol.claim(flagged.people[1])) == 1


def test_a_vote_that_an_adjudicator_has_decided_on_is_not_taken_back(flagged):
    past = flagged.protocol.history(flagged.people[0])[0]
    decide(flagged.database, key(flagged), Decision("both_bad"), by=flagged.admin)
    assert flagged.protocol.undo(past.task.assignment, flagged.people[0]).reason == "an adjudicator has decided it"
    assert not flagged.protocol.history(flagged.people[0])[0].undoable


def test_a_vote_that_arrives_after_the_decision_is_kept_and_changes_no_decision(flagged):
    task = flagged.protocol.claim(flagged.people[1])
    send_to_adjudication(flagged.database, key(flagged, 1), by=flagged.admin, reason="odd")
    decide(flagged.database, key(flagged, 1), Decision("tie"), by=flagged.admin)
    assert flagged.protocol.submit(task.assignment, flagged.people[1], prefer_good(task)).status == "accepted"
    assert flagged.rows(comparison)[1].state == "decided"
    assert [row.kind for row in flagged.rows(judgment)] == ["flag", "preference"]


def test_what_an_admin_sent_stays_with_the_adjudicators_when_a_late_vote_arrives(flagged):
    task = flagged.protocol.claim(flagged.people[1])
    send_to_adjudication(flagged.database, key(flagged, 1), by=flagged.admin, reason="odd")
    flagged.protocol.submit(task.assignment, flagged.people[1], prefer_good(task))
    assert [case.comparison for case in list_cases(flagged.database, flagged.project.id)] == [key(flagged), key(flagged, 1)]


@pytest.mark.parametrize(
    ("number", "decision", "field"),
    [
        (0, Decision("rank", ranking=[1, 2]), "decision.kind"),
        (0, Decision("preference", 4), "decision.strength"),
        (0, Decision("tie", 1), "decision.strength"),
        (0, Decision("tie", ranking=[1, 2]), "decision.ranking"),
        (2, Decision("rank", ranking=[1, 2]), "decision.ranking"),
        (2, Decision("preference", 1), "decision.kind"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused_by_name(flagged, number, decision, field):
    with pytest.raises(InputError) as error:
        decide(flagged.database, key(flagged, number), decision, by=flagged.admin)
    assert error.value.field == field
    assert flagged.rows(adjudication) == []


def test_only_an_admin_decides(flagged):
    for move in (
        lambda: decide(flagged.database, key(flagged), Decision("tie"), by=flagged.people[0]),
        lambda: send_to_adjudication(flagged.database, key(flagged), by=flagged.people[0], reason=""),
    ):
        with pytest.raises(InputError, match="active admin"):
            move()


def test_a_ranking_is_decided_by_a_ranking(flagged):
    decide(flagged.database, key(flagged, 2), Decision("rank", ranking=[4, 1, 1, 3]), by=flagged.admin)
    assert flagged.rows(adjudication)[0].ranking == [3, 1, 1, 2]


def test_only_pairs_on_which_votes_that_stand_contradict_each_other_are_disagreements(database):
    world = World(database)
    world.add(pair(1, overlap=2), pair(2, overlap=2), pair(3, overlap=2))
    said = {1: (2, -1), 2: (2, 1), 3: (1, 0)}  # strengths for the good answer, of the first and the second person
    for number in said:
        for person, strength in zip(world.people, said[number]):
            task = world.protocol.claim(person)
            assert question(task) == number
            verdict = prefer_good(task, strength) if strength else Verdict(task.revision, "tie")
            world.protocol.submit(task.assignment, person, verdict)
    [case] = list_disagreements(database, world.project.id)
    assert (case.comparison, case.state, [each.strength for each in case.said]) == (key(world), "done", [2, -1])
    assert (case, count_cases(database, world.project.id)) == (load_case(database, world.project.id, key(world)), 0)
    past = world.protocol.history(world.people[1], limit=10)[-1]
    world.protocol.undo(past.task.assignment, world.people[1])
    assert list_disagreements(database, world.project.id) == []
    with pytest.raises(InputError, match="comparison"):
        load_case(database, world.project.id + 1, key(world))
    assert models_of(database, key(world)) == ["secret-a", "secret-b"]


def test_cases_are_counted(flagged):
    assert count_cases(flagged.database, flagged.project.id) == 1
