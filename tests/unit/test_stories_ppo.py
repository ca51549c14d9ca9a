"""The example on a pretrained storyteller, on a tiny Llama with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.stories_ppo import StoriesConfig, about_a_dog, happy_words, main, sentences, short_sentences
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError


def test_what_is_cut_off_at_the_end_is_no_sentence() -> None:
    assert sentences('The dog ran. "Stop!" said Tom. ... And th') == ["The dog ran.", ' "Stop!', '" said Tom.']
    assert sentences("no end") == []


def test_the_dog_reward_is_the_share_of_sentences_with_a_dog() -> None:
    told = ["A dog ran. Tom saw it. The dogs sat. A dogma.", "Two puppies slept.", "no whole sentence, but a dog", ""]
    assert about_a_dog([""] * 4, told) == [0.5, 1.0, 0.0, 0.0]


def test_a_happy_word_counts_once() -> None:
    assert happy_words([""] * 3, ["Happy happy day, he smiled.", "He was kind. He smiles, she laughed.", "a sad funeral"]) == [
        2,
        3,
        0,
    ]


def test_short_sentences_earn_more_than_long_ones() -> None:
    assert short_sentences([""] * 3, ["He ran. She ran far.", "one two three four", "a b."]) == pytest.approx([-0.25, -0.4, -0.2])


@pytest.fixture
def storyteller(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["One day, a dog and a boy went to the park. They were happy."] * 20, 300)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_whole_example_runs_and_says_how_far_it_went(storyteller: Path, tmp_path: Path, lora_rank: int) -> None:
    config = StoriesConfig(
        model=str(storyteller), output_dir=tmp_path / "run", reward="short", stop_token="<|end|>", lora_rank=lora_rank,
        total_steps=2, batch_size=8, samples=16, max_new_tokens=8, json=tmp_path / "figures.json",
    )  # fmt: skip
    main(config)
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["check"]["greedy_tokens_equal"] == result["check"]["greedy_tokens"] > 1
    assert result["check"]["backbone_max_logit_difference"] < 1e-5
    assert result["before"]["kl"]["estimate"] == 0.0  # the model is compared with itself
    assert result["after"]["kl"]["estimate"] != 0.0  # and after training it is another
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_stop_token_that_is_no_token_is_refused(storyteller: Path, tmp_path: Path) -> None:
    config = StoriesConfig(model=str(storyteller), output_dir=tmp_path / "run", stop_token="THE END")
    with pytest.raises(InputError, match="--stop_token is 'THE END', expected a token of the model's vocabulary"):
        main(config)
