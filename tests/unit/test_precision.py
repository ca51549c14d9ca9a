"""Which precision a run computes in, where it is left to the machine."""

from typing import Any

import pytest
import torch

from rlhf_kit.training import precision
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.precision import agree_on_precision, bf16_speedup, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("speedup", "chosen"), [(0.9, "fp32"), (1.4, "fp32"), (1.6, "bf16"), (4.0, "bf16")])
def test_a_cpu_computes_in_bf16_only_where_that_is_clearly_faster(speedup: float, chosen: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    assert resolve_precision("auto", CPU) == chosen
    assert agree_on_precision("auto", make_accelerator()) == chosen
    assert (resolve_precision("bf16", CPU), resolve_precision("fp32", CPU)) == ("bf16", "fp32")  # what is asked for stands


def test_the_speedup_is_measured_on_real_products(monkeypatch: Any) -> None:
    shapes: list[tuple[Any, ...]] = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: (shapes.append((a.dtype, *a.shape)), product(a, b))[1])
    assert 0.01 < bf16_speedup() < 100
    assert set(shapes) == {(torch.float32, 512, 512), (torch.bfloat16, 512, 512)}
