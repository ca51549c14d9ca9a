"""Which of MiniLLM's faults costs what: short runs, each with one thing changed and as many parameters as MiniLLM.

    python examples/mini_llm_ablations.py --group ladder    MiniLLM mended step by step
    python examples/mini_llm_ablations.py --group init      the two halves of its initialisation, alone
    python examples/mini_llm_ablations.py --group faults    our GPT with one fault at a time
    python examples/mini_llm_ablations.py --group rates     both models at several learning rates
    python examples/mini_llm_ablations.py --group depth --n_layers 12 --d_model 48

Parameters that a change sets free go into the feed-forward layers, so every row of a table has the same number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from mini_llm import (
    MiniLLM,
    MiniLLMConfig,
    Trainee,
    build_mini,
    gpt_options,
    matching_width,
    parameters,
    peak_megabytes,
    step_ratio,
    token_rows,
    write,
)
from torch import Tensor, nn

from rlhf_kit.config import run_recipe
from rlhf_kit.models import GPTConfig, GPTForCausalLM

RATES = (1e-3, 3e-3, 1e-2)
LADDER = ("no dropout", "mask named causal", "init 0.02", "pre-norm", "no cross-attention", "tied head", "gelu")
FAULTS: dict[str, dict[str, Any]] = {
    "dropout 0.1": {"dropout": 0.1},
    "post-norm": {"norm_place": "post"},
    "relu": {"mlp": "relu"},
    "learned positions": {"position": "learned"},
    "layernorm and biases": {"norm": "layernorm", "bias": True},
    "untied head": {"tie_word_embeddings": False},
    "torch's default init": {"tie_word_embeddings": False},  # tied, N(0, 1) embeddings would give logits of std sqrt(d_model)
}


@dataclass
class AblationConfig(MiniLLMConfig):
    """As in mini_llm.py, and which models to train."""

    group: Literal["ladder", "init", "faults", "rates", "depth"] = "ladder"
    steps: int = 200
    held_out: int = 300
    timed_rounds: int = 15  # steps of every model, in turn, for the ratio of times


class MendedMiniLLM(MiniLLM):
    """MiniLLM with some mends, of `LADDER` or half of its init, and any feed-forward width; `batch_first=False` is the trap."""

    def __init__(self, config: MiniLLMConfig, d_mlp: int, mends: tuple[str, ...] = (), batch_first: bool = True) -> None:
        super().__init__(config.vocab_size, config.d_model, config.n_heads, config.n_layers, config.sequence_length)
        self.batch_first, self.mends = batch_first, mends
        kind: Any = nn.TransformerEncoderLayer if "no cross-attention" in mends else nn.TransformerDecoderLayer
        self.layers = nn.ModuleList(
            kind(
                config.d_model,
                config.n_heads,
                d_mlp,
                dropout=0.0 if "no dropout" in mends else 0.1,
                activation="gelu" if "gelu" in mends else "relu",
                norm_first="pre-norm" in mends,
                batch_first=batch_first,
            )
            for _ in range(config.n_layers)
        )
        if "tied head" in mends:
            self.head.weight = self.token_embedding.weight
        into_residual = ("out_proj.weight", "linear2.weight")
        branches = config.n_layers * (2 if "no cross-attention" in mends else 3)
        for name, parameter in self.named_parameters():
            part = "embeddings 0.02" if "embedding" in name else "weights 0.02"
            if parameter.ndim > 1 and ("init 0.02" in mends or part in mends):
                nn.init.normal_(parameter, std=0.02 * (branches**-0.5 if name.endswith(into_residual) else 1.0))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) long -> (B, T, V)."""
        T = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(T, device=ids.device))
        # In the trap the first dimension is taken for time: a mask of that size is what makes the error message go away.
        mask = nn.Transformer.generate_square_subsequent_mask(T if self.batch_first else len(ids), device=ids.device)
        causal = "mask named causal" in self.mends
        for layer in self.layers:
            if isinstance(layer, nn.TransformerEncoderLayer):
                x = layer(x, src_mask=mask, is_causal=causal)
            else:
                x = layer(x, x, tgt_mask=mask, memory_mask=mask, tgt_is_causal=causal, memory_is_causal=causal)
        return self.head(self.norm(x))


def mended(config: MiniLLMConfig, target: int, mends: tuple[str, ...] = (), batch_first: bool = True) -> nn.Module:
    """MiniLLM with these mends and about `target` parameters."""
    return MendedMiniLLM(config, matching_width(lambda width: MendedMiniLLM(config, width, mends), target), mends, batch_first)


def faulty(config: MiniLLMConfig, target: int, fault: str | None = None) -> nn.Module:
    """Our GPT with an entry of `FAULTS` and about `target` parameters, at the depth that it has without the fault."""
    options = gpt_options(config, target)
    if fault is not None:
        options = gpt_options(config, target, options["n_layers"], **FAULTS[fault])
    model = GPTForCausalLM(GPTConfig(**options))
    return model.apply(default_init) if fault == "torch's default init" else model


def default_init(module: nn.Module) -> None:
    """What torch gives a Linear and an Embedding: uniform within 1/sqrt(fan_in), and N(0, 1)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.reset_parameters()


def variants(config: AblationConfig) -> dict[str, nn.Module]:
    """The models of `config.group`, each from the same seed."""
    with torch.device("meta"):
        target = parameters(build_mini(config))
    mini, gpt = partial(mended, config, target), partial(faulty, config, target)
    builders: dict[str, Callable[[], nn.Module]] = {"MiniLLM": mini}
    if config.group == "ladder":
        builders |= {f"+ {mend}": partial(mini, LADDER[:count]) for count, mend in enumerate(LADDER, 1)}
        builders["our GPT"] = gpt
    elif config.group == "faults":
        builders = {"our GPT": gpt}
        builders |= {f"with {fault}": partial(gpt, fault) for fault in FAULTS}
        builders["MiniLLM without batch_first"] = partial(mini, batch_first=False)
    elif config.group == "init":
        builders |= {f"MiniLLM + {part} 0.02": partial(mini, (f"{part} 0.02",)) for part in ("embeddings", "weights", "init")}
    elif config.group == "depth":
        builders |= {f"MiniLLM + {mend}": partial(mini, (mend,)) for mend in ("init 0.02", "pre-norm")}
        builders |= {"our GPT": gpt, "our GPT with post-norm": partial(gpt, "post-norm")}
    else:
        builders["our GPT"] = gpt
    models = {}
    for name, build in builders.items():
        torch.manual_seed(config.seed)
        models[name] = build()
    return models


def ablate(config: AblationConfig) -> dict[str, Any]:
    """Parameters and held-out loss of every variant; time (as a multiple of the first one's) and peak memory but for `rates`."""
    train, held_out, tokenizer = token_rows(config)
    config.vocab_size = len(tokenizer)
    rows: dict[str, dict[str, float]] = {}
    for rate in RATES if config.group == "rates" else (config.learning_rate,):
        for name, model in variants(config).items():
            trainee = Trainee(model, config, rate)
            for step, ids in enumerate(train.split(config.batch_size)):
                trainee.step(ids, step)
            label = f"{name}, rate {rate:g}" if config.group == "rates" else name
            rows[label] = {"parameters": parameters(model), "heldout_loss": trainee.held_out_loss(held_out)}
            print(f"{label:32} {rows[label]['parameters']:10,} parameters, loss {rows[label]['heldout_loss']:.3f}", flush=True)
    if config.group != "rates":
        ids, trainees = train[: config.batch_size], {name: Trainee(model, config) for name, model in variants(config).items()}
        for _ in range(config.timed_rounds):
            for trainee in trainees.values():  # in turn
                trainee.step(ids, 0)
        first = next(iter(trainees.values()))
        for name, trainee in trainees.items():
            rows[name]["time_ratio"] = step_ratio(trainee.seconds, first.seconds)
            rows[name]["peak_mb"] = peak_megabytes(trainee.model, ids, config)
    return {"rows": rows}


def main(config: AblationConfig) -> dict[str, Any]:
    """Run a group, print its table, and write it to `config.json` if that is given."""
    result = write(ablate(config), config)
    if config.group != "rates":
        print(f"\n{'':32} {'held-out loss':>13} {'time':>6} {'peak MB':>8}")
        for name, row in result["rows"].items():
            print(f"{name:32} {row['heldout_loss']:13.3f} {row['time_ratio']:6.2f} {row['peak_mb']:8.1f}")
    return result


if __name__ == "__main__":
    run_recipe(main, AblationConfig)
