"""The weights that the forwards of a step run on: each is copied once, whatever the number of sub-networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynabert_kernels import PackedBatch

WORD_TABLE = "word_embeddings.weight"


class StepWeights:
    """Copies of a module's weights, leaves of the forwards that run on them, whose gradients reach the module's own.

    A backward's gradient of a copy is added to the weight's ``.grad``, in the weight's dtype, as soon as it is there;
    the copy keeps none. So half precision costs one cast of each weight a launch, and the sum over sub-networks is in
    float32. Copies and gradients lie in the same memory at every step: fresh memory costs more than what is done in it.
    So a ``.grad`` that is kept from an earlier step is overwritten; clone it.

    Args:
        module: whose weights.
        dtype: of the copies; None: the module's own. A weight whose dtype stays is not copied.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        self.module, self._dtype = module, dtype
        self._copies: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._wide: Tensor | None = None
        self._rows: Tensor | None = None
        self._sum: Tensor | None = None

    def of_launch(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What `torch.func.functional_call` takes: the weights as they are now. Call `finish` after the last backward.

        ``rows``: (U,) sorted int64 or None: only these rows of the word table take part, see `compact`. The gradient
        of a table of tens of thousands of rows, of which a launch reads a few hundred, is then made once, and not once
        for each sub-network.
        """
        named: dict[str, Tensor] = {}
        self._rows = rows
        for name, parameter in self.module.named_parameters():
            dtype = self._dtype or parameter.dtype
            if rows is not None and name.endswith(WORD_TABLE):
                leaf = parameter.detach().index_select(0, rows).to(dtype)
                if parameter.requires_grad:
                    self._sum = torch.zeros_like(leaf, dtype=parameter.dtype)
                    _hooked(leaf.requires_grad_(), self._sum.add_)
                named[name] = leaf
            elif parameter.dtype != dtype:
                named[name] = self._copy(name, parameter, dtype)
        return named

    def _copy(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        kept = self._copies.get(name)
        if kept is None or kept.shape != parameter.shape or kept.device != parameter.device:
            kept = self._copies[name] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        # A leaf of its own every time: a weight may be frozen, let go or replaced between two steps.
        leaf = kept.copy_(parameter.detach()).detach()
        if parameter.requires_grad:
            _hooked(leaf.requires_grad_(), lambda gradient: self._add(name, parameter, gradient))
        return leaf

    def _add(self, name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        if parameter.grad is None:
            parameter.grad = self._memory(name, parameter).copy_(gradient)
            return
        if self._wide is None or self._wide.numel() < gradient.numel() or self._wide.device != gradient.device:
            self._wide = torch.empty(gradient.numel(), dtype=parameter.dtype, device=gradient.device)
        parameter.grad += self._wide[: gradient.numel()].view_as(gradient).copy_(gradient)

    def _memory(self, name: str, parameter: nn.Parameter) -> Tensor:
        kept = self._gradients.get(name)
        if kept is None or kept.shape != parameter.shape or kept.device != parameter.device:
            kept = self._gradients[name] = torch.empty_like(parameter, requires_grad=False)
        return kept

    def finish(self) -> None:
        """Adds the word table's rows to its gradient."""
        rows, total, self._rows, self._sum = self._rows, self._sum, None, None
        if rows is None or total is None:
            return
        for name, parameter in self.module.named_parameters():
            if name.endswith(WORD_TABLE):
                if parameter.grad is None:
                    parameter.grad = self._memory(name, parameter).zero_()
                parameter.grad.index_add_(0, rows, total)


def compact(batch: PackedBatch, padding_idx: int) -> tuple[PackedBatch, Tensor]:
    """The batch with ids into the rows that it uses, and those rows of the word table, (U,) sorted int64.

    The rows up to ``padding_idx`` are always there, so that the padding's row keeps its number. Reads the number of
    different ids back from the device.
    """
    first = torch.arange(padding_idx + 1, dtype=batch.input_ids.dtype, device=batch.device)
    rows, places = torch.cat([first, batch.input_ids]).unique(return_inverse=True)
    ids = places[padding_idx + 1 :].to(batch.input_ids.dtype)
    return replace(batch, input_ids=ids), rows.to(torch.int64)


def _hooked(leaf: Tensor, add: Callable[[Tensor], object]) -> None:
    """From now on a gradient of the leaf goes to ``add`` and is dropped."""

    def hook(made: Tensor) -> None:
        gradient, made.grad = made.grad, None
        if gradient is not None:
            add(gradient)

    leaf.register_post_accumulate_grad_hook(hook)
