"""MiniLLM, the small decoder that beginners' guides print, trained beside the kit's GPT. docs/mini_llm.md reads the result.

    python examples/mini_llm.py [--steps N] [--json FILE]

Both get the same tokens in the same order, the same optimizer and schedule, and the same number of parameters: what
MiniLLM spends on a second attention and a second embedding, our model has for layers. Their steps alternate, so that a
busy machine slows both alike. Which fault costs what: examples/mini_llm_ablations.py.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data import world
from rlhf_kit.data.tokenizer import encode_texts, train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models import GPTConfig, GPTForCausalLM
from rlhf_kit.models.access import hidden_states, output_head
from rlhf_kit.objectives.language_model import language_model_loss
from rlhf_kit.rollout.generate import generate
from rlhf_kit.training.optim import clip_grad_norm, lr_at, make_optimizer, set_learning_rate

PROMPT = 8  # tokens that a sample is given


@dataclass
class MiniLLMConfig:
    """Shape of MiniLLM (the GPT's follows from its size), and how both are trained."""

    steps: int = 300
    batch_size: int = 8
    sequence_length: int = 64
    learning_rate: float = 3e-3
    vocab_size: int = 1024
    d_model: int = 96
    n_heads: int = 4
    n_layers: int = 4
    seed: int = 0
    held_out: int = 500  # stories of the evaluation
    large_vocab: int = 8192  # the second vocabulary that memory is measured with
    generate: tuple[int, ...] = (64, 256)  # lengths whose speed is measured
    json: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, learning_rate=0, d_model=1, n_heads=1, n_layers=1, held_out=1, large_vocab=1)
        check_least(self, sequence_length=PROMPT + 1)
        if self.d_model % (2 * self.n_heads):
            mend = f"expected a multiple of 2 n_heads ({2 * self.n_heads}): heads are equal, and rotary positions turn pairs"
            raise InputError("--d_model", self.d_model, mend)
        if not self.generate or min(self.generate) < 1:
            raise InputError("--generate", self.generate, "expected lengths of 1 or more")
        if self.json is not None and (self.json.is_dir() or not os.access(self.json.parent, os.W_OK | os.X_OK)):
            raise InputError("--json", str(self.json), "expected a file in a folder that can be written")


# --- 1. the model, as the guides have it ----------------------------------------------------------------------------


class MiniLLM(nn.Module):
    """Token ids (B, T) to logits (B, T, V). Every option that the guides leave at its default is left there."""

    def __init__(self, vocab_size: int, d_model: int, n_heads: int, n_layers: int, max_seq_len: int) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(max_seq_len, d_model)
        self.layers = nn.ModuleList(
            # Without batch_first the layer takes (T, B, D), and each position would attend across the batch.
            nn.TransformerDecoderLayer(d_model, n_heads, 4 * d_model, batch_first=True)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) long -> (B, T, V)."""
        T = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(T, device=ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=ids.device)
        for layer in self.layers:
            x = layer(x, x, tgt_mask=mask, memory_mask=mask)  # its own input is its memory
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(self, ids: Tensor, max_new_tokens: int, temperature: float = 1.0) -> Tensor:
        """(B, T) -> (B, T + max_new_tokens); all of the past is computed again for every token."""
        for _ in range(max_new_tokens):
            logits = self(ids[:, -self.max_seq_len :])[:, -1]
            ids = torch.cat([ids, torch.multinomial((logits / temperature).softmax(-1), 1)], dim=1)
        return ids


# --- 2. ours, with as many parameters -------------------------------------------------------------------------------


def parameters(model: nn.Module) -> int:
    """Parameters, a tied one counted once."""
    return sum(p.numel() for p in model.parameters())


def matching_width(build: Callable[[int], nn.Module], target: int) -> int:
    """The feed-forward width with which `build(width)` comes closest to `target` parameters; no memory is taken."""
    with torch.device("meta"):
        first, second = parameters(build(1)), parameters(build(2))
    return max(1, 1 + round((target - first) / (second - first)))


def build_mini(config: MiniLLMConfig) -> MiniLLM:
    """MiniLLM as `config` has it."""
    torch.manual_seed(config.seed)
    return MiniLLM(config.vocab_size, config.d_model, config.n_heads, config.n_layers, config.sequence_length)


def gpt_options(config: MiniLLMConfig, target: int, n_layers: int | None = None, **options: Any) -> dict[str, Any]:
    """A `GPTConfig` with about `target` parameters: of all depths the one whose feed-forward is nearest to 8/3 d_model wide."""
    common = {"vocab_size": config.vocab_size, "d_model": config.d_model, "n_heads": config.n_heads, **options}
    common["max_seq_len"] = config.sequence_length
    found = []
    for depth in [n_layers] if n_layers else range(1, 3 * config.n_layers + 1):
        options = common | {"n_layers": depth}
        width = matching_width(lambda width, options=options: GPTForCausalLM(GPTConfig(d_mlp=width, **options)), target)  # type: ignore[misc]
        found.append(options | {"d_mlp": width})
    return min(found, key=lambda options: abs(options["d_mlp"] - 8 * config.d_model / 3))


def build_gpt(config: MiniLLMConfig) -> GPTForCausalLM:
    """Our GPT, as large as MiniLLM."""
    with torch.device("meta"):
        target = parameters(build_mini(config))
    torch.manual_seed(config.seed)
    return GPTForCausalLM(GPTConfig(**gpt_options(config, target)))


# --- 3. data and training, the same for all -------------------------------------------------------------------------


def token_rows(config: MiniLLMConfig) -> tuple[Tensor, Tensor, Any]:
    """Training rows (steps * batch_size, T) in their order, held-out rows (N, T), and the tokenizer."""
    needed = config.steps * config.batch_size * config.sequence_length
    texts = list(world.stories(max(200, needed // 40), seed=config.seed))
    tokenizer = train_tokenizer(texts[:8000], config.vocab_size)
    seen = set(texts)
    fresh = [text for text in world.stories(2 * config.held_out, seed=config.seed + 1000) if text not in seen]

    def rows(stories: list[str]) -> Tensor:
        documents = encode_texts(tokenizer, stories)
        flat = [token for ids in documents for token in (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id)]
        whole = len(flat) // config.sequence_length * config.sequence_length
        return torch.tensor(flat[:whole]).view(-1, config.sequence_length)

    train, later = rows(texts), rows(fresh[: config.held_out])
    if not len(later):
        mend = f"expected enough stories for a row of {config.sequence_length} tokens: raise it, or lower --sequence_length"
        raise InputError("--held_out", config.held_out, mend)
    train = train.repeat(-(-config.steps * config.batch_size // len(train)), 1)  # a tiny run may need its stories twice
    return train[: config.steps * config.batch_size], later, tokenizer


def loss_sum(model: nn.Module, ids: Tensor) -> Tensor:
    """Next-token loss in nats, summed: over all logits at once for MiniLLM, chunk by chunk for ours."""
    if isinstance(model, MiniLLM):
        return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    weight, bias = output_head(model)
    return language_model_loss(hidden_states(model, ids), weight, ids, bias)[0]


class Trainee:
    """A model with its optimizer; `step` is one optimizer step, timed."""

    def __init__(self, model: nn.Module, config: MiniLLMConfig, learning_rate: float | None = None) -> None:
        self.model, self.config, self.seconds = model.train(), config, list[float]()
        self.learning_rate = learning_rate or config.learning_rate
        self.optimizer = make_optimizer(model, learning_rate=self.learning_rate, weight_decay=0.1)

    def step(self, ids: Tensor, step: int) -> None:
        """Learn from ids (B, T): cosine schedule, a tenth of the steps warm-up, gradients clipped to norm 1."""
        started = time.perf_counter()
        factor = lr_at(step, self.config.steps, self.config.steps // 10, "cosine", final_fraction=0.1)
        set_learning_rate(self.optimizer, self.learning_rate * factor)
        (loss_sum(self.model, ids) / ids[:, 1:].numel()).backward()
        clip_grad_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - started)

    @torch.no_grad()
    def held_out_loss(self, rows: Tensor) -> float:
        """Nats a token."""
        self.model.eval()
        total = sum(float(loss_sum(self.model, ids)) for ids in rows.split(self.config.batch_size))
        self.model.train()
        return total / rows[:, 1:].numel()


# --- 4. what it costs -----------------------------------------------------------------------------------------------


def step_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of `ours` / `theirs`, both timed in turn: what else runs on the machine falls on neighbours alike."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def peak_megabytes(model: nn.Module, ids: Tensor, config: MiniLLMConfig) -> float:
    """Weights, Adam's two moments and the most that was ever allocated at once in a training step, in MB.

    Every allocation and release of torch's CPU allocator is counted, so neither Python nor the libraries blur it.
    """
    trainee = Trainee(model, config)
    trainee.step(ids, 0)  # the moments are made in the first step
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        trainee.step(ids, 0)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return (most + 3 * 4 * parameters(model)) / 1e6


def tokens_per_second(models: dict[str, nn.Module], length: int, rounds: int = 3) -> dict[str, float]:
    """New tokens a second of one text of `length` tokens after `PROMPT` given ones; the models take turns, medians."""
    given, seconds = torch.arange(PROMPT)[None], {name: list[float]() for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = time.perf_counter()
            sample(model, given, length)
            seconds[name].append(time.perf_counter() - started)
    return {name: length / statistics.median(times) for name, times in seconds.items()}


def sample(model: nn.Module, given: Tensor, length: int, temperature: float = 0.7, eos_ids: tuple[int, ...] = ()) -> Tensor:
    """(T,) prompt and answer of one text."""
    model.eval()
    if isinstance(model, MiniLLM):
        return model.generate(given, length, temperature)[0]
    options: dict[str, Any] = {"max_new_tokens": length, "eos_ids": eos_ids, "pad_id": 0, "temperature": temperature}
    return torch.cat([given[0], generate(model, given, torch.ones_like(given).bool(), **options).response_ids[0]])


# --- 5. the experiments ---------------------------------------------------------------------------------------------


def build_both(config: MiniLLMConfig) -> dict[str, nn.Module]:
    """The two models of the comparison."""
    return {"MiniLLM": build_mini(config), "our GPT": build_gpt(config)}


def compare(config: MiniLLMConfig) -> dict[str, Any]:
    """MiniLLM and our GPT: parameters, loss, seconds, memory, generation."""
    train, held_out, tokenizer = token_rows(config)
    config = replace(config, vocab_size=len(tokenizer))  # a small text may not yield all the merges
    models = build_both(config)
    trainees = {name: Trainee(model, config) for name, model in models.items()}
    for step, ids in enumerate(train.split(config.batch_size)):
        for trainee in trainees.values():  # in turn
            trainee.step(ids, step)
    times = {name: trainee.seconds for name, trainee in trainees.items()}
    result: dict[str, Any] = {
        "parameters": {name: parameters(model) for name, model in models.items()},
        "layers": {"MiniLLM": config.n_layers, "our GPT": models["our GPT"].config.n_layers},  # type: ignore[union-attr]
        "heldout_loss": {name: trainee.held_out_loss(held_out) for name, trainee in trainees.items()},
        "step_seconds": {name: statistics.median(seconds) for name, seconds in times.items()},
        "step_ratio": step_ratio(times["MiniLLM"], times["our GPT"]),
    }
    prompt = held_out[0, :PROMPT][None]
    text, room = {}, min(config.sequence_length // 2, config.sequence_length - PROMPT)
    for name, model in models.items():
        torch.manual_seed(config.seed)
        text[name] = tokenizer.decode(sample(model, prompt, room))
    longer = build_both(
        replace(config, sequence_length=PROMPT + max(config.generate))
    )  # speed does not depend on what is learned
    result["tokens_per_second"] = {str(length): tokens_per_second(longer, length) for length in config.generate}
    for key, vocab in (("peak_mb", config.vocab_size), ("peak_mb_large_vocab", config.large_vocab)):
        sized = build_both(replace(config, vocab_size=vocab))
        ids = train[: config.batch_size]
        result[key] = {name: peak_megabytes(model, ids, config) for name, model in sized.items()}
    result["text"] = text
    return result


ROWS = {
    "parameters": ("parameters", "{:,}"),
    "layers": ("layers", "{}"),
    "heldout_loss": ("held-out loss, nats a token", "{:.3f}"),
    "step_seconds": ("seconds a step, median", "{:.3f}"),
    "peak_mb": ("peak memory of a step, MB", "{:.1f}"),
    "peak_mb_large_vocab": ("peak memory, large vocabulary, MB", "{:.1f}"),
}


def show(result: dict[str, Any]) -> None:
    """Print the table and both texts."""
    print(f"{'':36} {'MiniLLM':>12} {'our GPT':>12}")
    for key, (title, form) in ROWS.items():
        print(f"{title:36} " + " ".join(f"{form.format(value):>12}" for value in result[key].values()))
    for length, speeds in result["tokens_per_second"].items():
        print(f"{f'tokens a second, {length} in a row':36} " + " ".join(f"{speed:12.0f}" for speed in speeds.values()))
    print(f"\nMiniLLM takes {result['step_ratio']:.2f} times as long for a step (median of neighbouring steps).")
    for name, text in result["text"].items():
        print(f"\n{name}: {text}")


def write(result: dict[str, Any], config: MiniLLMConfig) -> dict[str, Any]:
    """Add the config, and write all to `config.json` if that is given."""
    result["config"] = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main(config: MiniLLMConfig) -> dict[str, Any]:
    """Run the comparison, print it, and write it to `config.json` if that is given."""
    result = write(compare(config), config)
    show(result)
    return result


if __name__ == "__main__":
    run_recipe(main, MiniLLMConfig)
