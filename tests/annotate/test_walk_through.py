"""The walk-through of the round trip names commands and settings that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from annotate.cli import COMMANDS
from recipes.evaluate import EvaluateConfig
from recipes.ppo import PPOConfig
from recipes.reward import RewardConfig
from recipes.sample_pairs import SamplePairsConfig
from rlhf_kit.config import parse_config

PAGE = Path(__file__).resolve().parents[2] / "examples" / "round_trip.md"
RECIPES = {"sample_pairs": SamplePairsConfig, "reward": RewardConfig, "ppo": PPOConfig, "evaluate": EvaluateConfig}
CALL = re.compile(r"^ +python (?:recipes/(\w+)\.py|-m annotate) (.*)$", re.MULTILINE)


def calls() -> list[tuple[str, list[str]]]:
    """(recipe, or "" for the app; words) of every command on the page."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ").replace("$i", "1")
    return [(recipe, shlex.split(words)) for recipe, words in CALL.findall(text)]


@pytest.mark.parametrize(
    ("recipe", "words"), calls(), ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else value
)
def test_every_command_of_the_page_parses(recipe: str, words: list[str]) -> None:
    if recipe:
        parse_config(RECIPES[recipe], words)
        return
    size = 2 if words[0] == "users" else 1
    parse_config(COMMANDS[" ".join(words[:size])][1], words[size:])


def test_the_page_goes_all_the_way_around() -> None:
    found = [recipe or words[0] for recipe, words in calls()]
    steps = ["sample_pairs", "import", "serve", "export", "reward", "ppo", "evaluate", "sample_pairs", "import"]
    at = iter(found)
    assert all(step in at for step in steps), found
