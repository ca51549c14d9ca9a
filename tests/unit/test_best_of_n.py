"""Best-of-n: the exact distribution on a policy whose answers can be counted, ties, order, batches, and the recipe."""

import json
import math
from itertools import pairwise

import pytest
import torch

from recipes import evaluate
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.rollout.best_of_n import best_of_n, best_of_n_kl, sample_in_batches
from rlhf_kit.rollout.experience import Sampler

VOCAB, EOS, PROMPT = 6, 5, [1, 2, 3]
ANSWERS = [(EOS,)] + [(a, b) for a in range(VOCAB) if a != EOS for b in range(VOCAB)]  # all there are, of at most 2 tokens
RANK = {answer: (7 * i) % len(ANSWERS) for i, answer in enumerate(ANSWERS)}  # a score that no two share
SAMPLER = Sampler(max_new_tokens=2, eos_ids=(EOS,), pad_id=0)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 16, "init_std": 0.5}
    return GPTForCausalLM(GPTConfig(vocab_size=VOCAB, **shape)).eval()


def answers_of(parts):
    return [tuple(ids[mask].tolist()) for part in parts for ids, mask in zip(part.response_ids, part.response_mask)]


def by_rank(rollout, rows):
    return torch.tensor([float(RANK[answer]) for answer in answers_of([rollout])])


@torch.no_grad()
def chances(policy) -> torch.Tensor:
    """The policy's probability of each of ANSWERS, (31,) fp64, from plain forwards."""

    def after(ids):
        return policy(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    first = after(PROMPT)
    second = {a: after([*PROMPT, a]) for a in range(VOCAB) if a != EOS}
    return torch.stack([first[EOS] if len(y) == 1 else first[y[0]] + second[y[0]][y[1]] for y in ANSWERS]).exp()


def best_chances(plain: torch.Tensor, n: int) -> torch.Tensor:
    """p_n(y) = F(y)^n - F(y-)^n by a loop over the answers in the order of their scores."""
    found, below = torch.zeros_like(plain), 0.0
    for i in sorted(range(len(ANSWERS)), key=lambda i: RANK[ANSWERS[i]]):
        found[i] = (below + plain[i]) ** n - below**n
        below = below + float(plain[i])
    return found


def chi_square(seen: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Pearson's statistic with rare answers as one, and its bound: four deviations above its mean where the two agree."""
    rare = expected < 5
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    freedom = len(seen) - 1
    return float(((seen - expected) ** 2 / expected.clamp_min(1e-9)).sum()), freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_of_n_has_the_exact_distribution(policy, n):
    count, plain = 6_000, chances(policy)
    assert float(plain.sum()) == pytest.approx(1.0, rel=1e-6)  # logits are fp32
    generator = torch.Generator().manual_seed(n)
    parts = best_of_n(
        policy, [PROMPT] * count, [{}] * count, by_rank, SAMPLER, n=n, batch_size=4_093, generator=generator
    )  # a prime: batches split the answers to a prompt
    number = {answer: i for i, answer in enumerate(ANSWERS)}
    seen = torch.bincount(torch.tensor([number[y] for y in answers_of(parts)]), minlength=len(ANSWERS)).double()
    assert seen.sum() == count
    found, limit = chi_square(seen, count * best_chances(plain, n))
    assert found < limit
    other, limit = chi_square(seen, count * best_chances(plain, n + 1))
    assert other > limit  # the test can tell n from n + 1


def test_the_best_of_one_is_plain_sampling_to_the_draw(policy):
    queries = [PROMPT[: 1 + i % 3] for i in range(11)]
    options = {"sampler": SAMPLER, "batch_size": 4}
    plain = sample_in_batches(policy, queries, generator=torch.Generator().manual_seed(3), **options)
    best = best_of_n(policy, queries, [{}] * 11, by_rank, n=1, generator=torch.Generator().manual_seed(3), **options)
    assert len(plain) == len(best) == 3
    for one, other in zip(plain, best):
        assert torch.equal(other.scores, by_rank(one, []))
        for name in ("query_ids", "query_mask", "response_ids", "response_mask", "ended", "group_ids", "sampler_logprobs"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_each_prompt_keeps_the_first_of_its_best_in_order_whatever_the_batches(policy, batch_size):
    """Scores by the place of an answer: best are answers 2 and 3 of the first prompt, 0 of the second, 1 of the third."""
    queries, rows = [PROMPT, PROMPT[:2], PROMPT[:1]], [{"name": name} for name in "abc"]
    given = {"a": [0.0, 1.0, 2.0, 2.0], "b": [4.0, 4.0, 4.0, 4.0], "c": [-3.0, -1.0, -2.0, -9.0]}
    left = {name: list(scores) for name, scores in given.items()}
    made = []

    def scorer(rollout, asked):
        made.extend(zip([row["name"] for row in asked], answers_of([rollout])))
        return torch.tensor([left[row["name"]].pop(0) for row in asked])

    parts = best_of_n(
        policy, queries, rows, scorer, SAMPLER, n=4, batch_size=batch_size, generator=torch.Generator().manual_seed(0)
    )
    assert [name for name, _ in made] == list("aaaabbbbcccc")
    assert answers_of(parts) == [made[2][1], made[4][1], made[9][1]]
    assert torch.cat([part.scores for part in parts]).tolist() == [2.0, 4.0, -1.0]
    assert torch.cat([part.group_ids for part in parts]).tolist() == [0, 1, 2]
    found = [ids[mask].tolist() for part in parts for ids, mask in zip(part.query_ids, part.query_mask)]
    assert found == queries


def test_the_bound_on_the_kl_by_hand_and_above_the_exact_kl(policy):
    assert [best_of_n_kl(n) for n in (1, 2, 4, 8, 16)] == pytest.approx([0.0, 0.19315, 0.63629, 1.20444, 1.83509], abs=1e-5)
    plain, found = chances(policy), []
    for n in (2, 4, 16):
        best = best_chances(plain, n)
        found.append(float((best * (best / plain).log()).nan_to_num(0.0).sum()))
        assert 0 < found[-1] < best_of_n_kl(n)
    assert all(low < high for low, high in pairwise(found))
    # Answers that are all unlikely come up to it: p_n(i) = (i / N)^n - ((i - 1) / N)^n over N of them.
    edges = (torch.arange(100_001, dtype=torch.float64) / 100_000) ** 4
    fine = edges.diff()
    assert float((fine * (fine * 100_000).log()).sum()) == pytest.approx(best_of_n_kl(4), rel=1e-4)


def test_what_cannot_be_chosen_from_is_refused(policy):
    with pytest.raises(InputError, match="n is 0, expected at least 1"):
        best_of_n(policy, [PROMPT], [{}], by_rank, SAMPLER, n=0, batch_size=4)
    with pytest.raises(ValueError, match="zip"):
        best_of_n(policy, [PROMPT], [{}, {}], by_rank, SAMPLER, n=2, batch_size=4)


def test_evaluation_compares_the_best_of_n_with_plain_answers(tmp_path):
    """A policy against itself: the best of four by a score that hardly ever ties wins four times in five."""
    tokenizer = train_tokenizer(["tell me, is the answer good or bad?"] * 10, 300)
    shape = {"vocab_size": len(tokenizer), "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 64, "init_std": 0.3}
    for name, made, more in (("sft", GPTForCausalLM, {}), ("a", GPTForSequenceClassification, {"num_labels": 1})):
        torch.manual_seed(0)
        made(GPTConfig(**shape, **more)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"tell me {i}"}) + "\n" for i in range(300)))
    paths = {"model": str(tmp_path / "sft"), "reference": str(tmp_path / "sft"), "reward": str(tmp_path / "a")}
    common = {"data": str(tmp_path / "prompts.jsonl"), "prompts": 300, "max_new_tokens": 8, "batch_size": 150}
    found = evaluate.main(evaluate.EvaluateConfig(output_dir=tmp_path / "out", best_of=4, **paths, **common))
    # Four in five is exact for scores without ties; a share of 300 has a deviation of 0.023.
    assert found["proxy_win_rate"]["estimate"] == pytest.approx(4 / 5, abs=0.08)
    assert found["best_of_kl_bound"] == pytest.approx(math.log(4) - 3 / 4, rel=1e-12)
    assert "kl" not in found
    for changes, said in (
        ({"reward": None}, "--reward is None, expected a reward model or a callable: --best_of chooses by it"),
        ({"reference": None}, "--model, --reference is "),
        ({"temperature": 0.0}, "--temperature is 0, expected more than 0"),
        ({"best_of": 0}, "--best_of is 0, expected at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            evaluate.main(evaluate.EvaluateConfig(output_dir=tmp_path / "no", **{"best_of": 4} | paths | common | changes))
