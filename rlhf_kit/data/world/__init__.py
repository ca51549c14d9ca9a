"""The embedded default data: a small generated world with a known gold preference and simulated annotators.

Two dozen animals, their places, things and small troubles. Everything is original and deterministic per seed. `stories` are
for pretraining, `instructions` for SFT, `preferences` for the reward model, `prompts` for the online algorithms;
`gold_scores` is the reward that the annotators noisily follow, so alignment can be measured and not only claimed.
"""

from rlhf_kit.data.world.annotators import Annotators, Choice
from rlhf_kit.data.world.gold import attributes, gold_scores, utility
from rlhf_kit.data.world.rows import instructions, preferences, prompts, spoil, stories
from rlhf_kit.data.world.writer import RATES, held_out, write_answer

__all__ = [
    "RATES",
    "Annotators",
    "Choice",
    "attributes",
    "gold_scores",
    "held_out",
    "instructions",
    "preferences",
    "prompts",
    "spoil",
    "stories",
    "utility",
    "write_answer",
]
