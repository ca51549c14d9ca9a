"""A process reward model as a reward: read where steps end, as one score or paid step by step, and runs with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.ppo import PPOConfig, main
from rlhf_kit.batches import Rollout
from rlhf_kit.data.stepwise import StepEnds
from rlhf_kit.data.tokenizer import encode_chat, encode_prompt, encode_texts, train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification, GPTForTokenClassification
from rlhf_kit.objectives.kl import shape_rewards
from rlhf_kit.rollout.judges import judged, load_scorer
from rlhf_kit.rollout.scoring import pad, step_scorer
from rlhf_kit.training import online as module
from rlhf_kit.training.metrics import read_metrics

ROWS = [{"prompt": [{"role": "user", "content": text}]} for text in ("What is 3 + 4 - 2?", "Why?", "And 1 + 1?")]
ANSWERS = ("3 + 4 = 7\n7 - 2 = 5", "no step at all", "1 + 1 = 2\n\n2 it is\nso we are done")
ENDED = (True, True, False)  # the last one was cut off
HOW = ("min", "product", "last", "sum")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([row["prompt"][0]["content"] + answer for row, answer in zip(ROWS, ANSWERS)] * 5, 300)


def process_model(vocab_size: int) -> GPTForTokenClassification:
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=vocab_size, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, num_labels=2, init_std=0.3)
    return GPTForTokenClassification(shape).eval()


def rollout_of(tokenizer: Any) -> Rollout:
    answers = [
        [*encode_texts(tokenizer, [answer])[0], *([tokenizer.eos_token_id] if ended else [])]
        for answer, ended in zip(ANSWERS, ENDED)
    ]
    queries = [encode_prompt(tokenizer, row["prompt"]) for row in ROWS]
    ids, mask = pad(answers)
    return Rollout(
        *pad(queries, side="left"), ids, mask, ended=torch.tensor(ENDED), group_ids=torch.arange(3), sampler_logprobs=ids * 0.0
    )


@torch.no_grad()
def believed(model: Any, tokenizer: Any, rollout: Rollout) -> list[list[tuple[int, float]]]:
    """Of each answer, alone and without padding: `(slot, P(correct))` of every step."""
    found = []
    for i, row in enumerate(ROWS):
        query, answer = encode_prompt(tokenizer, row["prompt"]), rollout.response_ids[i][rollout.response_mask[i]].tolist()
        logits = model(input_ids=torch.tensor([query + answer])).logits[0]
        chances = logits.softmax(1)[len(query) :, 1].tolist()
        found.append([(t, chances[t]) for t in StepEnds(tokenizer)(answer)])
    return found


def sum_up(steps: list[tuple[int, float]], how: str) -> float:
    p = [chance for _, chance in steps]
    return {"min": min(p), "last": p[-1], "sum": sum(p), "product": torch.tensor(p).double().prod().item()}[how]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [1, 3])
def test_the_score_is_what_the_steps_add_up_to_read_one_answer_at_a_time(tokenizer: Any, how: Any, size: int) -> None:
    model, rollout = process_model(len(tokenizer)), rollout_of(tokenizer)
    steps = believed(model, tokenizer, rollout)
    assert [len(s) for s in steps] == [2, 1, 3]
    assert len({round(p, 3) for s in steps for _, p in s}) == 6  # no two alike, so that no mistake hides
    scores, _, paid = judged(step_scorer(model, tokenizer, tokenizer, micro_batch_size=size, how=how), rollout, ROWS)
    assert paid is None
    assert scores.tolist() == pytest.approx([sum_up(s, how) for s in steps], rel=1e-5)  # other shapes, other sums


@pytest.mark.parametrize("how", HOW)
def test_token_rewards_stand_at_the_last_token_of_each_step_and_sum_to_the_same_score(tokenizer: Any, how: Any) -> None:
    model, rollout = process_model(len(tokenizer)), rollout_of(tokenizer)
    options: Any = {"micro_batch_size": 2, "how": how}
    scores, _, paid = judged(step_scorer(model, tokenizer, tokenizer, each_token=True, **options), rollout, ROWS)
    assert paid is not None
    whole = judged(step_scorer(model, tokenizer, tokenizer, **options), rollout, ROWS).scores
    torch.testing.assert_close(scores, whole, rtol=1e-5, atol=1e-6)
    for i, steps in enumerate(believed(model, tokenizer, rollout)):
        expected = torch.zeros(paid.shape[1])
        for n, (slot, _) in enumerate(steps):
            expected[slot] = sum_up(steps[: n + 1], how) - (sum_up(steps[:n], how) if n else 0.0)
        torch.testing.assert_close(paid[i], expected, rtol=1e-5, atol=1e-6)
    if how == "sum":  # every step is paid something: the first at its newline, the last at the EOS or where it was cut off
        last = [int(mask.sum()) - 1 for mask in rollout.response_mask]
        newline = rollout.response_ids[0].tolist().index(encode_texts(tokenizer, ["\n"])[0][0])
        assert paid[0].nonzero()[:, 0].tolist() == [newline, last[0]]
        assert [int(row.nonzero()[-1, 0]) for row in paid] == last


def test_a_penalty_falls_on_the_last_token_and_the_reward_is_counted_once(tokenizer: Any) -> None:
    """As the loop does it: an answer that never stopped pays, and every row still sums to its score."""
    rollout = rollout_of(tokenizer)
    scorer = step_scorer(process_model(len(tokenizer)), tokenizer, tokenizer, micro_batch_size=3, how="sum", each_token=True)
    scores, _, paid = judged(scorer, rollout, ROWS)
    assert paid is not None
    scores = scores - 1.0 * (~rollout.ended)
    zeros = torch.zeros_like(paid)
    rewards, _ = shape_rewards(scores, zeros, zeros, rollout.response_mask, 0.0, token_rewards=paid)
    torch.testing.assert_close(rewards.sum(1), scores, rtol=1e-5, atol=1e-6)
    extra = rewards - paid
    assert extra.abs().gt(1e-5).nonzero().tolist() == [[2, int(rollout.response_mask[2].sum()) - 1]]
    assert extra[2].sum().item() == pytest.approx(-1.0, rel=1e-5)


def test_another_tokenizer_reads_the_text_and_token_rewards_are_refused(tokenizer: Any) -> None:
    other = train_tokenizer([answer.upper() for answer in ANSWERS] * 3, 300)
    model, rollout = process_model(len(other)), rollout_of(tokenizer)
    scores = step_scorer(model, tokenizer, other, micro_batch_size=2, how="product")(rollout, ROWS)
    expected = []
    for row, text in zip(ROWS, ANSWERS):
        ids, written = encode_chat(other, [*row["prompt"], {"role": "assistant", "content": text}])
        start = written.index(True)
        with torch.no_grad():
            chances = model(input_ids=torch.tensor([ids])).logits[0].softmax(1)[:, 1].tolist()
        expected.append(sum_up([(t, chances[start + t]) for t in StepEnds(other)(ids[start:])], "product"))
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="--token_rewards is True, expected false: the reward model has another tokenizer"):
        step_scorer(model, tokenizer, other, micro_batch_size=2, each_token=True)


def test_weights_that_are_not_finite_are_named(tokenizer: Any) -> None:
    model = process_model(len(tokenizer))
    with torch.no_grad():
        model.score.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="process reward model: score of row 0"):
        step_scorer(model, tokenizer, tokenizer, micro_batch_size=2)(rollout_of(tokenizer), ROWS)


def save(model: Any, tokenizer: Any, path: Path) -> str:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_what_scores_whole_answers_has_no_token_rewards(tokenizer: Any, tmp_path: Path) -> None:
    shape = GPTConfig(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, num_labels=1)
    whole = save(GPTForSequenceClassification(shape), tokenizer, tmp_path / "reward")
    for spec in (whole, "rlhf_kit.data.world:gold_scores"):
        with pytest.raises(InputError, match=r"--token_rewards is True, expected false: .* scores whole answers"):
            load_scorer(spec, tokenizer, micro_batch_size=2, device="cpu", token_rewards=True)


@pytest.mark.parametrize(
    ("algorithm", "group", "paid"), [("ppo", 1, False), ("ppo", 1, True), ("reinforce++", 1, True), ("rloo", 2, True)]
)
def test_a_run_takes_a_process_reward_models_directory(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Any, group: int, paid: bool
) -> None:
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, max_seq_len=96)
    policy = save(GPTForCausalLM(shape), tokenizer, tmp_path / "policy")
    reward = save(process_model(len(tokenizer)), tokenizer, tmp_path / "steps")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    seen: list[tuple[Rollout, torch.Tensor]] = []
    real = module.shape_rewards

    def shaped(scores: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        found = real(scores, *arguments, **options)
        seen.append((options["token_rewards"], (found[0] - found[1]).sum(1) - scores))
        return found

    monkeypatch.setattr(module, "shape_rewards", shaped)
    main(
        PPOConfig(
            output_dir=tmp_path / "out", model=policy, reward=reward, data=str(data), algorithm=algorithm, group_size=group,
            step_score="product", token_rewards=paid, total_steps=2, batch_size=4, micro_batch_size=2, num_epochs=1,
            max_new_tokens=8, save_every=0, learning_rate=1e-3,
        )
    )  # fmt: skip
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 2
    for token_rewards, rest in seen:
        assert (token_rewards is not None) == paid
        assert rest.abs().max() < 1e-5  # every answer is paid its score, once
