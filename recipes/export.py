"""Export a model of ours to a layout that other software loads, and check that nothing changed.

python recipes/export.py --model runs/quickstart/ppo --output_dir runs/quickstart/exported
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from recipes.common import load_policy, writable
from rlhf_kit.config import run_recipe
from rlhf_kit.errors import InputError
from rlhf_kit.models.convert import to_transformers
from rlhf_kit.models.loading import disable_dropout, quiet


@dataclass
class ExportConfig:
    """A model directory that needs nothing of ours: GPT-2 or Llama, by what the model is."""

    model: str = "runs/tiny/ppo"  # a stage's output_dir
    output_dir: Path = Path("runs/tiny/exported")


@torch.no_grad()
def main(config: ExportConfig) -> float:
    """Convert, save, load again from disk and compare. Returns the largest relative difference of logits."""
    if (config.output_dir / "run_config.yaml").exists():
        raise InputError("--output_dir", str(config.output_dir), "which holds a stage's run: choose another folder")
    writable(config.output_dir)
    model, tokenizer = load_policy(config.model)
    disable_dropout(model.cpu())  # the layouts have no place for it, and an exported model answers without
    exported = to_transformers(model)
    with TemporaryDirectory(dir=config.output_dir, prefix=".tmp-") as folder:  # an unsound export leaves nothing
        with quiet():
            exported.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        width = min(32, model.config.max_seq_len)
        ids = torch.randint(model.config.vocab_size, (2, width), generator=torch.Generator().manual_seed(0))
        ours, theirs = model(input_ids=ids).logits, reloaded(input_ids=ids).logits
        difference = float((ours - theirs).abs().max() / ours.abs().max())
        if not difference < 1e-5:  # fp32 kernels may sum in another order; a wrong layout is off by far more
            raise InputError("exported logits", difference, "expected a relative difference below 1e-5: the export is not sound")
        for file in Path(folder).iterdir():
            file.replace(config.output_dir / file.name)
    print(f"{type(exported).__name__} -> {config.output_dir} (logits differ by {difference:.1e} of their largest)")
    return difference


if __name__ == "__main__":
    run_recipe(main, ExportConfig)
