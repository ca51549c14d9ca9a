"""Rewards from a directory or a callable, and what is refused."""

import numpy
import pytest
import torch

from rlhf_kit.batches import Rollout
from rlhf_kit.data.tokenizer import encode_chat, encode_prompt, train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.hf import GPTConfig, GPTForSequenceClassification
from rlhf_kit.rollout.judges import load_scorer
from rlhf_kit.rollout.scoring import function_scorer, load_function, model_scorer, pad, prompt_text

TEXTS = ["the cat sat on the mat", "a dog ran to the park and barked"] * 4
CHATS = [
    [{"role": "user", "content": "where is the cat"}, {"role": "assistant", "content": "on the mat"}],
    [{"role": "user", "content": "and the dog"}, {"role": "assistant", "content": "in the park, I think"}],
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def rows():
    return [{"prompt": chat[:1]} for chat in CHATS]


def as_rollout(tokenizer) -> Rollout:
    """CHATS as a rollout, answers ending in EOS."""
    queries = [encode_prompt(tokenizer, chat[:1]) for chat in CHATS]
    answers = [encode_chat(tokenizer, chat)[0][len(query) :] for chat, query in zip(CHATS, queries)]
    return Rollout(
        *pad(queries, side="left"),
        *pad(answers),
        ended=torch.tensor([True, True]),
        group_ids=torch.arange(2),
        sampler_logprobs=torch.zeros(2, max(map(len, answers))),
    )


def reward_model(vocab_size: int) -> GPTForSequenceClassification:
    torch.manual_seed(0)
    return GPTForSequenceClassification(GPTConfig(vocab_size=vocab_size, d_model=32, n_layers=2, n_heads=4, num_labels=1)).eval()


def test_a_callable_sees_plain_prompts_and_answers(tokenizer, rows):
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses))
        return [float(len(r)) for r in responses]

    scores = function_scorer(reward, tokenizer)(as_rollout(tokenizer), rows)
    assert seen == [("where is the cat", "on the mat"), ("and the dog", "in the park, I think")]
    assert scores.tolist() == [10.0, 20.0]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "number of scores is 1, expected 2"),
        ([1.0, float("nan")], "is nan, expected a finite number"),
        ([1.0, None], r"score of row 1, 'in the park, I think' is None, expected a finite number"),
        ([float("-inf"), 1.0], "score of row 0, 'on the mat' is -inf, expected a finite number"),
        ([1.0, "2.0"], "is '2.0', expected a finite number"),
        ([1.0, 2.0, 3.0], "number of scores is 3, expected 2"),
        (None, "my_reward: scores is None, expected 2 numbers"),
        (0.5, "my_reward: scores is 0.5, expected 2 numbers"),
    ],
)
def test_scores_that_are_missing_or_not_finite_stop_the_run_by_name(tokenizer, rows, returned, said):
    scorer = function_scorer(lambda prompts, responses: returned, tokenizer, name="my_reward")
    with pytest.raises(InputError, match=said) as caught:
        scorer(as_rollout(tokenizer), rows)
    assert "my_reward" in str(caught.value)


def test_numbers_of_numpy_and_bools_are_scores(tokenizer, rows):
    scorer = function_scorer(lambda prompts, responses: numpy.array([0.5, 2.0], dtype=numpy.float32), tokenizer)
    assert scorer(as_rollout(tokenizer), rows).tolist() == [0.5, 2.0]
    assert function_scorer(lambda prompts, responses: [True, False], tokenizer)(as_rollout(tokenizer), rows).tolist() == [
        1.0,
        0.0,
    ]


def test_a_callable_that_raises_is_named_with_its_line_and_the_response_it_cannot_judge(tokenizer, rows):
    def picky(prompts, responses):
        return [{"on the mat": 1.0}[response] for response in responses]

    with pytest.raises(InputError) as caught:
        function_scorer(picky, tokenizer, name="rewards.py:picky")(as_rollout(tokenizer), rows)
    said = str(caught.value)
    assert said.startswith("rewards.py:picky is \"KeyError: 'in the park, I think'\", raised for row 1, the response")
    assert f"at test_scoring.py line {picky.__code__.co_firstlineno + 1}" in said
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_callable_that_fails_on_the_batch_alone_names_no_row(tokenizer, rows):
    def down(prompts, responses):
        if len(responses) > 1:
            raise ConnectionError("no server")
        return [1.0]

    with pytest.raises(InputError, match=r"my_reward is 'ConnectionError: no server', raised at test_scoring\.py line \d+: mend"):
        function_scorer(down, tokenizer, name="my_reward")(as_rollout(tokenizer), rows)


def test_a_reward_model_scores_the_very_tokens_where_tokenizers_agree(tokenizer, rows):
    model = reward_model(len(tokenizer))
    scores = model_scorer(model, tokenizer, tokenizer, micro_batch_size=1)(as_rollout(tokenizer), rows)
    ids, mask = pad([encode_chat(tokenizer, chat)[0] for chat in CHATS])
    torch.testing.assert_close(scores, scalar_scores(model, ids, mask), rtol=1e-5, atol=1e-6)


def test_a_reward_model_with_another_tokenizer_reads_the_text(tokenizer, rows):
    other = train_tokenizer([text.upper() for text in TEXTS], 300)
    model = reward_model(len(other))
    scores = model_scorer(model, tokenizer, other, micro_batch_size=2)(as_rollout(tokenizer), rows)
    ids, mask = pad([encode_chat(other, chat)[0] for chat in CHATS])
    torch.testing.assert_close(scores, scalar_scores(model, ids, mask), rtol=1e-5, atol=1e-6)


def test_a_directory_is_loaded_as_a_reward_model_with_its_offset(tokenizer, rows, tmp_path):
    model = reward_model(len(tokenizer))
    model.config.score_bias = 2.5
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer, loaded = load_scorer(str(tmp_path), tokenizer, micro_batch_size=2, device="cpu")
    assert loaded is not None
    model.config.score_bias = 0.0
    plain = model_scorer(model, tokenizer, tokenizer, micro_batch_size=2)(as_rollout(tokenizer), rows)
    torch.testing.assert_close(scorer(as_rollout(tokenizer), rows), plain + 2.5)


def test_callables_come_from_modules_and_from_files(tmp_path):
    assert load_function("math:sqrt")(4.0) == 2.0
    file = tmp_path / "rewards.py"
    file.write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    assert load_function(f"{file}:short")(["p"], ["abc"]) == [-3]


@pytest.mark.parametrize("spec", ["nowhere", "math:no_such_thing", "no_such_module_at_all:f", "missing.py:f"])
def test_a_reward_that_does_not_exist_is_refused_by_name(spec):
    with pytest.raises(InputError, match="--reward"):
        load_function(spec)


def test_nan_weights_are_named(tokenizer, rows):
    model = reward_model(len(tokenizer))
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="reward model: score of row 0"):
        model_scorer(model, tokenizer, tokenizer, micro_batch_size=2)(as_rollout(tokenizer), rows)


def test_the_prompt_that_callables_see_is_the_last_user_message():
    chat = [*CHATS[0], {"role": "user", "content": "are you sure"}]
    assert prompt_text({"prompt": chat}) == "are you sure"
    assert prompt_text({"prompt": "once upon a time"}) == "once upon a time"
