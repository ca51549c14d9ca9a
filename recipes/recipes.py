"""Stands for the package `recipes` when a recipe is run by its path, so that a checkout runs its own code, installed or not.

`python recipes/sft.py` puts this folder first on Python's path, not the folder above, where `recipes` and `rlhf_kit` are.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
