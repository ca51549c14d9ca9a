"""How much of an answer's score its beginning decides, and how much a run's critic makes of it: the ceiling of a critic.

    python -m benchmarks.critic_ceiling --policy RUN/ppo --critic RUN/ppo/critic --reward RUN/reward [--prompts 48] [--samples 6]

Answers to the embedded world's prompts are cut, and every beginning is answered to its end several times. No critic can explain
what differs among continuations of one beginning: the rest, `1 - within / total`, is the ceiling of explained variance there.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.data import world
from rlhf_kit.data.examples import prompt_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import pad

Row = list[int]  # token ids
CUTS = (0.0, 0.25, 0.5, 0.75, 0.9)  # of an answer's tokens


def explained(scores: Tensor, values: Tensor) -> tuple[float, float]:
    """(the most that any function of the beginning explains of the scores' variance, what `values` explain of it).

    Args:
        scores: (N, K), of K continuations of each of N beginnings; K at least 2.
        values: (N,), what a critic says of the beginnings.
    """
    total = scores.var()
    return float(1 - scores.var(1).mean() / total), float(1 - (scores - values[:, None]).var() / total)


def main() -> None:
    """Print a line for every cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("policy", "critic", "reward"):
        parser.add_argument(f"--{name}", required=True)
    for name, number in {"prompts": 48, "samples": 6, "max_new_tokens": 96, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.policy)
    policy = load_causal_lm(arguments.policy, dropout=0.0).eval()
    reward, critic = (load_scalar_model(path, dropout=0.0).eval() for path in (arguments.reward, arguments.critic))
    generator = torch.Generator().manual_seed(arguments.seed)
    rows = world.prompts(arguments.prompts, arguments.seed, split="heldout")
    queries = [example.ids.tolist() for example in prompt_examples(rows, tokenizer, 10_000)[0]]
    answers = continued(policy, queries, tokenizer, arguments.max_new_tokens, generator)
    print("cut   ceiling  critic explains  mean score  mean value")
    for cut in CUTS:
        begun = [query + text[len(query) :][: int(cut * (len(text) - len(query)))] for query, text in zip(queries, answers)]
        repeated = [ids for ids in begun for _ in range(arguments.samples)]
        ends = continued(policy, repeated, tokenizer, arguments.max_new_tokens, generator)
        scores = judged(reward, ends).view(len(begun), arguments.samples)
        values = judged(critic, begun)
        ceiling, found = explained(scores, values)
        print(
            f"{cut:4.2f}  {ceiling:7.2f}  {found:15.2f}  {float(scores.mean()):10.2f}  {float(values.mean()):10.2f}", flush=True
        )


def continued(policy: nn.Module, rows: list[Row], tokenizer: Any, most: int, generator: torch.Generator) -> list[Row]:
    """Each row and a sampled answer to it (or the rest of one), as one."""
    ids, mask = pad(rows, side="left")
    end, filler = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    answer = generate(policy, ids, mask, max_new_tokens=most, eos_ids=(end,), pad_id=filler, generator=generator)
    return [row + said[valid].tolist() for row, said, valid in zip(rows, answer.response_ids, answer.response_mask)]


@torch.no_grad()
def judged(model: nn.Module, rows: list[Row]) -> Tensor:
    """(N,) what the scalar head says at the end of each row, 64 rows at a time."""
    return torch.cat([scalar_scores(model, *pad(rows[i : i + 64])) for i in range(0, len(rows), 64)])


if __name__ == "__main__":
    main()
