"""Gradients of several backwards on a step's copies of the weights are those of casts in every forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynabert.distill.step_weights import StepWeights, compact
from tests.dynabert.tiny_networks import plain_model
from tests.dynabert.tiny_training import elastic

# An id twice, and the padding ids of BERT and RoBERTa inside of a text.
IDS = [[9, 7, 9, 12], [0, 5], [1, 40, 7]]
SUBNETS = ("w0.5-d1", "w1-d0.5", "w1-d1")


def network(folder: Path, architecture: str) -> Any:
    return elastic(plain_model(architecture), folder, torch.float32).eval()


class Holder(nn.Module):
    """A module around the network, as the trainer's step is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, plan: Any) -> Tensor:
        return self.model(batch=batch, plan=plan).logits.float().square().sum()


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def by_casts(module: Holder, batch: Any, plans: list[Any], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """The same sums by autograd alone: every forward casts every weight."""
    module.zero_grad()
    for plan in plans:
        cast = {name: p.to(dtype) for name, p in module.named_parameters()}
        torch.func.functional_call(module, cast, (batch, plan)).backward()
    return gradients(module)


def by_copies(
    weights: StepWeights, module: Holder, batch: Any, plans: list[Any], padding: int, table: bool
) -> dict[str, Tensor | None]:
    module.zero_grad()
    given, rows = compact(batch, padding) if table else (batch, None)
    named = weights.of_launch(rows)
    for plan in plans:
        torch.func.functional_call(module, named, (given, plan)).backward()
    weights.finish()
    return gradients(module)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("table", [False, True], ids=["whole-table", "used-rows"])
def test_gradients_are_those_of_casts(tmp_path: Path, architecture: str, dtype: torch.dtype, table: bool) -> None:
    model = network(tmp_path, architecture)
    module, padding = Holder(model), model.config.padding_idx
    module.model.classifier.requires_grad_(False)
    weights = StepWeights(module, None if dtype == torch.float32 else dtype)
    for ids in (IDS, [[3, 44], [12]]):  # a second step in the same memory: nothing of the first is left in it
        batch, _ = model.pack(ids)
        plans = [model.pack(ids, subnet=subnet)[1] for subnet in SUBNETS]
        wanted = by_casts(module, batch, plans, dtype)
        found = by_copies(weights, module, batch, plans, padding, table)
        for name, gradient in wanted.items():
            if gradient is None:
                assert found[name] is None, name
                continue
            other = found[name]
            assert other is not None, name
            assert other.dtype == torch.float32, name
            # The sums of a row that stands twice in a text may be taken in another order.
            torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
        words = next(g for name, g in found.items() if name.endswith("word_embeddings.weight"))
        assert words is not None
        assert not words[padding].any()
        used = sorted({i for text in ids for i in text} - {padding})
        assert words.any(1).nonzero().flatten().tolist() == used
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.9)  # the next step runs on what the weights are then


def test_compacted_ids_name_the_same_rows(tmp_path: Path) -> None:
    model = network(tmp_path, "roberta")
    batch, _ = model.pack(IDS)
    small, rows = compact(batch, model.config.padding_idx)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [0, 1, 5, 7, 9, 12, 40]
    assert small.input_ids.dtype == batch.input_ids.dtype
    assert torch.equal(rows[small.input_ids.long()], batch.input_ids.long())


def test_a_gradient_that_is_there_is_added_to(tmp_path: Path) -> None:
    model = network(tmp_path, "bert")
    module = Holder(model)
    batch, _ = model.pack(IDS)
    plans = [model.pack(IDS, subnet="w1-d1")[1]]
    weights = StepWeights(module, torch.bfloat16)
    once = by_copies(weights, module, batch, plans, 0, True)
    given, rows = compact(batch, 0)
    torch.func.functional_call(module, weights.of_launch(rows), (given, plans[0])).backward()
    weights.finish()
    for name, gradient in gradients(module).items():
        single = once[name]
        assert gradient is not None
        assert single is not None
        torch.testing.assert_close(gradient, 2.0 * single)


def test_weights_may_be_frozen_let_go_and_replaced_between_steps(tmp_path: Path) -> None:
    module = Holder(network(tmp_path, "bert"))
    layers = module.model.encoder.layers
    batch, _ = module.model.pack(IDS)
    plans = [module.model.pack(IDS, subnet="w1-d1")[1]]
    weights = StepWeights(module, torch.bfloat16)
    layers[0].ffn_in_weight.requires_grad_(False)
    by_copies(weights, module, batch, plans, 0, True)
    assert layers[0].ffn_in_weight.grad is None
    assert layers[1].ffn_in_weight.grad is not None
    layers[0].ffn_in_weight.requires_grad_(True)
    layers[1].ffn_in_weight.requires_grad_(False)
    layers[2].ffn_in_weight = nn.Parameter(layers[2].ffn_in_weight.detach() * 0.5)
    wanted = by_casts(module, batch, plans, torch.bfloat16)
    found = by_copies(weights, module, batch, plans, 0, True)
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))
    assert layers[1].ffn_in_weight.grad is None
    assert layers[2].ffn_in_weight.grad is not None
