"""Several reward models as one judge: what each says, what is refused, and PPO that learns from three of them and resumes."""

import json
import re
from functools import partial

import pytest
import torch

from recipes import ppo
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.rollout.judges import Ensemble, load_scorer, reward_members
from tests.unit.test_scoring import CHATS, TEXTS, as_rollout

ROWS = [{"prompt": chat[:1]} for chat in CHATS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def house(tokenizer, tmp_path_factory):
    """A policy `sft`; reward models `a`, `b`, `c`, one `other` with another tokenizer; a callable in `length.py`."""
    folder = tmp_path_factory.mktemp("house")
    other = train_tokenizer([text.upper() for text in TEXTS], 300)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 64, "init_std": 0.3}
    for seed, name in enumerate(("sft", "a", "b", "c", "other")):
        torch.manual_seed(seed)
        reads = other if name == "other" else tokenizer
        config = GPTConfig(vocab_size=len(reads), **shape, **({} if name == "sft" else {"num_labels": 1}))
        model = (GPTForCausalLM if name == "sft" else GPTForSequenceClassification)(config)
        model.save_pretrained(folder / name)
        reads.save_pretrained(folder / name)
    (folder / "length.py").write_text("def short(prompts, responses):\n    return [-len(r) / 10 for r in responses]\n")
    prompts = "".join(json.dumps({"prompt": f"where is the {thing}"}) + "\n" for thing in ("cat", "dog", "mat", "park"))
    (folder / "prompts.jsonl").write_text(prompts)
    return folder


def test_every_member_reads_as_it_would_alone_whatever_it_is(tokenizer, house):
    names = [str(house / "a"), str(house / "other"), f"{house}/length.py:short"]
    load = partial(load_scorer, policy_tokenizer=tokenizer, micro_batch_size=1, device="cpu")
    scorer, first = load(", ".join(names), ensemble="variance", variance_coef=0.2)
    rollout = as_rollout(tokenizer)
    alone = torch.stack([load(name)[0](rollout, ROWS) for name in names])
    assert isinstance(scorer, Ensemble)
    assert torch.equal(scorer.member_scores(rollout, ROWS), alone)
    combined, spread = scorer.with_spread(rollout, ROWS)
    torch.testing.assert_close(combined, alone.mean(0) - 0.2 * alone.var(0, correction=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spread, alone.std(0), rtol=1e-6, atol=0)
    assert torch.equal(scorer(rollout, ROWS), combined)
    assert spread.min() > 0.01
    assert torch.equal(first.score.weight, load_scalar_model(house / "a").score.weight)


def test_the_first_reward_model_is_handed_on_wherever_it_stands(tokenizer, house):
    spec = f"{house}/length.py:short,{house / 'b'},{house / 'a'}"
    _, model = load_scorer(spec, tokenizer, micro_batch_size=1, device="cpu")
    assert torch.equal(model.score.weight, load_scalar_model(house / "b").score.weight)


@pytest.mark.parametrize("how", ["min", "variance"])
def test_one_member_is_its_own_score(tokenizer, house, how):
    options = {"micro_batch_size": 1, "device": "cpu"}
    alone, _ = load_scorer(str(house / "a"), tokenizer, ensemble=how, variance_coef=0.5, **options)
    plain, _ = load_scorer(str(house / "a"), tokenizer, **options)
    assert not isinstance(alone, Ensemble)
    assert torch.equal(alone(as_rollout(tokenizer), ROWS), plain(as_rollout(tokenizer), ROWS))


def test_a_directory_with_a_comma_in_its_name_is_one_member(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert reward_members(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    assert reward_members("x:f, y:g") == ["x:f", "y:g"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{a},,{b}", "expected a name around every comma: number 2 is empty"),
        ("{a},", "expected a name around every comma: number 2 is empty"),
        ("{a},{b},{a}", "/a stands there twice"),
        ("{a},nowhere,{b}", "--reward is 'nowhere', expected a reward model's directory, `module:function` or"),
        ("{a},{sft}", "/sft', expected a reward model: it has no scalar head"),
    ],
)
def test_a_member_that_is_none_is_refused_by_name(tokenizer, house, spec, said):
    spec = spec.format(**{name: house / name for name in ("a", "b", "sft")})
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_scorer(spec, tokenizer, micro_batch_size=1, device="cpu")
    assert str(caught.value).startswith("--reward is ")


def test_a_member_that_gives_no_number_is_named(tokenizer, house, tmp_path):
    model = load_scalar_model(house / "b")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    scorer, _ = load_scorer(f"{house / 'a'},{tmp_path / 'broken'}", tokenizer, micro_batch_size=1, device="cpu")
    with pytest.raises(InputError, match=r"reward model .*/broken: score of row 0 is nan"):
        scorer(as_rollout(tokenizer), ROWS)


class Killed(Exception):
    """The machine went away."""


def train(house, out, monkeypatch, seen=None, kill_at=0, **changes):
    """`recipes/ppo.py` with three reward models; what it samples goes to `seen`."""

    def on_step(step, rollout, stats):
        if step == kill_at:
            raise Killed
        if seen is not None:
            seen.append((rollout, stats))

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "online", partial(ppo.online, on_step=on_step))
        settings = {"total_steps": 4, "batch_size": 8, "micro_batch_size": 3, "max_new_tokens": 6, "learning_rate": 1e-2}
        settings |= {"num_epochs": 1, "save_every": 2, "model": str(house / "sft"), "data": str(house / "prompts.jsonl")}
        reward = ",".join(str(house / name) for name in "abc")
        ppo.main(ppo.PPOConfig(output_dir=out, reward=reward, ensemble="min", **settings | changes))


def test_ppo_learns_from_three_reward_models_logs_their_spread_at_every_step_and_resumes_bit_for_bit(
    tokenizer, house, tmp_path, monkeypatch
):
    seen = []
    train(house, tmp_path / "whole", monkeypatch, seen)
    members = [load_scorer(str(house / name), tokenizer, micro_batch_size=8, device="cpu")[0] for name in "abc"]
    assert len(seen) == 4
    for rollout, stats in seen:
        said = torch.stack([member(rollout, [{}] * len(rollout.ended)) for member in members])
        expected = said.amin(0) - 1.0 * (~rollout.ended)  # the penalty of an answer that never stopped comes after
        # Members read in other micro-batches, so that sums of fp32 run in another order.
        torch.testing.assert_close(rollout.scores, expected, rtol=1e-5, atol=1e-5)
        assert stats["reward/ensemble_spread"] == pytest.approx(float(said.std(0).mean()), rel=1e-5)
        assert stats["reward/ensemble_spread"] > 0.01

    critic, start = load_scalar_model(tmp_path / "whole" / "critic"), load_scalar_model(house / "a")
    gap = [float((x - y).detach().abs().max()) for x, y in zip(critic.parameters(), start.parameters())]
    assert 0 < max(gap) <= 4 * 1e-2 * 1.01  # four steps of Adam away from the first member: no step moves more than its rate

    with pytest.raises(Killed):
        train(house, tmp_path / "killed", monkeypatch, kill_at=4)
    train(house, tmp_path / "killed", monkeypatch, resume=True)
    whole, resumed = (load_causal_lm(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), resumed.parameters()))
    logged = {
        name: [json.loads(line).get("reward/ensemble_spread") for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "killed")
    }
    assert logged["whole"] == logged["killed"] == [stats["reward/ensemble_spread"] for _, stats in seen]
