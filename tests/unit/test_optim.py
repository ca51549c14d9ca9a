from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from rlhf_kit.errors import InputError
from rlhf_kit.training.optim import clip_grad_norm, lr_at, make_optimizer, set_learning_rate


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(self.norm(self.embed(ids))) * self.gain)


def test_matrices_and_embeddings_decay_once_and_nothing_else_does() -> None:
    model = Tied()
    decaying, plain = make_optimizer(model, learning_rate=0.1, weight_decay=0.5).param_groups
    assert {id(p) for p in decaying["params"]} == {id(model.embed.weight), id(model.linear.weight)}
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (model.norm.weight, model.norm.bias, model.linear.bias, model.gain)
    }
    assert len(decaying["params"]) == 2
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


def test_its_steps_are_those_of_adamw_written_out() -> None:
    torch.manual_seed(1)
    model = nn.Linear(3, 2).double()
    weight, bias = (p.detach().clone() for p in (model.weight, model.bias))
    lr, decay, betas, eps = 1e-2, 0.3, (0.8, 0.9), 1e-6
    optimizer = make_optimizer(model, learning_rate=lr, weight_decay=decay, betas=betas, eps=eps)
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)), (torch.zeros_like(bias), torch.zeros_like(bias))]
    for t in range(1, 6):
        model.zero_grad()
        (model(torch.randn(4, 3, dtype=torch.float64)) ** 2).sum().backward()
        grads = [model.weight.grad.clone(), model.bias.grad.clone()]
        optimizer.step()
        for i, (x, g, d) in enumerate(zip((weight, bias), grads, (decay, 0.0))):
            m, v = moments[i]
            m.mul_(betas[0]).add_((1 - betas[0]) * g)
            v.mul_(betas[1]).add_((1 - betas[1]) * g * g)
            x.mul_(1 - lr * d).sub_(lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps))
    torch.testing.assert_close(model.weight, weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.bias, bias, rtol=1e-12, atol=1e-14)


def test_a_wholly_frozen_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected at least one parameter that requires a gradient"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), learning_rate=0.1)


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = make_optimizer(Tied(), learning_rate=0.1)
    set_learning_rate(optimizer, 0.03)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_every_schedule_warms_up_from_above_zero_and_then_reaches_one(schedule: str) -> None:
    rates = [lr_at(s, 100, warmup_steps=4, schedule=schedule) for s in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=1e-15)


def test_cosine_is_its_closed_form_and_ends_at_the_final_fraction() -> None:
    expected = [0.1 + 0.9 * math.cos(math.pi * k / 160) ** 2 for k in range(80)]  # (1 + cos 2x)/2 = cos^2 x
    assert [lr_at(20 + k, 100, 20, "cosine", 0.1) for k in range(80)] == pytest.approx(expected, rel=1e-14)
    assert lr_at(60, 100, 20, "cosine", 0.1) == pytest.approx(0.55)
    assert lr_at(100, 100, 20, "cosine", 0.1) == lr_at(500, 100, 20, "cosine", 0.1) == pytest.approx(0.1)


def test_linear_falls_by_equal_steps() -> None:
    rates = [lr_at(s, 10, 0, "linear") for s in range(11)]
    assert rates == pytest.approx([1 - s / 10 for s in range(11)], abs=1e-15)


def test_wsd_is_flat_until_the_last_fraction() -> None:
    rates = [lr_at(s, 10, 2, "wsd", final_fraction=0.2, decay_fraction=0.4) for s in range(11)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], rel=1e-14)


def test_constant_stays() -> None:
    assert {lr_at(s, 10, 0, "constant") for s in range(12)} == {1.0}


def test_a_wsd_decay_longer_than_what_the_warmup_leaves_starts_after_the_warmup() -> None:
    assert lr_at(8, 10, 8, "wsd", decay_fraction=1.0) == 1.0
    assert lr_at(9, 10, 8, "wsd", decay_fraction=1.0) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"total_steps": 10, "warmup_steps": 10}, "warmup_steps is 10"),
        ({"total_steps": 10, "schedule": "cosin"}, "schedule is 'cosin', expected one of"),
        ({"total_steps": 10, "final_fraction": 1.5}, "final_fraction is 1.5"),
        ({"total_steps": 10, "decay_fraction": -0.1}, "decay_fraction is -0.1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lr_at(3, **arguments)


def with_grads(*grads: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for g in grads]
    for parameter, grad in zip(parameters, grads):
        parameter.grad = torch.tensor(grad, dtype=torch.float64)
    return parameters


def test_clipping_scales_all_gradients_alike_and_returns_the_norm_from_before() -> None:
    parameters = with_grads([3.0], [0.0, 4.0])
    assert clip_grad_norm([*parameters, nn.Parameter(torch.ones(2))], 1.0) == 5.0
    # torch divides by norm + 1e-6, hence not 0.6 to the last digit
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_norm", [5.1, None])
def test_gradients_within_the_limit_are_left_alone(max_norm: float | None) -> None:
    parameters = with_grads([3.0], [0.0, 4.0])
    assert clip_grad_norm(parameters, max_norm) == 5.0
    assert [p.grad.tolist() for p in parameters] == [[3.0], [0.0, 4.0]]


def test_one_nan_makes_the_norm_nan() -> None:
    assert math.isnan(clip_grad_norm(with_grads([3.0], [float("nan")]), None))


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_parameters_on_several_meshes_are_clipped_and_stepped_as_plain_ones() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    values = [torch.randn(4, 2, dtype=torch.float64) for _ in range(3)]
    grads = [torch.randn(4, 2, dtype=torch.float64) for _ in range(3)]
    plain, mixed = nn.ParameterList([nn.Parameter(v.clone()) for v in values]), nn.ParameterList()
    for value, where in zip(values, (None, mesh["dp"], mesh["tp"])):
        mixed.append(nn.Parameter(value.clone() if where is None else distribute_tensor(value.clone(), where, [Shard(0)])))
    for p, q, g in zip(plain, mixed, grads):
        p.grad = g.clone()
        q.grad = g.clone() if not hasattr(q, "device_mesh") else distribute_tensor(g.clone(), q.device_mesh, [Shard(0)])
    norms = []
    for parameters in (plain, mixed):
        optimizer = make_optimizer(parameters, learning_rate=0.1, weight_decay=0.1)
        norms.append(clip_grad_norm(parameters.parameters(), 0.5))
        optimizer.step()
    assert norms[0] == pytest.approx(norms[1], rel=1e-14)
    for p, q in zip(plain, mixed):
        whole = q.full_tensor() if hasattr(q, "full_tensor") else q
        torch.testing.assert_close(whole, p, rtol=1e-12, atol=1e-14)
