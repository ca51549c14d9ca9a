"""The beginners' decoder of examples/: it does what its page says of it, its traps included."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_kit.config import run_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"d_model": 16, "n_heads": 2, "n_layers": 2, "sequence_length": 16, "batch_size": 4, "vocab_size": 300}
TINY |= {"large_vocab": 400, "held_out": 10, "generate": (4,)}


@pytest.fixture
def mini_llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("mini_llm")


@pytest.fixture
def ablations(mini_llm: Any) -> Any:
    return importlib.import_module("mini_llm_ablations")


def test_its_logits_are_causal_although_it_attends_to_its_own_input(mini_llm: Any) -> None:
    model = mini_llm.MiniLLM(50, 16, 2, 3, 12).eval()
    ids = torch.randint(50, (2, 12))
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % 50
    before, after = model(ids), model(changed)
    assert before.shape == (2, 12, 50)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 7:], before[:, 7:], atol=1e-3)


def test_without_a_memory_mask_the_cross_attention_shows_the_future() -> None:
    layer = nn.TransformerDecoderLayer(16, 2, 64, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, -1] += 1.0
    assert not torch.allclose(layer(x, x, tgt_mask=mask)[:, 0], layer(changed, changed, tgt_mask=mask)[:, 0], atol=1e-3)


def test_examples_of_a_batch_do_not_see_each_other(mini_llm: Any) -> None:
    model = mini_llm.MiniLLM(50, 16, 2, 2, 8).eval()
    ids = torch.randint(50, (8, 8))
    torch.testing.assert_close(model(ids)[3:4], model(ids[3:4]), rtol=0, atol=1e-5)  # kernels differ with the batch size


def test_without_batch_first_a_row_sees_the_rows_above_it_and_none_of_its_own_past(mini_llm: Any, ablations: Any) -> None:
    config = mini_llm.MiniLLMConfig(**TINY)
    trap = ablations.MendedMiniLLM(config, 64, batch_first=False).eval()
    ids = torch.randint(300, (5, 8))
    before = trap(ids)
    other_row, own_past = ids.clone(), ids.clone()
    other_row[1, 6] += -1 if ids[1, 6] else 1
    own_past[4, 5] += -1 if ids[4, 5] else 1
    assert not torch.allclose(trap(other_row)[4, 6], before[4, 6], atol=1e-4)
    torch.testing.assert_close(trap(own_past)[4, 6:], before[4, 6:], rtol=0, atol=1e-6)


def test_without_batch_first_the_printed_mask_is_refused_unless_batch_and_length_are_equal() -> None:
    layer = nn.TransformerDecoderLayer(16, 2, 64).eval()  # batch_first is False by default
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    with pytest.raises(RuntimeError, match="shape"):
        layer(torch.randn(4, 6, 16), torch.randn(4, 6, 16), tgt_mask=mask, memory_mask=mask)
    square = torch.randn(6, 6, 16)
    assert layer(square, square, tgt_mask=mask, memory_mask=mask).shape == (6, 6, 16)  # in silence


def test_our_model_is_given_as_many_parameters(mini_llm: Any) -> None:
    models = mini_llm.build_both(mini_llm.MiniLLMConfig())
    sizes = {name: mini_llm.parameters(model) for name, model in models.items()}
    # A unit of feed-forward width is 3 d_model weights a layer; the nearest width is half of that away at most.
    step = 3 * 96 * models["our GPT"].config.n_layers
    assert abs(sizes["our GPT"] - sizes["MiniLLM"]) <= step / 2


@pytest.mark.parametrize("group", ["ladder", "init", "faults", "depth"])
def test_all_ablated_models_have_as_many_parameters(mini_llm: Any, ablations: Any, group: str) -> None:
    config = ablations.AblationConfig(**TINY | {"d_model": 32}, group=group)
    target = mini_llm.parameters(mini_llm.build_mini(config))
    for model in ablations.variants(config).values():
        assert abs(mini_llm.parameters(model) / target - 1) < 0.01


def test_mending_nothing_leaves_the_model_as_it_is_printed(mini_llm: Any, ablations: Any) -> None:
    config = mini_llm.MiniLLMConfig(**TINY)
    printed, copy = mini_llm.build_mini(config).eval(), ablations.MendedMiniLLM(config, 4 * config.d_model).eval()
    copy.load_state_dict(printed.state_dict())
    ids = torch.randint(300, (2, 16))
    torch.testing.assert_close(copy(ids), printed(ids), rtol=0, atol=0)


def test_naming_the_mask_causal_changes_no_logit(mini_llm: Any, ablations: Any) -> None:
    config = mini_llm.MiniLLMConfig(**TINY)
    plain = ablations.MendedMiniLLM(config, 64, ("no dropout",))
    named = ablations.MendedMiniLLM(config, 64, ("no dropout", "mask named causal"))
    named.load_state_dict(plain.state_dict())
    ids = torch.randint(300, (2, 16))
    torch.testing.assert_close(named(ids), plain(ids), rtol=0, atol=1e-5)  # two attention kernels, fp32


def test_peak_memory_counts_the_logits_of_the_whole_batch(mini_llm: Any) -> None:
    ids = torch.randint(300, (4, 16))
    peaks = []
    for vocab in (300, 4300):
        config = mini_llm.MiniLLMConfig(**TINY | {"vocab_size": vocab})
        model = mini_llm.build_mini(config)
        peaks.append((mini_llm.peak_megabytes(model, ids, config), mini_llm.parameters(model)))
    grown = (peaks[1][0] - peaks[0][0]) * 1e6 - 16 * (peaks[1][1] - peaks[0][1])  # weights, gradients, two moments
    logits = 4 * 16 * 4000 * 4
    assert 1.5 * logits < grown < 6 * logits  # log-softmax and its gradient at least


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--d_model 18", "--d_model is 18, expected a multiple of 2 n_heads (4)"),
        ("--d_model 0", "--d_model is 0, expected at least 1"),
        ("--n_layers 0", "--n_layers is 0, expected at least 1"),
        ("--n_heads 0", "--n_heads is 0, expected at least 1"),
        ("--held_out 0", "--held_out is 0, expected at least 1"),
        ("--held_out 1 --sequence_length 500", "--held_out is 1, expected enough stories for a row of 500 tokens"),
        ("--batch_size 0", "--batch_size is 0, expected at least 1"),
        ("--steps 0", "--steps is 0, expected at least 1"),
        ("--sequence_length 1", "--sequence_length is 1, expected at least 9"),
        ("--vocab_size 20", "vocab_size is 20, expected 300 to"),
        ("--generate 0", "--generate is (0,), expected lengths of 1 or more"),
        ("--json {}/none/result.json", "--json is '{}/none/result.json', expected a file in a folder that can be written"),
        ("--json {}/file/result.json", "--json is '{}/file/result.json', expected a file in a folder"),
        ("--json {}", "--json is '{}', expected a file in a folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    mini_llm: Any, flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    given = {f"--{name}": str(value) for name, value in (TINY | {"steps": 2, "generate": 4}).items()}
    words = flags.format(tmp_path).split()
    given |= dict(zip(words[::2], words[1::2]))
    with pytest.raises(SystemExit) as stop:
        run_recipe(mini_llm.main, mini_llm.MiniLLMConfig, [word for pair in given.items() for word in pair])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(tmp_path) in line


def test_the_comparison_writes_what_its_page_documents(mini_llm: Any, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    mini_llm.main(mini_llm.MiniLLMConfig(**TINY, steps=12, learning_rate=1e-2, json=file))
    result = json.loads(file.read_text())
    both = ("parameters", "layers", "heldout_loss", "step_seconds", "peak_mb", "peak_mb_large_vocab", "text")
    assert set(result) == {*both, "step_ratio", "tokens_per_second", "config"}
    assert all(set(result[key]) == {"MiniLLM", "our GPT"} for key in both)
    assert result["tokens_per_second"].keys() == {"4"}
    assert all(0 < loss < 5.7 for loss in result["heldout_loss"].values())  # log(300) = 5.70: both have learned something
    assert result["config"]["steps"] == 12
