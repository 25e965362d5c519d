"""A distillation step of four widths with its teacher: all in one launch, beside the loop of a careful PyTorch user."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu_peers.networks import make_networks, operations
from benchmarks.gpu_peers.works import WIDTHS, Goal, Run, Setting, Work, ratio, share
from benchmarks.training_step import Model, our_step, plain_forward, plain_step

SUBNETS = tuple(f"w{width}" for width in WIDTHS)
ONE, TWO, LOOP, COMPILED = "ours", "ours, two micro-batches", "torch loop", "torch loop, compiled"


def distillation(setting: Setting, count: int, goals: tuple[tuple[float, float], tuple[float, float]]) -> Work:
    """Forward and backward of four widths and the teacher's forward, texts of 128 tokens. Answers are the summed loss
    and the norms of three gradients, to be held against the plain loop's."""
    name = "tiny" if setting.rehearse else "base"
    student, teacher = (make_networks(name, setting.device, setting.dtype).ours for _ in range(2))
    with torch.no_grad():
        for parameter in student.parameters():  # else there is nothing to learn
            parameter.mul_(1.01)
    batch = setting.texts([128] * count)
    half = max(1, len(batch) // 2)
    compiled = setting.compiled(plain_forward, graphs=False)

    def stepped(step: Callable[[], Tensor]) -> Run:
        def run() -> Tensor:
            student.zero_grad(set_to_none=True)
            return _answer(step(), student)

        return run

    def ours(parts: list[list[list[int]]]) -> Run:
        def step() -> Tensor:
            found = [our_step(student, teacher, part, True, subnets=SUBNETS, of_batch=batch) for part in parts]
            return torch.stack(found).sum()

        return stepped(step)

    def loop(forward: Callable[..., tuple[list[Tensor], Tensor]] = plain_forward) -> Run:
        return stepped(lambda: plain_step(student, teacher, batch, None, subnets=SUBNETS, forward=forward))

    lengths = [len(text) for text in batch]
    work = operations(teacher, teacher.shape(None), lengths)
    work += 3 * sum(operations(student, student.shape(subnet), lengths) for subnet in SUBNETS)
    held = [
        Goal("torch loop / ours", ratio(LOOP, ONE), *goals[0], most=False),
        Goal("torch loop, compiled / ours", ratio(COMPILED, ONE), *goals[1], most=False),
        Goal("peak bytes, two micro-batches / loop", ratio(f"bytes: {TWO}", f"bytes: {LOOP}"), 0.7, 0.5),
        Goal("peak bytes, one / loop", ratio(f"bytes: {ONE}", f"bytes: {LOOP}"), 1.3, 1.0),
    ]
    if count >= 128:
        held.append(Goal("share of the matrix ceiling", share(ONE, work, setting), 0.55, 0.62, most=False))
    return Work(
        f"distillation step, four widths, {count} x 128",
        {
            LOOP: loop,
            COMPILED: lambda: loop(compiled),
            ONE: lambda: ours([batch]),
            TWO: lambda: ours([batch[:half], batch[half:]]),
        },
        lambda _: loop(),
        tuple(held),
        facts={"operations": work},
        training=True,
    )


def _answer(loss: Tensor, student: Model) -> Tensor:
    """(4,): the loss, and the norm of the gradient of a weight of the first layer, the last layer and the head, each
    over the number of its entries' root, so that none drowns in another."""
    first, last = student.encoder.elastic_layers[0], student.encoder.elastic_layers[-1]
    weights = (first.qkv_weight, last.ffn_out_weight, student.classifier.out_proj.weight)
    norms = [weight.grad.float().norm() for weight in weights if weight.grad is not None]
    return torch.stack([loss.detach().float(), *norms])
