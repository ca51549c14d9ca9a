"""PPO on a pretrained model that is not ours: a small Llama that tells children's stories is moved towards a simple reward.

    python examples/stories_ppo.py --model DIR [--reward dog|happy|short] [--lora_rank 8] [--json FILE]

DIR is a `transformers` directory of karpathy's stories260K (or any causal LM that continues plain text). There is no chat:
a prompt is the beginning of a story, and a story ends with `--stop_token`. Before training it is shown that our sampler
and our own backbone do what transformers does with the same weights.
"""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recipes.common import LoraFields, lora_of, open_run
from recipes.ppo import stop_tokens
from rlhf_kit.batches import Rollout
from rlhf_kit.config import run_recipe
from rlhf_kit.data.batching import PromptBatches
from rlhf_kit.data.examples import PromptExample
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.generation import describe_answers, sequence_kl
from rlhf_kit.evaluation.intervals import mean_interval
from rlhf_kit.models.convert import from_transformers
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.rollout.experience import response_logprobs
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import RewardFunction, function_scorer, response_texts
from rlhf_kit.training.online import online
from rlhf_kit.training.online_config import OnlineConfig

OPENINGS = (
    "Once upon a time",
    "One day",
    "Once upon a time, there was a boy",
    "Once upon a time, there was a girl",
    "Once upon a time, there was a little",
    "One day, a boy",
    "One day, a girl",
    "Lily",
    "Tom and",
    "The",
    "There was a",
    "It was a",
    "In the park",
    "A little",
    "Mom and",
    "Ben",
)
HAPPY = re.compile(r"\b(happy|happily|smil\w*|laugh\w*|fun|love[ds]?|hug\w*|friend\w*|kind|nice)\b", re.IGNORECASE)
DOG = re.compile(r"\b(dogs?|pupp(y|ies))\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with a letter in it; what was cut off at the end is none."""
    return [s for s in re.findall(r"[^.!?]+[.!?]", text) if re.search("[A-Za-z]", s)]


def about_a_dog(prompts: list[str], responses: list[str]) -> list[float]:
    """The share of sentences that speak of a dog or a puppy."""
    found = [sentences(text) for text in responses]
    return [sum(bool(DOG.search(s)) for s in told) / max(len(told), 1) for told in found]


def happy_words(prompts: list[str], responses: list[str]) -> list[float]:
    """Different happy words in the answer: saying one again earns nothing."""
    return [float(len({m.group(0).lower() for m in HAPPY.finditer(text)})) for text in responses]


def short_sentences(prompts: list[str], responses: list[str]) -> list[float]:
    """Minus the words of an average sentence, over 10; an answer without a whole sentence counts as one of all its words."""
    found = [sentences(text) or [text] for text in responses]
    return [-sum(len(s.split()) for s in told) / len(told) / 10 for told in found]


REWARDS: dict[str, RewardFunction] = {"dog": about_a_dog, "happy": happy_words, "short": short_sentences}


@dataclass
class StoriesConfig(LoraFields, OnlineConfig):
    """A storyteller, a wish, and PPO in between."""

    model: str = "stories260k"  # a transformers directory or a hub name
    output_dir: Path = Path("runs/stories")
    reward: Literal["dog", "happy", "short"] = "dog"
    stop_token: str = "<s>"  # what stands between two stories
    samples: int = 256  # answers measured before and after
    shown: int = 3  # of them printed
    json: Path | None = None  # figures and samples
    total_steps: int = 40
    batch_size: int = 64
    micro_batch_size: int = 64
    num_epochs: int = 2
    num_minibatches: int = 2
    max_new_tokens: int = 64
    missing_eos_penalty: float = 0.0  # most stories are longer than an answer may be: being cut is no fault
    kl_coef: float = 0.01
    learning_rate: float = 3e-4
    critic_learning_rate: float | None = 1e-3
    save_every: int = 0


def main(config: StoriesConfig) -> dict[str, Any]:
    """Check the model, measure, train, measure again."""
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model)
    stop = tokenizer.convert_tokens_to_ids(config.stop_token)
    if not isinstance(stop, int) or stop == tokenizer.unk_token_id:
        raise InputError("--stop_token", config.stop_token, "expected a token of the model's vocabulary")
    lora = lora_of(config)
    torch.manual_seed(config.seed)  # of the adapter's start
    policy = load_causal_lm(config.model, lora=lora, dropout=0.0).to(accelerator.device)
    original = load_causal_lm(config.model, dropout=0.0).to(accelerator.device).eval()
    result: dict[str, Any] = {"check": check(original, stop, stop_tokens(original, tokenizer))}
    same = result["check"]
    print(f"greedy: {same['greedy_tokens_equal']} of {same['greedy_tokens']} tokens as transformers generates them")
    print(f"our backbone with these weights: logits differ by at most {same['backbone_max_logit_difference']:.1e}")

    examples = [PromptExample(np.asarray(tokenizer(text)["input_ids"], np.int32), {"prompt": text}) for text in OPENINGS]
    reward = REWARDS[config.reward]
    scorer = function_scorer(reward, tokenizer, name=config.reward)
    before = measure(original, original, examples, reward, tokenizer, stop, config)
    started = time.perf_counter()
    online(
        policy,
        PromptBatches(
            examples,
            batch_size=config.batch_size,
            group_size=config.group_size,
            seed=config.seed,
            pad_id=tokenizer.pad_token_id,
        ),
        scorer,
        config,
        accelerator,
        tokenizer=tokenizer,
        eos_ids=(stop,),
        reference=copy.deepcopy(original) if lora is None else None,
        critic=load_scalar_model(config.model, lora=lora, dropout=0.0, zero_head=True) if config.algorithm == "ppo" else None,
    )
    seconds = time.perf_counter() - started
    after = measure(policy, original, examples, reward, tokenizer, stop, config)
    result |= {"before": before, "after": after, "seconds": seconds, "config": {k: str(v) for k, v in asdict(config).items()}}

    print(f"\nreward: {config.reward}, {reward.__doc__}")
    for side in ("before", "after"):
        row = result[side]
        print(
            f"{side:6}  reward {interval(row['reward'])}   KL {interval(row['kl'])} nats an answer   "
            f"ended {row['eos_rate']:.2f}   distinct bigrams {row['distinct_2']:.3f}"
        )
    for side in ("before", "after"):
        for text in result[side]["texts"][: config.shown]:
            print(f"\n-- {side} --\n{text}")
    print(f"\n{seconds:.0f} s of training")
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


@torch.no_grad()
def check(model: Any, start: int, eos_ids: tuple[int, ...], tokens: int = 300) -> dict[str, Any]:
    """Our greedy answer to the bare start token beside `transformers`', and our backbone's logits beside the model's."""
    query = torch.full((1, 1), start, device=model.device)
    ours = generate(
        model, query, torch.ones_like(query).bool(), max_new_tokens=tokens, eos_ids=eos_ids, pad_id=start, temperature=0.0
    ).response_ids[0]
    theirs = model.generate(
        query,
        attention_mask=torch.ones_like(query),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=list(eos_ids),
        pad_token_id=start,
    )[0, 1:]
    length = min(len(ours), len(theirs))
    ids = torch.cat([query[0], theirs])[None]
    difference = (from_transformers(model)(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
    return {
        "greedy_tokens": max(len(ours), len(theirs)),
        "greedy_tokens_equal": int((ours[:length] == theirs[:length]).sum()),
        "backbone_max_logit_difference": float(difference),
    }


@torch.no_grad()
def measure(
    model: Any,
    original: Any,
    examples: list[PromptExample],
    reward: RewardFunction,
    tokenizer: Any,
    stop: int,
    config: StoriesConfig,
) -> dict[str, Any]:
    """Reward and distance from the original over `config.samples` answers, with their intervals, and the stories."""
    batches = PromptBatches(examples, batch_size=config.samples, seed=config.seed + 1, pad_id=tokenizer.pad_token_id)
    batch, rows = batches.batch(0, 0, 1)
    batch = batch.to(model.device)
    answer = generate(
        model,
        batch.query_ids,
        batch.query_mask,
        max_new_tokens=config.max_new_tokens,
        eos_ids=(stop,),
        pad_id=tokenizer.pad_token_id,
        temperature=config.temperature,
        generator=torch.Generator(model.device).manual_seed(config.seed + 1),
    )
    rollout = Rollout(
        query_ids=batch.query_ids,
        query_mask=batch.query_mask,
        response_ids=answer.response_ids,
        response_mask=answer.response_mask,
        ended=answer.ended,
        group_ids=batch.group_ids,
        sampler_logprobs=answer.logprobs,
    )
    logprobs, ref = (response_logprobs(m, rollout, temperature=config.temperature)[0] for m in (model, original))
    prompts, texts = [str(row["prompt"]) for row in rows], response_texts(rollout, tokenizer)
    ids = [row[mask].tolist() for row, mask in zip(answer.response_ids, answer.response_mask)]
    return {
        "reward": mean_interval(reward(prompts, texts)).as_dict(),
        "kl": sequence_kl(logprobs, ref, answer.response_mask).as_dict(),
        **describe_answers(ids, answer.ended.cpu().numpy()),
        "texts": [f"{prompt}|{text}" for prompt, text in zip(prompts, texts)][:24],
    }


def interval(row: dict[str, float]) -> str:
    """`0.31 (0.28 to 0.34)`."""
    return f"{row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


if __name__ == "__main__":
    run_recipe(main, StoriesConfig)
