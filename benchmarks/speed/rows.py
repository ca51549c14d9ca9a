"""Who is compared with whom. A group is a set of contenders that take turns on one work; a row is a pair of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from benchmarks.speed import ours, theirs, work
from benchmarks.speed.measure import Clock, Row, Run, Setup, Times, compare, interleave
from benchmarks.speed.memory import largest_tensor, probe_in_subprocess
from benchmarks.speed.work import LARGE_VOCABULARY, SMALL, Size

MEAN_ANSWER = 32  # tokens, of geometric lengths before they are cut


@dataclass(frozen=True)
class Pair:
    """A row to be: our contender, theirs, and the least ratio aimed at."""

    ours: str
    theirs: str
    target: float | None = None


@dataclass(frozen=True)
class Group:
    """Contenders on one work. Names of ours begin with `ours`."""

    size: Size
    work: Callable[[Size], str]
    contenders: Callable[[Size], dict[str, Setup]]
    pairs: tuple[Pair, ...]
    optional: bool = False  # only when named


def pretraining(size: Size) -> dict[str, Setup]:
    """Ours and transformers' GPT-2."""
    return {
        "ours fp32": ours.pretraining(size, "fp32"),
        "ours bf16": ours.pretraining(size, "bf16"),
        "transformers GPT-2, SDPA, fp32": theirs.gpt2_pretraining(size, "fp32"),
        "transformers GPT-2, SDPA, bf16 autocast": theirs.gpt2_pretraining(size, "bf16"),
    }


def compiled(size: Size) -> dict[str, Setup]:
    """Ours and a small GPT-2 under torch.compile."""
    return {
        "ours fp32": ours.pretraining(size, "fp32"),
        "ours bf16": ours.pretraining(size, "bf16"),
        "plain GPT-2, torch.compile, fp32": theirs.plain_pretraining(size, "fp32"),
        "plain GPT-2, torch.compile, bf16 autocast": theirs.plain_pretraining(size, "bf16"),
    }


def sft(size: Size) -> dict[str, Setup]:
    """Ours, and TRL as it comes and at its best."""
    packed = max(1, size.batch * size.mean_length // size.length)  # rows that hold as many tokens as a batch of ours
    best = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": packed, "gradient_checkpointing": False}
    return {
        "ours fp32": ours.sft(size, "fp32"),
        "ours bf16": ours.sft(size, "bf16"),
        "TRL SFTTrainer, defaults": theirs.trl_sft(size),
        "TRL SFTTrainer, fp32, no checkpointing": theirs.trl_sft(size, bf16=False, gradient_checkpointing=False),
        "TRL SFTTrainer, bfd packing, fp32": theirs.trl_sft(size, bf16=False, **best),
        "TRL SFTTrainer, bfd packing, bf16": theirs.trl_sft(size, bf16=True, **best),
    }


def generation(size: Size, stop_after: int | None = None) -> dict[str, Setup]:
    """Ours and transformers' generate."""
    return {
        "ours fp32": ours.generation(size, "fp32", stop_after),
        "ours bf16": ours.generation(size, "bf16", stop_after),
        "transformers generate, fp32": theirs.transformers_generation(size, "fp32", stop_after),
        "transformers generate, bf16": theirs.transformers_generation(size, "bf16", stop_after),
    }


def ppo(size: Size, stop_after: int | None = None) -> dict[str, Setup]:
    """Ours and TRL's PPOTrainer."""
    plain = {"bf16": False, "gradient_checkpointing": False}
    return {
        "ours fp32": ours.ppo(size, "fp32", stop_after),
        "ours bf16": ours.ppo(size, "bf16", stop_after),
        "TRL PPOTrainer, fp32": theirs.trl_ppo(size, stop_after, **plain),
    }


def critics(size: Size) -> dict[str, Setup]:
    """Ours with the critic as a head on the policy, and with one of its own."""
    return {SHARED: ours.ppo(size, "fp32", shared=True), APART: ours.ppo(size, "fp32")}


def reward(size: Size) -> dict[str, Setup]:
    """Ours and TRL's RewardTrainer."""
    plain = {"bf16": False, "gradient_checkpointing": False}
    return {
        "ours fp32": ours.reward(size, "fp32"),
        "ours bf16": ours.reward(size, "bf16"),
        "TRL RewardTrainer, defaults": theirs.trl_reward(size),
        "TRL RewardTrainer, fp32, no checkpointing": theirs.trl_reward(size, **plain),
    }


def loop(size: Size) -> dict[str, Setup]:
    """Our loop, and our kernels without it."""
    return {"ours fit, bf16": ours.pretraining(size, "bf16"), "our kernels in a bare loop, bf16": ours.bare_loop(size, "bf16")}


def _rows_of_tokens(size: Size) -> str:
    return f"{size.model}, {size.steps} steps of {size.batch} x {size.length} tokens"


def _examples(size: Size) -> str:
    return f"{size.model}, {size.sequences} x about {size.mean_length} tokens (at most {size.length}), {size.batch} a step"


def _answers(size: Size) -> str:
    return f"{size.model}, {size.answers} x ({size.prompt} + {size.answer}) tokens"


def _some_answers(size: Size) -> str:
    return f"{_answers(size)}, answers of geometric length (mean {MEAN_ANSWER}, cut at {size.answer})"


GPT2 = "transformers GPT-2, SDPA, "
PLAIN = "plain GPT-2, torch.compile, "
SFT = "TRL SFTTrainer, "
GENERATE = "transformers generate, "
SHARED, APART = "ours fp32, shared critic", "ours fp32, critic apart"
PRETRAINING_PAIRS = (
    Pair("ours fp32", f"{GPT2}fp32"),
    Pair("ours bf16", f"{GPT2}fp32"),
    Pair("ours bf16", f"{GPT2}bf16 autocast"),
)


def _generation_pairs(fp32: float, bf16: float) -> tuple[Pair, ...]:
    return (
        Pair("ours fp32", f"{GENERATE}fp32", fp32),
        Pair("ours bf16", f"{GENERATE}fp32", bf16),
        Pair("ours bf16", f"{GENERATE}bf16"),
    )


GROUPS: dict[str, Group] = {
    "pretraining": Group(Size(), _rows_of_tokens, pretraining, PRETRAINING_PAIRS),
    "pretraining-50k": Group(LARGE_VOCABULARY, _rows_of_tokens, pretraining, PRETRAINING_PAIRS),
    "nanogpt": Group(
        Size(),
        _rows_of_tokens,
        compiled,
        (
            Pair("ours fp32", f"{PLAIN}fp32"),
            Pair("ours bf16", f"{PLAIN}fp32", 3.0),
            Pair("ours bf16", f"{PLAIN}bf16 autocast", 1.2),
        ),
        optional=True,
    ),
    "loop": Group(Size(), _rows_of_tokens, loop, (Pair("ours fit, bf16", "our kernels in a bare loop, bf16", 0.97),)),
    "sft": Group(
        SMALL,
        _examples,
        sft,
        (
            Pair("ours fp32", f"{SFT}defaults"),
            Pair("ours bf16", f"{SFT}defaults", 6.0),
            Pair("ours bf16", f"{SFT}fp32, no checkpointing", 6.0),
            Pair("ours bf16", f"{SFT}bfd packing, fp32", 3.0),
            Pair("ours bf16", f"{SFT}bfd packing, bf16", 3.0),
        ),
    ),
    "reward": Group(
        replace(SMALL, sequences=64),
        _examples,
        reward,
        (
            Pair("ours fp32", "TRL RewardTrainer, fp32, no checkpointing"),
            Pair("ours bf16", "TRL RewardTrainer, fp32, no checkpointing", 3.0),
            Pair("ours bf16", "TRL RewardTrainer, defaults", 3.0),
        ),
    ),
    "generation": Group(Size(), _answers, generation, _generation_pairs(2.3, 3.2)),
    "generation-geometric": Group(
        Size(), _some_answers, partial(generation, stop_after=MEAN_ANSWER), _generation_pairs(4.0, 6.0)
    ),
    "ppo": Group(
        SMALL, _answers, ppo, (Pair("ours fp32", "TRL PPOTrainer, fp32"), Pair("ours bf16", "TRL PPOTrainer, fp32", 3.0))
    ),
    "ppo-geometric": Group(
        SMALL,
        _some_answers,
        partial(ppo, stop_after=MEAN_ANSWER),
        (Pair("ours fp32", "TRL PPOTrainer, fp32"), Pair("ours bf16", "TRL PPOTrainer, fp32", 5.0)),
    ),
    "shared-critic": Group(SMALL, _answers, critics, (Pair(SHARED, APART),)),
}


def sized(group: Group, quick: bool) -> Size:
    """The size a group runs at."""
    return work.quick(group.size) if quick else group.size


def timed_rows(name: str, rounds: int, quick: bool) -> list[Row]:
    """Every pair of a group, timed in turns."""
    group = GROUPS[name]
    size = sized(group, quick)
    times = interleave(group.contenders(size), rounds)
    return [
        compare(f"{name}: {pair.ours}", group.work(size), times[pair.ours], times[pair.theirs], pair.theirs, target=pair.target)
        for pair in group.pairs
    ]


# --- rows that are not a ratio of two times -----------------------------------------------------------------------


def flops_a_step(size: Size) -> float:
    """Multiplications and additions that a training step cannot do without: 6 a weight and token, causal attention halved."""
    weights = 12 * size.n_layers * size.d_model**2 + size.vocab * size.d_model
    return size.batch * size.length * (6.0 * weights + 6.0 * size.n_layers * size.length * size.d_model)


def peak_rows(rounds: int, quick: bool) -> list[Row]:
    """The share of the machine's bf16 matrix peak that a training step reaches; peak and steps take turns."""
    size = work.quick(Size()) if quick else Size()
    side, products = (256, 4) if quick else (2048, 8)

    def matrices() -> Run:
        a, b = (torch.randn(side, side).to(torch.bfloat16) for _ in range(2))
        out = a @ b

        def run(clock: Clock) -> None:
            for _ in range(products):
                torch.mm(a, b, out=out)

        return run

    gpt2 = "transformers GPT-2, SDPA, bf16 autocast"
    steps = {"ours": ours.pretraining(size, "bf16"), gpt2: theirs.gpt2_pretraining(size, "bf16")}
    times = interleave({"peak": matrices, **steps}, rounds)
    peak = 2.0 * side**3 * products / min(times["peak"].cpu)
    share = {name: size.steps * flops_a_step(size) / median(times[name].cpu) / peak for name in steps}
    what = f"{_rows_of_tokens(size)}, peak {peak / 1e9:.0f} GFLOP/s by {side} x {side} products"
    return [Row("peak: ours bf16", what, share["ours"], share[gpt2], "of the bf16 peak", share["ours"] / share[gpt2], gpt2)]


def loss_rows(rounds: int, quick: bool) -> list[Row]:
    """Held-out loss of the same training in bf16 and in fp32: bf16 must cost nothing."""
    size = Size(vocab=256, d_model=64, n_layers=2, n_heads=2, length=64, batch=16, steps=20 if quick else 150)
    losses = {precision: ours.loss_after_training(size, precision) for precision in ("fp32", "bf16")}
    what = f"{_rows_of_tokens(size)} of a Markov chain; differs by {losses['bf16'] - losses['fp32']:+.4f} (aim: within 0.01)"
    return [Row("loss: ours bf16", what, losses["bf16"], losses["fp32"], "nats", losses["fp32"] / losses["bf16"], "ours fp32")]


MEMORY = (
    ("sft", Pair("ours bf16", f"{SFT}defaults", 1 / 0.35)),
    ("sft", Pair("ours bf16", f"{SFT}fp32, no checkpointing", 1 / 0.35)),
    ("ppo", Pair("ours bf16", "TRL PPOTrainer, fp32", 1 / 0.35)),
    ("shared-critic", Pair(SHARED, APART)),
    ("pretraining-50k", Pair("ours bf16", f"{GPT2}fp32", 2.0)),
    ("pretraining-50k", Pair("ours fp32", f"{GPT2}fp32", 2.0)),
)


def memory_rows(rounds: int, quick: bool) -> list[Row]:
    """Peak memory beyond models and data, each contender in a process of its own."""
    peaks: dict[tuple[str, str], float] = {}
    rows = []
    for name, pair in MEMORY:
        for contender in (pair.ours, pair.theirs):
            if (name, contender) not in peaks:
                peaks[name, contender] = probe_in_subprocess(name, contender, quick=quick, threads=torch.get_num_threads())
        mine, other = peaks[name, pair.ours], peaks[name, pair.theirs]
        what = GROUPS[name].work(sized(GROUPS[name], quick))
        rows.append(
            Row(f"memory, {name}: {pair.ours}", what, mine, other, "MB", other / max(mine, 0.1), pair.theirs, pair.target)
        )
    return rows


def largest_rows(rounds: int, quick: bool) -> list[Row]:
    """The largest tensor of a pretraining step, in logits (B x T x V): below 1, none of that size was ever made."""
    size = replace(work.quick(LARGE_VOCABULARY), vocab=4096) if quick else LARGE_VOCABULARY
    size = replace(size, steps=1)
    logits = size.batch * size.length * size.vocab
    mine = largest_tensor(ours.pretraining(size, "bf16")) / logits
    other = largest_tensor(theirs.gpt2_pretraining(size, "bf16")) / logits
    return [
        Row("largest tensor: ours bf16", _rows_of_tokens(size), mine, other, "B x T x V", other / mine, f"{GPT2}bf16 autocast")
    ]


def growth_rows(rounds: int, quick: bool) -> list[Row]:
    """How time grows with length: answers twice as long; rows 16 times as long with as many tokens in all."""
    base = work.quick(Size()) if quick else Size()
    answers = {1: base, 2: replace(base, answer=2 * base.answer)}
    tokens = 16 * base.length // 2
    lengths = {1: base.length // 2, 16: 8 * base.length}
    rows = {
        times: replace(base, length=length, batch=tokens // length, micro_batch=tokens // length, steps=2)
        for times, length in lengths.items()
    }
    contenders: dict[str, Setup] = {}
    for times, size in answers.items():
        contenders[f"ours, answers {times}"] = ours.generation(size, "bf16")
        contenders[f"theirs, answers {times}"] = theirs.transformers_generation(size, "fp32")
    for times, size in rows.items():
        contenders[f"ours, rows {times}"] = ours.pretraining(size, "bf16")
        contenders[f"theirs, rows {times}"] = theirs.gpt2_pretraining(size, "bf16")
    measured = interleave(contenders, rounds)

    def growth(side: str, what: str, times: int) -> float:
        small, large = measured[f"{side}, {what} 1"], measured[f"{side}, {what} {times}"]
        return _median_ratio(large, small)

    table = (
        ("growth, generation: ours bf16", "answers", 2, f"answers of {answers[2].answer} tokens over {answers[1].answer}", 2.1),
        ("growth, step: ours bf16", "rows", 16, f"rows of {lengths[16]} tokens over {lengths[1]}, {tokens} tokens a step", 1.8),
    )
    references = {"answers": f"{GENERATE}fp32", "rows": f"{GPT2}bf16 autocast"}
    result = []
    for name, what, times, description, limit in table:
        mine, other = growth("ours", what, times), growth("theirs", what, times)
        described = f"{base.model}, {description} (aim: at most {limit})"
        result.append(Row(name, described, mine, other, "times as long", other / mine, references[what]))
    return result


def _median_ratio(over: Times, under: Times) -> float:
    return median(over.cpu) / median(under.cpu)


SPECIAL: dict[str, Callable[[int, bool], list[Row]]] = {
    "peak": peak_rows,
    "loss": loss_rows,
    "memory": memory_rows,
    "largest-tensor": largest_rows,
    "growth": growth_rows,
}
NAMES = (*GROUPS, *SPECIAL)
DEFAULT_NAMES = tuple(name for name in NAMES if name not in GROUPS or not GROUPS[name].optional)


def rows_of(name: str, rounds: int, quick: bool) -> list[Row]:
    """All rows of one name."""
    return timed_rows(name, rounds, quick) if name in GROUPS else SPECIAL[name](rounds, quick)
