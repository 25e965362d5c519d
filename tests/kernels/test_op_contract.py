"""Every op keeps PyTorch's contract: schema, fake, autograd, no recompiling when only the plan changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.ops import providers
from dynabert_kernels.testing.frozen_replay import FrozenReplay
from tests.kernels.cases import DROPOUT_STATE, Network, bias_table, plan_of

NETWORK = Network(width=16, heads=4, size=4, neurons=12, dtype=torch.float32)
STATE = torch.tensor(DROPOUT_STATE)
HAVE = providers.registered()["elastic_linear_bwd"]


def grad(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in tensors]


def sample_calls(name: str, save: bool) -> dict[str, tuple]:
    """Raw arguments of each forward op under the plan ``name``."""
    torch.manual_seed(0)
    plan, borders = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    rows = plan.num_rows
    x = NETWORK.tensor(rows, 16).requires_grad_(save)
    qkv = NETWORK.tensor(rows, 4, 3, 4).requires_grad_(save)
    bias = bias_table(NETWORK, plan.max_seqlen).requires_grad_(save)
    attention, ffn = NETWORK.attention(), NETWORK.ffn()
    tables = [NETWORK.tensor(9, 16), NETWORK.tensor(20, 16), NETWORK.tensor(2, 16), *ffn[4:]]
    if save:
        grad([*attention, *ffn, *tables])
    ids = torch.randint(0, 9, (rows,))
    return {
        "add_layer_norm_fwd": (x, x.detach().clone(), *ffn[4:], 1e-12),
        "elastic_linear_fwd": (
            *(x, ffn[0], ffn[1], None, layer.rows, layer.heads, None),
            *(3, 1, layer.max_heads * 3, 16, 1, save),
        ),
        "varlen_attention_fwd": (
            *(qkv, borders, layer.rows, layer.heads, bias, STATE, layer.max_heads, plan.max_seqlen),
            *(0.5, 0.25, 3, save),
        ),
        "elastic_attention_fwd": (
            *(x, *attention, borders, layer.rows, layer.heads, bias, STATE, layer.max_heads, plan.max_seqlen),
            *(0.5, 1e-12, 0.25, 0.25, 3, save),
        ),
        "elastic_ffn_fwd": (
            *(x, *ffn, layer.rows, layer.neurons, STATE, layer.max_neurons),
            *(1, 1e-12, 0.25, 3, save),
        ),
        "embed_layer_norm_fwd": (*(ids, ids.clone(), None, *tables, layer.rows, STATE, 1e-12, 0.25, 0, 0),),
        "distillation_loss_fwd": (
            *(NETWORK.tensor(rows, 5).requires_grad_(save), NETWORK.tensor(7, 5), layer.rows),
            *((torch.arange(rows) % 8 - 1).to(torch.int32), layer.heads, 0),
        ),
    }


@pytest.mark.parametrize("op", sorted(sample_calls("one token", save=False)))
@pytest.mark.parametrize("plan", ["mixed, not sorted", "a group skips the layer"])
def test_opcheck(op: str, plan: str) -> None:
    args = sample_calls(plan, save=True)[op]
    with dk.use_provider("reference"):
        torch.library.opcheck(getattr(torch.ops.dynabert, op).default, args)


@pytest.mark.parametrize("op", sorted(sample_calls("one token", save=False)))
def test_second_and_forward_mode_derivatives_are_refused(op: str) -> None:
    """Autograd would take the ops' gradients for constants, and their tangents for zeros: wrong without a word."""
    args = sample_calls("mixed, not sorted", save=True)[op]
    function = getattr(torch.ops.dynabert, op).default
    inputs = [argument for argument in args if isinstance(argument, Tensor) and argument.requires_grad]
    with dk.use_provider("reference"):

        def loss() -> Tensor:
            found = function(*args)
            return (found[0] if isinstance(found, (tuple, list)) else found).square().sum()

        once = torch.autograd.grad(loss(), inputs)
        again = torch.autograd.grad(loss(), inputs, create_graph=True)
        for first, second in zip(once, again, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
        name = op.removesuffix("_fwd")
        assert any(gradient.requires_grad for gradient in again)
        for gradient in again:
            if gradient.requires_grad:
                with pytest.raises(RuntimeError, match=f"{name}: no second derivatives .*reference have them"):
                    gradient.square().sum().backward(retain_graph=True)
        place = next(index for index, argument in enumerate(args) if argument is inputs[0])

        def primal(value: Tensor) -> Tensor:
            found = function(*args[:place], value, *args[place + 1 :])
            return found[0] if isinstance(found, (tuple, list)) else found

        with pytest.raises(RuntimeError, match=f"{name}: no forward-mode derivatives"):
            torch.func.jvp(primal, (inputs[0].detach(),), (torch.ones_like(inputs[0]),))


@pytest.mark.parametrize("provider", [name for name in ("reference", "cpu") if name in HAVE])
@pytest.mark.parametrize("op", sorted(sample_calls("one token", save=False)))
def test_autocast_changes_nothing(op: str, provider: str) -> None:
    """No provider computes in another dtype than its arguments have, forward or backward."""
    args = sample_calls("mixed, not sorted", save=True)[op]
    function = getattr(torch.ops.dynabert, op).default
    inputs = [argument for argument in args if isinstance(argument, Tensor) and argument.requires_grad]

    def results() -> list[Tensor]:
        found = function(*args)
        y = found[0] if isinstance(found, (tuple, list)) else found
        return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    with dk.use_provider(provider):
        plain = results()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = results()
    for ours, expected in zip(cast, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "provider",
    [name for name in ("reference", "cpu", "triton") if name in providers.registered()["elastic_linear_bwd"]],
)
def test_a_batch_without_rows_goes_backward(provider: str) -> None:
    """The gradient of a sum has stride 0, and `contiguous` leaves it so where there is nothing to copy."""
    x, weight = NETWORK.tensor(0, 16).requires_grad_(), NETWORK.tensor(12, 16).requires_grad_()
    turned = NETWORK.tensor(16, 4).T[:0].contiguous()
    with dk.use_provider(provider):
        dk.elastic_linear(x, weight).sum().backward()
        dk.add_layer_norm(x, None, NETWORK.tensor(16), NETWORK.tensor(16)).sum().backward()
        assert dk.elastic_linear(turned, weight).shape == (0, 12)
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_one_group_of_all_rows_is_no_number_of_the_host() -> None:
    """Without ``rows`` the borders are made on the device: a copy from the host waits for a GPU and is in no graph."""
    torch.manual_seed(0)
    qkv, x, teacher = torch.randn(7, 2, 3, 16), torch.randn(7, 16), torch.randn(7, 16)
    borders, weight = torch.tensor([0, 3, 7], dtype=torch.int32), torch.randn(5, 16)
    for call in (
        lambda: dk.varlen_attention(qkv, borders, max_seqlen=4),
        lambda: dk.elastic_linear(x, weight),
        lambda: dk.distillation_loss(x, teacher),
    ):
        replay = FrozenReplay(call)
        replay.replay()
        assert torch.equal(replay.output, call())


def test_backward_ops_keep_the_contract() -> None:
    """The backward ops are registered with fakes of their own, so that compiled training needs no graph break."""
    x, w = NETWORK.tensor(5, 16), NETWORK.tensor(16)
    mean, rstd = torch.zeros(5), torch.ones(5)
    with dk.use_provider("reference"):
        torch.library.opcheck(torch.ops.dynabert.add_layer_norm_bwd.default, (x, x.clone(), None, w, mean, rstd))


class Layer(torch.nn.Module):
    """Both sub-layers, as a model calls them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.ParameterList(NETWORK.attention())
        self.ffn = torch.nn.ParameterList(NETWORK.ffn())

    def forward(self, x: Tensor, borders: Tensor, plan: dk.Plan) -> Tensor:
        layer = plan.layer(0)
        x = dk.elastic_attention(x, *self.attention, borders, layer, max_seqlen=plan.max_seqlen)
        return dk.elastic_ffn(x, *self.ffn, layer)


def test_compiles_whole_and_does_not_recompile_for_a_new_plan() -> None:
    torch._dynamo.reset()
    compiles = 0

    def counting_backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        nonlocal compiles
        compiles += 1
        return graph.forward

    module = Layer()
    compiled = torch.compile(module, backend=counting_backend, fullgraph=True, dynamic=True)
    names = ["mixed, widest first", "mixed, not sorted", "uniform, full", "a group skips the layer"]
    groups_of_three = [name for name in names if len(plan_of(name)[0].rows) == 4]
    with dk.use_provider("reference"):
        for name in [*groups_of_three, *groups_of_three]:
            plan, borders = plan_of(name, row_bucket=4)
            x = NETWORK.tensor(plan.num_rows, 16)
            torch.testing.assert_close(compiled(x, borders, plan), module(x, borders, plan))
    assert compiles <= 2, f"{compiles} graphs for {len(groups_of_three)} plans"
    torch._dynamo.reset()


def test_compiled_training_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    module = Layer()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    plan, borders = plan_of("a group skips the layer", row_bucket=4)
    x = NETWORK.tensor(plan.num_rows, 16)
    with dk.use_provider("reference"):
        got = torch.autograd.grad(compiled(x, borders, plan).square().sum(), list(module.parameters()))
        want = torch.autograd.grad(module(x, borders, plan).square().sum(), list(module.parameters()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    torch._dynamo.reset()


@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
def test_a_dead_row_is_never_read(save: bool) -> None:
    """NaN in the rows of no group reaches neither the output nor any gradient."""
    plan, borders = plan_of("mixed, not sorted", row_bucket=32)
    layer = plan.layer(0)
    tokens = int(layer.rows[-1])
    module = Layer()
    x = NETWORK.tensor(plan.num_rows, 16)
    x[tokens:] = float("nan")
    x.requires_grad_(save)
    y = module(x, borders, plan)
    assert not y.isnan().any()
    assert (y[tokens:] == 0).all()
    if save:
        y.square().sum().backward()
        for tensor in [x, *module.parameters()]:
            assert tensor.grad is not None
            assert not tensor.grad.isnan().any()


def test_a_mixed_batch_gives_each_group_what_it_gets_alone() -> None:
    """Dropout included: group g alone, with its index added to the offset, has the same mask."""
    network = Network(width=16, heads=4, size=4, neurons=12, dtype=torch.float64)
    torch.manual_seed(0)
    plan, borders = plan_of("mixed, widest first")
    x, attention, ffn = network.tensor(plan.num_rows, 16), network.attention(), network.ffn()
    keys = {"attention_dropout": 0.2, "hidden_dropout": 0.2}

    def run(x: Tensor, borders: Tensor, plan: dk.Plan, state: Tensor) -> Tensor:
        layer = plan.layer(0)
        y = dk.elastic_attention(x, *attention, borders, layer, max_seqlen=plan.max_seqlen, dropout_state=state, **keys)
        return dk.elastic_ffn(y, *ffn, layer, hidden_dropout=0.2, dropout_state=state, dropout_stream=9)

    together = run(x, borders, plan, STATE)
    rows = plan.layer(0).rows.tolist()
    lengths = [[5, 2], [7], [3, 1]]
    for group, heads in enumerate([4, 2, 1]):
        alone = dk.Plan.uniform(dk.SubnetShape((heads,), (heads * 3,)), lengths[group])
        begin, end = rows[group], rows[group + 1]
        own = torch.tensor([0, *lengths[group]]).cumsum(0).to(torch.int32)
        expected = run(x[begin:end], own, alone, STATE + torch.tensor([0, group]))
        torch.testing.assert_close(together[begin:end], expected)
