"""The readable, proven, complete RLHF kit: pretraining, SFT, reward model, PPO, evaluation, export."""

__version__ = "0.1.0"
