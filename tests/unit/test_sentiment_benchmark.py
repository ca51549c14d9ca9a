"""Sentiment control beside TRL, in miniature: that both sides start alike and do the same amount of work."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.sentiment import ours, theirs
from benchmarks.sentiment.__main__ import SentimentConfig, main, turns
from benchmarks.sentiment.measure import Point, first_reaching
from benchmarks.sentiment.report import differences, reached
from benchmarks.sentiment.settings import PPOSettings, Start
from benchmarks.sentiment.stages import refuse_others
from benchmarks.sentiment.texts import beginnings, passages, read_reviews, repeated
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification

WORDS = {"pos": ("fine", "bright", "moving", "funny"), "neg": ("dull", "poor", "long", "loud")}
COMMON = ("the", "film", "is", "a", "and", "plot", "with", "actors", "who", "speak", "of", "it")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Reviews and sentences of few words, and books of the same."""
    draw = random.Random(0)

    def line(label: str) -> str:
        return " ".join(draw.choice(COMMON + WORDS[label]) for _ in range(12))

    labels = ("pos", "neg")
    reviews = [
        {"text": "\n".join(line(labels[i % 2]) for _ in range(12)), "label": labels[i % 2], "fold": i // 2 % 10}
        for i in range(20)
    ]
    write(tmp_path / "movie_reviews_v2.jsonl", reviews)
    write(
        tmp_path / "sentence_polarity.jsonl",
        [{"text": line(labels[i // 10 % 2]), "label": labels[i // 10 % 2]} for i in range(40)],
    )
    write(tmp_path / "books_train.jsonl", [{"text": " ".join(line(draw.choice(labels)) for _ in range(40))} for _ in range(4)])
    return tmp_path


def config(data: Path, **changes: Any) -> SentimentConfig:
    """Everything at its smallest."""
    small: dict[str, Any] = {
        "data": data, "work": data / "work", "rollouts": 2, "batch_size": 8, "prompt_tokens": 4, "answer_tokens": 6,
        "num_epochs": 2, "num_minibatches": 2, "eval_prompts": 8, "evaluate_every": 1, "pretrain_steps": 2, "vocab_size": 300,
        "reference_steps": 2, "classifier_epochs": 1.0, "seeds": 1, "json": data / "figures.json", "picture": data / "curves.svg",
    }  # fmt: skip
    return SentimentConfig(**small | changes)


def test_both_sides_start_alike_and_do_the_same_work(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(config(data))
    (run,) = json.loads((data / "figures.json").read_text())["runs"]
    for side in ("ours", "theirs", "theirs_usual"):
        assert (run[side]["episodes"], run[side]["optimizer_steps"]) == (16, 2 * 2 * 2), side
        assert [p["rollout"] for p in run[side]["points"]] == [0, 1, 2]
        assert [p["episodes"] for p in run[side]["points"]] == [0, 8, 16]
        walls = [p["wall"] for p in run[side]["points"]]
        assert 0 == walls[0] < walls[1] < walls[2]
    first, other, usual = (run[side]["points"] for side in ("ours", "theirs", "theirs_usual"))
    assert first[0] == other[0] == usual[0]
    assert first[0]["kl"] == 0
    assert [p["reward"] for p in other] != [p["reward"] for p in usual]  # another lambda
    assert first[1]["reward"] != first[0]["reward"]  # somebody learned something
    assert other[1]["reward"] != first[0]["reward"]
    assert ElementTree.parse(data / "curves.svg").getroot().tag.endswith("svg")
    printed = capsys.readouterr().out
    assert "seed 0, TRL 1.12: 16 episodes, 8 optimizer steps" in printed

    before = {path: path.stat().st_mtime_ns for path in (data / "work").glob("*/model.safetensors")}
    assert len(before) == 4  # pretrain, reference, reward, judge
    capsys.readouterr()
    main(config(data, rollouts=1, sides=("ours",)))
    assert "TRL" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}  # finished stages are not repeated
    with pytest.raises(InputError, match=r"--work .* reference_steps is 2 and not 3"):
        main(config(data, reference_steps=3))


def start(folder: Path, tokenizer: Any, settings: PPOSettings) -> Start:
    """A random policy and a random reward."""
    shape = {"vocab_size": len(tokenizer), "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 32, "init_std": 0.3}
    for seed, (name, cls, more) in enumerate(
        (("lm", GPTForCausalLM, {}), ("rm", GPTForSequenceClassification, {"num_labels": 1}))
    ):
        torch.manual_seed(seed)
        cls(GPTConfig(**shape, **more)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return Start(folder / "lm", folder / "rm", torch.arange(settings.rollouts * settings.batch_size * 3).view(-1, 3) % 250 + 3)


class Prompted:
    """A watch that only counts."""

    def begin(self, policy: Any) -> None:
        self.optimizer_steps = self.episodes = 0

    def after_rollout(self, done: int, policy: Any) -> None:
        """Nothing to see."""

    def end(self, *, episodes: int, optimizer_steps: int) -> None:
        self.episodes, self.optimizer_steps = episodes, optimizer_steps


@pytest.mark.parametrize("num_minibatches", [1, 4])
def test_both_sides_ask_the_same_prompts_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_minibatches: int
) -> None:
    from trl.experimental.ppo import ppo_trainer

    from rlhf_kit.rollout import experience

    settings = PPOSettings(
        rollouts=3, batch_size=4, prompt_tokens=3, answer_tokens=4, num_epochs=1, num_minibatches=num_minibatches
    )
    begun = start(tmp_path, train_tokenizer(["some words for a tokenizer"] * 9, 300), settings)
    asked: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    generate, batch_generation = experience.generate, ppo_trainer.batch_generation
    monkeypatch.setattr(
        experience,
        "generate",
        lambda policy, ids, *rest, **more: (asked["ours"].append(ids), generate(policy, ids, *rest, **more))[1],
    )
    monkeypatch.setattr(
        ppo_trainer,
        "batch_generation",
        lambda policy, ids, *rest: (asked["theirs"].append(ids), batch_generation(policy, ids, *rest))[1],
    )
    for side in (ours, theirs):
        watch: Any = Prompted()
        side.train(begun, settings, watch)
        assert (watch.episodes, watch.optimizer_steps) == (12, 3 * num_minibatches), side.__name__
    assert torch.equal(torch.cat(asked["ours"]), torch.cat(asked["theirs"]))
    assert torch.equal(torch.cat(asked["ours"]), begun.prompts)


def test_a_second_run_reads_the_stages_settings_and_never_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    refuse_others(file, {"reference_steps": 2})
    before = file.stat()
    refuse_others(file, {"reference_steps": 2})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # another run may be reading
    assert [path.name for path in tmp_path.iterdir()] == ["stages.json"]


def test_reviews_are_cut_into_passages_and_no_fold_is_read_twice(data: Path) -> None:
    assert list(passages("a " * 120 + "\nshort rest")) == [("a " * 120).strip()]
    assert list(passages("\n".join(["x" * 150] * 5))) == ["x" * 150 + " " + "x" * 150] * 2
    texts = read_reviews(data)
    assert Counter(t.fold for t in texts if t.sentence) == {fold: 4 for fold in range(10)}
    assert {t.positive for t in texts if t.fold == 9} == {True, False}


def test_beginnings_are_of_one_length_and_none_comes_twice(data: Path) -> None:
    tokenizer = train_tokenizer([t.text for t in read_reviews(data)], 300)
    found = beginnings(read_reviews(data), tokenizer, 3, seed=0)
    assert found.shape[1] == 3
    assert (found[:, 0] == tokenizer.bos_token_id).all()
    assert len(found.unique(dim=0)) == len(found)
    assert torch.equal(repeated(found, 2 * len(found)), torch.cat([found, found]))


def point(episodes: int, reward: float, wall: float, kl: float = 0.0) -> Point:
    return Point(0, episodes, wall, wall, reward, 0.5, kl, 1.0, 1.0)


def test_the_speedup_is_their_whole_time_over_ours_until_their_final_reward() -> None:
    mine = [point(0, 0, 0), point(8, 1.9, 10), point(16, 2.1, 20, kl=3), point(24, 2.5, 30)]
    other = [point(0, 0, 0), point(8, 2.2, 40), point(16, 1, 60), point(24, 2, 90)]
    assert first_reaching(mine, 2.0) is mine[2]
    row = reached({"ours": [mine], "theirs": [other]}, "theirs")["mean"]
    assert (row["speedup"], row["ours_kl"], row["trl_first_wall"], row["speedup_at_equal_work"]) == (4.5, 3, 40, 3)
    never = reached({"ours": [mine], "theirs": [[*other[:3], point(24, 9, 90)]]}, "theirs", first_seed=3)["3"]
    assert never["ours_wall"] is None
    assert never["speedup"] is None


def test_the_sides_are_compared_seed_by_seed() -> None:
    mine = [[point(0, 0, 0), point(8, reward, 1, kl)] for reward, kl in ((1.0, 4.0), (3.0, 6.0))]
    other = [[point(0, 0, 0), point(8, reward, 1, kl)] for reward, kl in ((0.5, 4.5), (1.5, 6.5))]
    found = differences({"ours": mine, "theirs": other}, "theirs")
    assert found["reward"] == {"mean": 1.0, "standard_error": pytest.approx(0.5)}
    assert found["kl"] == {"mean": -0.5, "standard_error": 0.0}
    assert differences({"ours": mine[:1], "theirs": other[:1]}, "theirs")["kl"] == {"mean": -0.5, "standard_error": None}
    assert [turns(["a", "b", "c"], seed)[0] for seed in range(4)] == ["a", "b", "c", "a"]
    assert sorted(turns(["a", "b", "c"], 1)) == ["a", "b", "c"]


def test_what_the_sides_cannot_do_alike_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match="--num_minibatches is 3, expected a divisor"):
        main(config(data, num_minibatches=3))
    for sides in (("ours", "trl"), ()):
        with pytest.raises(InputError, match=r"--sides is .* expected some of ours, theirs, theirs_usual"):
            main(config(data, sides=sides))
    with pytest.raises(InputError, match=r"expected movie_reviews_v2\.jsonl"):
        main(config(data / "elsewhere"))
