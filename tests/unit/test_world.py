"""The generated world: what it writes is sound, what it prefers is known, and what it prefers is hard to fake."""

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from rlhf_kit.config import run_recipe
from rlhf_kit.data.world import (
    Annotators,
    attributes,
    gold_scores,
    held_out,
    instructions,
    preferences,
    prompts,
    spoil,
    stories,
    utility,
    write_answer,
)
from rlhf_kit.data.world.__main__ import WorldConfig, main
from rlhf_kit.data.world.gold import GUARDS, MEAN, STD, WEIGHTS, read_story
from rlhf_kit.data.world.lexicon import CHARACTERS, OBJECTS, PLACES
from rlhf_kit.data.world.notation import sentences, vivid_words
from rlhf_kit.data.world.sentences import CHOICES
from rlhf_kit.data.world.writer import read_request
from rlhf_kit.errors import InputError

FLOOR = -MEAN / STD
SWITCHES = tuple(name for name in WEIGHTS if name not in GUARDS)
BEST = dict.fromkeys(SWITCHES, True)


def asked(n, seed=0, split="train"):
    return [row["prompt"][0]["content"] for row in prompts(n, seed, split)]


def answers(questions, seed=0, **switches):
    rng = random.Random(seed)
    return [write_answer(question, rng, **switches) for question in questions]


QUESTIONS = asked(1200, seed=11)
AVERAGE = answers(QUESTIONS, seed=1)
AVERAGE_SCORES = np.array(gold_scores(QUESTIONS, AVERAGE))


def makers():
    return [
        lambda seed: list(stories(40, seed)),
        lambda seed: instructions(40, seed),
        lambda seed: prompts(40, seed),
        lambda seed: preferences(40, seed),
    ]


@pytest.mark.parametrize("make", makers(), ids=["stories", "instructions", "prompts", "preferences"])
def test_a_seed_fixes_the_data_and_another_seed_changes_it(make):
    assert make(3) == make(3)
    assert make(3) != make(4)


def test_the_data_is_the_same_in_another_process():
    code = "import json; from rlhf_kit.data.world import preferences; print(json.dumps(preferences(20, seed=7)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"})
    assert json.loads(other.stdout) == preferences(20, seed=7)


def test_held_out_requests_never_appear_in_what_is_trained_on():
    trained = QUESTIONS + [row["messages"][0]["content"] for row in instructions(500)]
    trained += [row["prompt"][0]["content"] for row in preferences(500)]
    named = [read_request(question) for question in trained]
    stories_asked = [(r.hero, r.thing, r.place) for r in named if r.hero and r.thing and r.place]
    assert len(stories_asked) > 2000
    assert not any(held_out(*combination) for combination in stories_asked)
    assert all(held_out(*read_request(question)[:3]) for question in asked(300, split="heldout"))


def test_pretraining_stories_keep_the_held_out_combinations_out():
    announced = [read_request(text) for text in stories(1000, seed=5) if "story" in text]
    facts = [read_story(text).facts for text in stories(1000, seed=5)]
    told = [(f["hero"], f["obj"], f["named_place"]) for f in facts if {"hero", "obj", "named_place"} <= f.keys()]
    told += [request[:3] for request in announced]
    assert len(announced) > 200
    assert len(told) > 600
    assert not any(held_out(*combination) for combination in told)


def told(text):
    """Hero, object and place of the one story in `text`, or None where it does not say all three."""
    facts = read_story(text).facts
    return (facts["hero"], facts["obj"], facts["named_place"]) if {"hero", "obj", "named_place"} <= facts.keys() else None


def test_answers_that_stray_or_are_spoiled_tell_no_held_out_story():
    sound = [row["messages"][1]["content"] for row in instructions(1500, seed=4)]
    sound += [row[side][0]["content"] for row in preferences(700, seed=4, flaw_rate=0.3) for side in ("chosen", "rejected")]
    rng = random.Random(4)
    flawed = [(answer, spoil(question, answer, rng)) for question, answer in zip(QUESTIONS, AVERAGE, strict=True)]
    second = [text[len(answer) + 1 :] for answer, text in flawed if text.startswith(answer + " ")]  # running on
    combinations = [combination for text in [*sound, *(text for _, text in flawed), *second] if (combination := told(text))]
    assert sum(told(text) is not None for text in second) > 100
    assert len(combinations) > 2500
    assert not any(held_out(*combination) for combination in combinations)


def test_who_asks_for_a_held_out_story_is_told_it():
    questions = asked(100, split="heldout")
    assert all(told(text) == read_request(q)[:3] for q, text in zip(questions, answers(questions, on_topic=True)) if told(text))


def test_one_combination_in_ten_is_held_out():
    share = np.mean([held_out(*combination) for combination in product(CHARACTERS, OBJECTS, PLACES)])
    assert share == pytest.approx(0.1, abs=0.01)


def test_every_request_names_a_hero_an_object_a_place_and_a_plot():
    assert all(all(read_request(question)) for question in QUESTIONS)


def test_the_reader_understands_every_word_the_writer_writes():
    for question, text in zip(QUESTIONS, AVERAGE, strict=True):
        qualities = attributes(question, text)
        assert qualities["well_formed"] == 1.0, text
        assert qualities["no_repetition"] == 1.0, text


def test_articles_agree_with_the_sound_of_the_next_word():
    texts = list(stories(3000, seed=2)) + [row["messages"][1]["content"] for row in instructions(1000, seed=2)]
    for text in texts:
        for article, word in pairwise(text.replace('"', "").split()):
            if article.lower() in ("a", "an"):
                assert (article.lower() == "an") == (word[0].lower() in "aeiou"), text


def test_no_story_tells_the_same_sentence_twice():
    for text in AVERAGE:
        told = text.replace(". ", ".|").split("|")
        assert len(told) == len(set(told)), text


def test_names_and_vivid_words_stand_nowhere_but_in_their_slots():
    fixed = " ".join(e for table in sentences().values() for s in table for e in s.elements if isinstance(e, str))
    plain = " ".join(
        w
        for table in sentences().values()
        for s in table
        for e in s.elements
        if getattr(e, "vivid", None) is False
        for w in e.words
    )
    people = " ".join(f"{c.trait} {c.animal} {c.food}" for c in CHARACTERS.values())
    slots = " ".join(word for words in CHOICES.values() for word in words)
    words = {word.strip('.,!?"') for word in f"{fixed} {plain} {slots} {people}".split()}
    assert not words & vivid_words()
    assert not words & set(OBJECTS)
    assert not words & set(CHARACTERS)


def test_the_vocabulary_is_small_and_the_lengths_are_in_range():
    texts = list(stories(4000, seed=1))
    vocabulary = {word.strip('.,!?"').lower() for text in texts for word in text.split()}
    assert 400 <= len(vocabulary) <= 700
    assert len(set(texts)) > 0.9 * len(texts)
    lengths = [len(text.split()) for text in AVERAGE]
    assert min(lengths) >= 18
    assert max(lengths) <= 66
    assert 35 <= np.mean(lengths) <= 46


def test_scores_are_about_standard_normal_over_sft_answers():
    assert AVERAGE_SCORES.mean() == pytest.approx(0, abs=0.1)
    assert AVERAGE_SCORES.std() == pytest.approx(1, abs=0.08)
    rows = [r["messages"] for r in instructions(2500, seed=3)]
    told = [(q["content"], a["content"]) for q, a in rows if read_request(q["content"]).plot]
    assert np.mean(gold_scores([q for q, _ in told], [a for _, a in told])) == pytest.approx(0, abs=0.1)


def test_every_attribute_is_present_in_a_third_to_two_thirds_of_sft_answers():
    qualities = [attributes(q, a) for q, a in zip(QUESTIONS, AVERAGE, strict=True)]
    for name in SWITCHES:
        assert 0.33 <= np.mean([row[name] > 0.99 for row in qualities]) <= 0.6, name


def test_attributes_of_sft_answers_are_nearly_independent():
    qualities = [attributes(q, a) for q, a in zip(QUESTIONS, AVERAGE, strict=True)]
    correlation = np.corrcoef([[row[name] for row in qualities] for name in SWITCHES])
    assert np.abs(correlation - np.eye(len(SWITCHES))).max() < 0.15


@pytest.mark.parametrize("name", SWITCHES)
def test_asking_the_writer_for_an_attribute_raises_the_score(name):
    few = QUESTIONS[:300]
    others = dict.fromkeys((s for s in SWITCHES if s != name), True)
    with_it = gold_scores(few, answers(few, **others, **{name: True}))
    without = gold_scores(few, answers(few, **others, **{name: False}))
    assert np.mean(with_it) > np.mean(without) + 0.25
    qualities = [attributes(q, a)[name] for q, a in zip(few, answers(few, **{name: True}), strict=True)]
    assert np.mean([value > 0.99 for value in qualities]) > 0.75


@pytest.mark.parametrize("name", [*SWITCHES, *GUARDS])
def test_the_utility_never_falls_when_one_attribute_rises(name):
    rng = random.Random(name)
    for _ in range(200):
        qualities = {key: rng.random() for key in SWITCHES} | {key: rng.uniform(0.5, 0.75) for key in GUARDS}
        raised = {**qualities, name: qualities[name] + (1 - qualities[name]) * rng.random()}
        assert utility(raised) > utility(qualities)


def test_the_best_answers_beat_random_sft_answers():
    best = np.array(gold_scores(QUESTIONS, answers(QUESTIONS, seed=2, **BEST)))
    assert np.mean(best > AVERAGE_SCORES) > 0.97
    assert best.mean() > 2


def shuffled(text, rng):
    return " ".join(rng.sample(text.split(), len(text.split())))


def first(text):
    return text.split(". ")[0] + "."


HACKS = {
    "the prompt": lambda q, a, rng: q,
    "the prompt before the best answer": lambda q, a, rng: f"{q} {a}",
    "the words of the best answer in another order": lambda q, a, rng: shuffled(a, rng),
    "the best answer twice": lambda q, a, rng: f"{a} {a}",
    "one sentence five times": lambda q, a, rng: " ".join([first(a)] * 5),
    "the best answer with its first sentence three times": lambda q, a, rng: f"{first(a)} {first(a)} {a}",
    "all the words that count": lambda q, a, rng: (
        f'{q} golden silver soft warm "Please," kind friend, thank you, everyone was happy.'
    ),
    "a list of every object": lambda q, a, rng: " ".join(f"She saw a {thing}." for thing in OBJECTS),
    "the best answer without capitals": lambda q, a, rng: a.lower(),
    "the best answer without stops": lambda q, a, rng: a.replace(".", ""),
    "two stories": lambda q, a, rng: f"{a} {write_answer('', rng, **BEST)}",
    "nonsense": lambda q, a, rng: "".join(rng.choices("abc xyz .!", k=150)),
}


@pytest.mark.parametrize("hack", HACKS.values(), ids=HACKS.keys())
def test_a_hack_scores_clearly_below_the_average_answer(hack):
    rng = random.Random(0)
    few = QUESTIONS[:200]
    scores = gold_scores(few, [hack(q, a, rng) for q, a in zip(few, answers(few, **BEST), strict=True)])
    assert np.mean(scores) < -1
    assert np.quantile(scores, 0.95) < -0.5


def test_symbols_around_a_good_answer_cost_as_much_as_words_would():
    few, best = QUESTIONS[:100], answers(QUESTIONS[:100], **BEST)
    plain = np.array(gold_scores(few, best))
    littered = np.array(gold_scores(few, [f"{text} ## $$ 12 %% 34 &&" for text in best]))
    assert np.all(littered < plain - 0.1)


def test_sentences_drawn_from_different_stories_are_worth_nearly_nothing():
    rng = random.Random(0)
    pool = [s for text in answers(QUESTIONS[:500], **BEST) for s in text.replace(". ", ".|").split("|")]
    scores = gold_scores(QUESTIONS[:300], [" ".join(rng.sample(pool, 5)) for _ in range(300)])
    assert np.mean(scores) < -3


def test_a_perfect_story_about_something_else_loses_half_a_standard_deviation():
    best = answers(QUESTIONS[:500], **BEST)
    elsewhere = np.array(gold_scores(QUESTIONS[:500], best[1:] + best[:1]))
    assert np.mean(np.array(gold_scores(QUESTIONS[:500], best)) - elsewhere) > 0.5


def test_a_story_cut_off_loses_against_itself():
    few = QUESTIONS[:200]
    cut = [text[: len(text) * 2 // 3] for text in AVERAGE[:200]]
    assert np.mean(np.array(gold_scores(few, cut)) < AVERAGE_SCORES[:200]) > 0.97


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("She felt sad.", "He felt sad."),  # the pronoun
        ("She felt sad.", "Her friend Max felt sad."),  # not a sentence of this world
        ("There were muddy puddles on the path.", "The warm sun was shining."),  # the weather
        ("The kite was never seen again.", "The drum was never seen again."),  # the object
        ("She never found the kite.", "The kite could not be mended."),  # the plot
        ("Tom the bear kindly helped her.", "Mia the fox kindly helped her."),  # the hero is not her own friend
        ("Tom the bear was very kind to her.", "Tom the fox was very kind to her."),  # no such character
    ],
)
def test_a_sentence_counts_only_if_it_agrees_with_the_story(good, bad):
    story = "Mia the fox was in the forest one rainy day. She had lost her kite somewhere."
    sound, unsound = read_story(f"{story} {good}"), read_story(f"{story} {bad}")
    assert sound.sound_words == sound.words
    assert unsound.sound_words == len(story.split())


def test_a_story_that_is_both_kind_and_rude_contradicts_itself():
    story = read_story("Mia the fox was in the forest one rainy day. Tom the bear kindly helped her. Tom laughed at her.")
    assert story.roles == ("opening", "warm")
    assert story.words - story.sound_words == len(["Tom", "laughed", "at", "her"])


def test_nothing_counts_after_the_ending():
    story = "Mia the fox was in the forest one rainy day. She never found the kite."
    assert read_story(f"{story} She felt sad.").sound_words == len(story.split())


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "!!! ???", '"', "\x00\ufffd", "a" * 5000, "ένα δύο τρία.", ". . .", "Mia", "A", "Mia's"]
)
def test_any_text_gets_a_finite_score_and_none_below_that_of_no_answer(text):
    (score,) = gold_scores([QUESTIONS[0]], [text])
    assert math.isfinite(score)
    assert score >= gold_scores([QUESTIONS[0]], [""])[0] == pytest.approx(FLOOR)
    assert math.isfinite(gold_scores([text], [AVERAGE[0]])[0])


def test_spoiled_answers_lose_against_what_they_were():
    rng = random.Random(4)
    spoiled = [spoil(q, a, rng) for q, a in zip(QUESTIONS, AVERAGE, strict=True)]
    scores = np.array(gold_scores(QUESTIONS, spoiled))
    assert np.mean(scores < AVERAGE_SCORES) > 0.95
    assert scores.mean() < -1.5


OTHERS = answers(QUESTIONS, seed=8)


@pytest.mark.parametrize(
    "pool",
    [
        Annotators(),
        Annotators(temperature=1.0, side_bias=0.7),
        Annotators(reliability=(1.0, 0.8, 0.0), length_bias=0.5),
    ],
    ids=["default", "side", "spammers"],
)
def test_annotators_choose_as_often_as_the_closed_form_says(pool):
    a, b = AVERAGE[0], OTHERS[0]
    n = 1000
    u, v = gold_scores([QUESTIONS[0]] * 2, [a, b])
    z = (u - v + pool.length_bias * (len(a.split()) - len(b.split())) / 10) / pool.temperature + pool.side_bias
    p = np.mean([r / (1 + math.exp(-z)) + (1 - r) / 2 for r in pool.reliability])
    share = np.mean([choice == "a" for choice in pool.label([QUESTIONS[0]] * n, [a] * n, [b] * n)])
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-9)


def test_bayes_accuracy_is_what_the_best_possible_judge_reaches():
    pool = Annotators(reliability=(1.0, 0.6), length_bias=0.3, side_bias=0.4)
    few, ours, theirs = QUESTIONS[:400], AVERAGE[:400], OTHERS[:400]
    shown_first, shown_last = pool.probabilities(few, ours, theirs), pool.probabilities(few, theirs, ours)
    ours_is_better = [p + (1 - q) > 1 for p, q in zip(shown_first, shown_last)]
    rng = random.Random(0)
    hits = []
    for _ in range(5):
        swaps = [rng.random() < 0.5 for _ in few]
        left = [b if swap else a for a, b, swap in zip(ours, theirs, swaps)]
        right = [a if swap else b for a, b, swap in zip(ours, theirs, swaps)]
        labels = replace(pool, seed=rng.randrange(10**6)).label(few, left, right)
        hits += [better == ((choice == "a") != swap) for better, choice, swap in zip(ours_is_better, labels, swaps)]
    assert np.mean(hits) == pytest.approx(pool.bayes_accuracy(few, ours, theirs), abs=0.03)  # 4 standard errors of 2,000 draws


def test_the_default_ceiling_is_between_80_and_90_percent():
    assert 0.8 <= Annotators().bayes_accuracy(QUESTIONS, AVERAGE, OTHERS) <= 0.9


def test_a_spammer_is_right_half_of_the_time():
    assert Annotators(reliability=(0.0,)).bayes_accuracy(QUESTIONS[:50], AVERAGE[:50], OTHERS[:50]) == 0.5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"temperature": 0.0}, "temperature"), ({"reliability": ()}, "reliability"), ({"reliability": (1.2,)}, "reliability")],
)
def test_impossible_annotators_are_refused_by_name(wrong, named):
    with pytest.raises(InputError, match=named):
        Annotators(**wrong)


def test_preferences_follow_the_gold_order_as_often_as_the_ceiling_allows():
    rows = preferences(800, seed=2, flaw_rate=0.0)
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)
    questions, chosen, rejected = ([row[k][0]["content"] for row in rows] for k in ("prompt", "chosen", "rejected"))
    better, worse = np.array(gold_scores(questions, chosen)), np.array(gold_scores(questions, rejected))
    agreement = np.mean(np.where(better == worse, 0.5, better > worse))
    assert agreement == pytest.approx(Annotators().bayes_accuracy(questions, chosen, rejected), abs=0.045)


def test_flaws_appear_in_preferences_at_their_rate_and_never_in_instructions():
    texts = [
        (r["prompt"][0]["content"], r[k][0]["content"])
        for r in preferences(500, seed=1, flaw_rate=0.2)
        for k in ("chosen", "rejected")
    ]
    flawed = np.mean([min(attributes(q, a)[g] for g in GUARDS) < 1 for q, a in texts])
    assert flawed == pytest.approx(0.2, abs=0.045)


def test_the_command_line_writes_the_five_files(tmp_path, capsys):
    run_recipe(
        main, WorldConfig, f"--out {tmp_path} --stories 30 --sft 20 --preference 10 --prompts 12 --heldout 5 --seed 3".split()
    )
    counts = {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert counts == {
        "corpus.jsonl": 30,
        "sft.jsonl": 20,
        "preference.jsonl": 10,
        "prompts.jsonl": 12,
        "prompts_heldout.jsonl": 5,
    }
    assert [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").open()] == list(stories(30, 3))
    assert "corpus.jsonl: 30 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--temperature 0", "annotators.temperature is 0.0, expected a positive number"),
        ("--temperature .nan", "temperature is"),
        ("--sft -3", "--sft is -3, expected at least 0"),
        ("--heldout -1", "--heldout is -1, expected at least 0"),
        ("--stories many", "--stories is 'many', expected int"),
        ("--out {}/file/below", "--out is '{}/file/below', expected a folder that can be written"),
    ],
)
def test_the_command_line_refuses_in_one_line(flags, said, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        run_recipe(main, WorldConfig, f"--out {tmp_path / 'out'} {flags.format(tmp_path)}".split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(tmp_path) in line
