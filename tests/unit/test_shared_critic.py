"""A critic that is a head on the policy's trunk: one forward, the gradients of two, and a model of its own in the end."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CodeGenConfig, CodeGenForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.closed_form.world import VOCAB
from rlhf_kit.batches import Rollout
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import unwrap
from rlhf_kit.models.loading import Lora, load_causal_lm, load_scalar_model
from rlhf_kit.models.shared_critic import shared_critic
from rlhf_kit.rollout.experience import response_logprobs, response_prices, response_values
from rlhf_kit.training import online as module
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.learner import Learner
from rlhf_kit.training.online_config import OnlineConfig
from tests.unit.test_online import BASE, Killed, KilledAt, critic_model, logged, policy_model, run, weights


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=16)).eval()


def llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_key_value_heads=2, max_position_embeddings=16, **shape)).eval()


def head_on(policy: Any) -> nn.Linear:
    """A shared critic that has something to say."""
    head = shared_critic(policy)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.3, generator=generator)
        head.bias.fill_(0.4)
    return head


def canned() -> tuple[Rollout, Tensor, Tensor]:
    """Five answers of 1 to 5 tokens to prompts of 1 to 3, with advantages and returns; some ratios and values are clipped."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5)[None] < torch.tensor([1, 5, 3, 4, 2])[:, None]

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(5, 5, generator=generator) * mask

    rollout = Rollout(
        query_ids=torch.randint(1, VOCAB, (5, 3), generator=generator),
        query_mask=torch.arange(3)[None] >= torch.tensor([2, 0, 1, 0, 2])[:, None],
        response_ids=torch.randint(1, VOCAB, (5, 5), generator=generator) * mask,
        response_mask=mask,
        ended=torch.ones(5, dtype=torch.bool),
        group_ids=torch.arange(5),
        sampler_logprobs=torch.zeros(5, 5),
        old_logprobs=(-2.1 + noise(0.3)) * mask,
        ref_logprobs=-2.0 * mask,
        values=noise(0.5),
        scores=torch.zeros(5),
    )
    return rollout, noise(1.0), noise(1.0)


def two_forwards(policy: Any, head: nn.Linear, config: OnlineConfig) -> Tensor:
    """The loss answer by answer without padding, policy and values each from a forward of their own."""
    rollout, advantages, returns = canned()
    assert rollout.old_logprobs is not None
    assert rollout.values is not None
    policy_losses, value_losses = [], []
    for i in range(5):
        query, answer = rollout.query_ids[i][rollout.query_mask[i]], rollout.response_ids[i][rollout.response_mask[i]]
        ids, n = torch.cat([query, answer])[None], len(answer)
        logprobs = policy(input_ids=ids).logits[0, len(query) - 1 : -1].log_softmax(-1).gather(1, answer[:, None])[:, 0]
        states = policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        values = states[0, len(query) - 1 : -1] @ head.weight[0] + head.bias
        ratio, a = (logprobs - rollout.old_logprobs[i, :n]).exp(), advantages[i, :n]
        policy_losses.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - config.cliprange, 1 + config.cliprange)))
        old, wanted = rollout.values[i, :n], returns[i, :n]
        near = old + (values - old).clamp(-config.cliprange_value, config.cliprange_value)
        value_losses.append(0.5 * torch.maximum((values - wanted) ** 2, (near - wanted) ** 2))
    return torch.cat(policy_losses).mean() + config.vf_coef * torch.cat(value_losses).mean()


def loss_of(policy: Any, critic: nn.Module, config: OnlineConfig, *, learns: bool = True) -> Tensor:
    rollout, advantages, returns = canned()
    tokens = float(rollout.response_mask.sum())
    learner = Learner(policy, critic, ALGORITHMS["ppo"], config)
    return learner(rollout, advantages, returns, tokens, tokens, 0.0, learns)[0]


@pytest.mark.parametrize("build", [policy_model, gpt2, llama])
def test_one_forward_has_the_loss_and_the_gradients_of_two(build: Any) -> None:
    config = replace(BASE, vf_coef=0.7)
    policy = build().eval()
    head = head_on(policy)
    twin, twin_head = copy.deepcopy(policy), copy.deepcopy(head)
    loss, expected = loss_of(policy, head, config), two_forwards(twin, twin_head, config)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for mine, theirs in zip([*policy.parameters(), *head.parameters()], [*twin.parameters(), *twin_head.parameters()]):
        assert mine.grad is not None
        assert theirs.grad is not None
        # A row alone and a row among padding are summed in another order: against the largest entry, 1e-6.
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-6 * max(1.0, float(theirs.grad.abs().max())))


@pytest.mark.parametrize(("shared", "forwards"), [(True, 1), (False, 2)])
def test_a_micro_batch_runs_the_trunk_once(shared: bool, forwards: int) -> None:
    policy = policy_model().eval()
    critic = head_on(policy) if shared else critic_model().eval()
    rollout, _, _ = canned()
    response_prices(policy, critic, rollout, temperature=1.0)  # the first one also looks whether the logits are plain
    runs = []
    for model in (policy, critic):
        for part in model.modules():
            if part is getattr(model, "model", None):
                part.register_forward_hook(lambda *_: runs.append(1))
    loss_of(policy, critic, BASE)
    assert len(runs) == forwards


def test_the_value_loss_moves_the_trunk_by_its_coefficient() -> None:
    def gradient(vf_coef: float) -> Tensor:
        policy = policy_model().eval()
        loss_of(policy, head_on(policy), replace(BASE, vf_coef=vf_coef), learns=False).backward()  # of the value loss alone
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    one, three = gradient(0.1), gradient(0.3)
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(three, 3 * one, rtol=0, atol=1e-6 * float(three.abs().max()))  # fp32: scaled before the sums
    assert not gradient(0.0).any()


def test_a_new_head_says_zero_and_learns_what_answers_earn(tmp_path: Path) -> None:
    policy = policy_model()
    head = shared_critic(policy)
    _, _, steps = run(tmp_path, policy=policy, critic=head, total_steps=25, batch_size=32, micro_batch_size=16, vf_coef=0.5)
    first, last = steps[0][1], steps[-1][1]
    assert not steps[0][0].values.any()
    assert last["objective/scores"] > first["objective/scores"] + 1.0
    assert last["val/explained_variance"] > 0.3
    assert "grad_norm/critic" not in last


def test_every_parameter_has_one_place_in_the_optimizer_and_the_head_its_own_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched_optimizers(monkeypatch)
    policy = policy_model()
    head = shared_critic(policy)
    run(tmp_path, policy=policy, critic=head, total_steps=1, critic_learning_rate=0.02)
    groups = [(group["lr"], [id(p) for p in group["params"]]) for group in made[0].param_groups]
    places = [name for _, names in groups for name in names]
    assert sorted(places) == sorted({id(p) for p in [*policy.parameters(), *head.parameters()]})
    assert {rate for rate, names in groups if id(head.weight) in names or id(head.bias) in names} == {0.02}
    assert {rate for rate, names in groups if id(head.weight) not in names and id(head.bias) not in names} == {BASE.learning_rate}


def test_the_gradients_of_trunk_and_head_are_clipped_by_one_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = module.clip_grad_norm
    monkeypatch.setattr(module, "clip_grad_norm", lambda parts, most: seen.append(len(parts)) or real(parts, most))
    policy = policy_model()
    run(tmp_path, policy=policy, critic=shared_critic(policy), total_steps=1, num_epochs=1, num_minibatches=1)
    assert seen == [len(list(policy.parameters())) + 2, 0]


def watched_optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.AdamW]:
    """The optimizers that `online` makes from here on."""
    made: list[torch.optim.AdamW] = []
    real = module.make_optimizer

    def make_optimizer(*arguments: Any, **options: Any) -> torch.optim.AdamW:
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(module, "make_optimizer", make_optimizer)
    return made


@pytest.mark.parametrize("shared", [False, True])
def test_while_the_critic_warms_up_not_even_weight_decay_or_a_moment_moves_the_policy(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched_optimizers(monkeypatch)
    before = weights(policy_model())
    for total_steps in (2, 3):
        policy = policy_model()
        critic = shared_critic(policy) if shared else critic_model()
        start = weights(critic).clone()
        run(tmp_path / str(total_steps), policy=policy, critic=critic, total_steps=total_steps, critic_warmup=2, weight_decay=0.5)
        assert torch.equal(weights(policy), before) == (total_steps == 2)
        assert not torch.equal(weights(critic), start)
        state = made[-1].state
        assert {float(state[p]["step"]) for p in critic.parameters()} == {4.0 * total_steps}
        steps = {float(state[p]["step"]) if p in state else 0.0 for p in policy.parameters()}
        assert steps == {4.0 * (total_steps - 2)}


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_killed_run_with_a_shared_critic_resumes_bit_for_bit(warmup: int, tmp_path: Path) -> None:
    """Also from a checkpoint of the warm-up, when the optimizer knows nothing of the policy yet."""
    options: dict[str, Any] = {"total_steps": 7, "save_every": 2, "critic_warmup": warmup, "weight_decay": 0.1}
    found = []
    for name in ("whole", "killed"):
        policy = policy_model()
        head = shared_critic(policy)
        if name == "killed":
            dying = policy_model()
            with pytest.raises(Killed):
                run(tmp_path / name, policy=dying, critic=shared_critic(dying), prompts=KilledAt(16, 1), **options)
        run(tmp_path / name, policy=policy, critic=head, resume=name == "killed", **options)
        found.append((weights(policy), weights(head), logged(tmp_path / name, "objective/scores")))
    (policy, head, scores), (again, head_again, scores_again) = found
    assert torch.equal(policy, again)
    assert torch.equal(head, head_again)
    assert scores == scores_again


@pytest.mark.parametrize("build", [policy_model, gpt2, llama])
def test_the_policy_is_saved_as_a_plain_model_and_the_critic_as_one_of_its_own(build: Any, tmp_path: Path) -> None:
    policy = build()
    head = shared_critic(policy)
    _, _, steps = run(tmp_path, policy=policy, critic=head, total_steps=3)
    assert head.bias.item() != 0.0
    rollout = steps[-1][0]
    logprobs, _, values = response_prices(policy, head, rollout, temperature=1.0)
    saved, critic = load_causal_lm(tmp_path).eval(), load_scalar_model(tmp_path / "critic").eval()
    assert type(saved) is type(policy)
    assert {name for name, _ in saved.named_parameters()} == {name for name, _ in policy.named_parameters()}
    assert torch.equal(response_logprobs(saved, rollout, temperature=1.0)[0], logprobs)
    assert values is not None
    torch.testing.assert_close(response_values(critic, rollout), values, rtol=1e-6, atol=1e-6)  # the bias is added apart
    _, _, more = run(tmp_path / "on", policy=saved, critic=critic, total_steps=1)  # a later run with a critic apart
    assert more[0][1]["val/explained_variance"] > -10


def test_lora_learns_the_adapter_and_the_whole_head_and_the_reference_is_the_base(tmp_path: Path) -> None:
    policy_model().save_pretrained(tmp_path / "base")
    policy = load_causal_lm(tmp_path / "base", lora=Lora(rank=4))
    head = shared_critic(policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    _, _, steps = run(tmp_path / "out", policy=policy, critic=head, reference=None, total_steps=4)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert bool(head.weight.all())
    assert steps[0][1]["objective/kl"] == 0.0
    assert steps[-1][1]["objective/kl"] != 0.0
    rollout = steps[-1][0]
    _, _, values = response_prices(policy, head, rollout, temperature=1.0)
    with policy.disable_adapter():
        _, _, without = response_prices(policy, head, rollout, temperature=1.0)
    assert values is not None
    assert without is not None
    assert (values - without).abs().max() > 1e-3  # the critic reads the adapted trunk
    critic = load_scalar_model(tmp_path / "out" / "critic")
    # Merging adds the product to the weight: another rounding.
    torch.testing.assert_close(response_values(critic, rollout), values, rtol=1e-5, atol=1e-5)
    assert type(unwrap(load_causal_lm(tmp_path / "out"))) is type(unwrap(policy))


def test_an_architecture_whose_critic_could_not_be_saved_is_refused_at_the_start() -> None:
    policy = CodeGenForCausalLM(
        CodeGenConfig(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=16, n_ctx=16, rotary_dim=4, n_inner=32)
    )
    with pytest.raises(InputError, match=r"model.architecture is 'CodeGenForCausalLM', expected an architecture with a sequence"):
        shared_critic(policy)
