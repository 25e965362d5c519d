"""``plan_table``: a plan built where its lengths and widths are, without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import Plan, SubnetShape
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define


def _fake(seqlens: Tensor, group_sizes: Tensor, heads: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
    groups, layers = heads.shape
    return seqlens.new_empty(groups + 1 + 2 * groups * layers), seqlens.new_empty(seqlens.shape[0] + 1)


_plan_table = define(
    "plan_table",
    "(Tensor seqlens, Tensor group_sizes, Tensor heads, Tensor neurons) -> (Tensor table, Tensor cu_seqlens)",
    reference=reference.plan_table,
    fake=_fake,
)


def _check_counts(op: str, name: str, counts: Tensor, groups: int, layers: int | None, device: torch.device) -> None:
    checks.shape(op, name, counts, (groups, layers), "(G, L)")
    if counts.dtype != torch.int32:
        raise TypeError(f"{op}: {name} is {counts.dtype}; allowed: torch.int32")
    if counts.device != device:
        raise ValueError(f"{op}: {name} is on {counts.device}, seqlens on {device}; put both on one device")
    if not counts.is_contiguous():
        raise ValueError(f"{op}: {name} has strides {counts.stride()}; allowed: contiguous; call .contiguous()")


def plan_table(seqlens: Tensor, group_sizes: Tensor, heads: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """The table of a :class:`Plan` and the borders of its sequences, from numbers on the device.

    ``seqlens``: (B,) int32, tokens of each sequence in packing order; 0 for a place that is not used.
    ``group_sizes``: (G,) int32, how many sequences in a row belong to each group; sequences past the last group belong
    to none. ``heads``, ``neurons``: (G, L) int32, contiguous, active in each layer, both 0 where it is skipped.

    Returns the table, ``G + 1 + 2*G*L`` int32 (group borders, then for each layer heads and neurons of all groups), and
    ``cu_seqlens`` (B+1,) int32. Both are what :meth:`Plan.build` makes of the same numbers.

    Exact and deterministic, not differentiable. Does not synchronise: one small kernel (``cuda``), so lengths and
    sub-networks change inside a captured CUDA graph. On a GPU the numbers are the caller's duty; whatever they are, no
    foreign memory is read. On a CPU, where ``cpu`` computes it, they are checked.

    Raises ``ValueError`` on a shape or device that does not match and (provider ``cpu``) on a negative number, groups
    of more than B sequences, a layer with heads or neurons alone, or more than 2^31-1 tokens; ``TypeError`` on a dtype
    other than int32.
    """
    op = "plan_table"
    if not isinstance(seqlens, Tensor):
        raise TypeError(f"{op}: seqlens must be a tensor (B,); got {type(seqlens).__name__}")
    device = seqlens.device
    checks.indices(op, "seqlens", seqlens, device, torch.int32)
    checks.indices(op, "group_sizes", group_sizes, device, torch.int32)
    groups = group_sizes.shape[0]
    if groups == 0:
        raise ValueError(f"{op}: no group given; give at least one")
    _check_counts(op, "heads", heads, groups, None, device)
    _check_counts(op, "neurons", neurons, groups, heads.shape[1], device)
    return _plan_table(seqlens, group_sizes, heads, neurons)


def plan_on_device(
    seqlens: Tensor,
    group_sizes: Tensor,
    heads: Tensor,
    neurons: Tensor,
    *,
    bounds: SubnetShape,
    max_seqlen: int,
    num_rows: int,
) -> tuple[Plan, Tensor]:
    """A :class:`Plan` and its ``cu_seqlens`` from numbers on the device; the host knows only bounds of them.

    ``seqlens``, ``group_sizes``, ``heads``, ``neurons``: tensors as in :func:`plan_table`.
    ``bounds``: at least the heads and neurons of every group, layer by layer (the
    widest sub-network that may come). ``max_seqlen``: at least the longest sequence. ``num_rows``: rows of the packed
    batch, at least the tokens of all sequences; rows past the last border belong to no group.

    Bounds size grids and buffers: a loose one costs time, a bound that is too small is the caller's error and is not
    seen on a GPU. Does not synchronise.

    Raises what :func:`plan_table` does, ``ValueError`` when the bounds have another number of layers than ``heads``
    or ``max_seqlen`` or ``num_rows`` is out of range, and ``TypeError`` when ``bounds`` is no :class:`SubnetShape`.
    """
    op = "plan_on_device"
    if not isinstance(bounds, SubnetShape):
        raise TypeError(f"{op}: bounds must be a SubnetShape; got {type(bounds).__name__}")
    for name, value in (("max_seqlen", max_seqlen), ("num_rows", num_rows)):
        if not 0 <= value < 2**31:
            raise ValueError(f"{op}: {name} is {value}; allowed: 0 to 2147483647")
    table, cu_seqlens = plan_table(seqlens, group_sizes, heads, neurons)
    if bounds.num_layers != heads.shape[1]:
        raise ValueError(
            f"{op}: bounds has {bounds.num_layers} layers, heads has {heads.shape[1]}; give a bound for each layer"
        )
    plan = Plan(table, group_sizes.shape[0], bounds.heads, bounds.neurons, max_seqlen, num_rows)
    return plan, cu_seqlens


__all__ = ["plan_on_device", "plan_table"]
