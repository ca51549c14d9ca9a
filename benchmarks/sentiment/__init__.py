"""The field's oldest example of RL on a language model, ours beside TRL's: learning curves on real text.

    python -m benchmarks.sentiment --data FOLDER [--policy DIR] [--work DIR] [--json FILE] [--picture FILE]

A small GPT that writes like film reviewers is moved by PPO towards writing what a classifier of sentiment calls positive
(Ziegler et al. 2019), by `rlhf_kit.training.online` and by TRL 1.12's `PPOTrainer`: the same weights, prompts, episodes
and optimizer steps. `texts.py` is the data, `stages.py` what stands before PPO, `settings.py` what both sides share,
`ours.py` and `theirs.py` the sides, `measure.py` what is measured, `report.py` what is printed and drawn.
"""
