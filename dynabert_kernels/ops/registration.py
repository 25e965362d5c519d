"""Registers an op with PyTorch: one schema, one fake, every provider, one way to save for the backward.

The schema string is written once, in Python. It defines ``dynabert::name`` (which chooses the provider) and
``dynabert_cpu::name`` and ``dynabert_cuda::name`` (which the native library fills in). So no provider can drift from
the signature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynabert_kernels.ops import providers

_chooser = torch.library.Library("dynabert", "DEF")
_native = {name: torch.library.Library(f"dynabert_{name}", "DEF") for name in ("cpu", "cuda")}
OP_NAMES: list[str] = []


def define(name: str, signature: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Defines ``dynabert::name`` with ``signature`` and returns the callable op.

    ``reference``: the definition, registered as the provider of that name. ``fake``: shapes and dtypes of the result.
    """
    for library in (_chooser, *_native.values()):
        library.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    providers.register(name, "reference", without_autocast(reference))

    public = name.removesuffix("_fwd")

    def chosen(*args: Any) -> Any:
        if forward_ad._current_level >= 0:  # PyTorch would drop the tangents: the derivatives would be zeros
            raise RuntimeError(
                f"{public}: no forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad); take reverse mode "
                "(backward, torch.autograd.grad), or the functions of dynabert_kernels.reference"
            )
        return providers.choose(name, args).function(*args)

    for key in ("CPU", "CUDA"):
        _chooser.impl(name, chosen, key)
    torch.library.register_fake(f"dynabert::{name}", fake, lib=_chooser)
    OP_NAMES.append(name)
    return getattr(torch.ops.dynabert, name).default


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which is plain PyTorch, in the dtypes that it was given. Autocast would round the operands of its
    products, and the result would be of another dtype than the fake says and every other provider gives."""

    @functools.wraps(function)
    def exact(*args: Any) -> Any:
        device = next(argument.device.type for argument in args if isinstance(argument, Tensor))
        if not torch.is_autocast_enabled(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return exact


def transforming() -> bool:
    """Inside ``torch.func.grad``, ``vmap`` or their like. They differentiate a Function, but no custom op."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class _Once(torch.autograd.Function):
    """A gradient that depends on what it was made from, but cannot be differentiated: a second derivative is refused,
    where autograd would take the gradient for a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op_name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.op_name}: no second derivatives (gradient penalties, Hessians); the functions of "
            "dynabert_kernels.reference have them"
        )


def differentiate(
    name: str,
    *,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers the gradient of ``dynabert::name``. Returns what calls the op, in torch.func's transforms too."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # A saved tensor's gradient is never asked for: without this, zeros as large as the activations are made.
        ctx.set_materialize_grads(False)
        # The backward may run in another thread, which does not see the caller's context.
        ctx.forced_provider = providers.forced_provider()
        setup(ctx, inputs, output)

    def forced_backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.forced_provider is None:
            return backward(ctx, *gradients)
        with providers.use_provider(ctx.forced_provider):
            return backward(ctx, *gradients)

    def once_differentiable(ctx: Any, *gradients: Any) -> Any:
        if not torch.is_grad_enabled():  # no create_graph: nothing will be differentiated again
            return forced_backward(ctx, *gradients)
        with torch.no_grad():
            found = forced_backward(ctx, *gradients)
        origins = [tensor for tensor in (*gradients, *ctx.saved_tensors) if requires_gradient(tensor)]
        if not origins:
            return found
        public = name.removesuffix("_fwd")
        if not isinstance(found, tuple):
            return _Once.apply(public, found, *origins)
        return tuple(_Once.apply(public, one, *origins) if isinstance(one, Tensor) else one for one in found)

    op = getattr(torch.ops.dynabert, name).default
    torch.library.register_autograd(f"dynabert::{name}", once_differentiable, setup_context=setup_context, lib=_chooser)
    methods = {"forward": op, "setup_context": setup_context, "backward": once_differentiable}
    transformed: Any = type(
        f"_{name}",
        (torch.autograd.Function,),
        {"generate_vmap_rule": True, **{key: staticmethod(method) for key, method in methods.items()}},
    )

    def call(*args: Any) -> Any:
        return transformed.apply(*args) if transforming() else op(*args)

    return call


def dense_gradient(gradient: Tensor) -> Tensor:
    """``gradient`` with a last stride of 1. ``sum().backward()`` delivers stride 0, which no kernel reads."""
    if gradient.numel() == 0:  # `contiguous` takes any strides of it for dense
        return gradient.clone(memory_format=torch.contiguous_format)
    if gradient.stride(-1) == 1 and all(stride != 0 for stride in gradient.stride()):
        return gradient
    return gradient.contiguous()


def requires_gradient(tensor: Tensor | None) -> bool:
    """Whether ``tensor`` is differentiated, also where ``vmap`` hides it: its tensors say no, whatever they are of."""
    if tensor is None or tensor.requires_grad or not transforming():
        return tensor is not None and tensor.requires_grad
    while not tensor.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def needs_save(*tensors: Tensor | None) -> bool:
    """Whether the forward must keep what the backward reads."""
    if not torch.is_grad_enabled():
        return False
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return True
    return transforming() and any(requires_gradient(tensor) for tensor in tensors)
