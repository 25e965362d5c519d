"""Works on a step of distillation: four widths with one teacher, gradients summed, against a loop over the widths.

The loop is plain PyTorch on views of the same weights, as `benchmarks.training_step` has it: transformers' computation,
which itself has no widths. Ours and the loop keep float32 weights and run on copies in the run's dtype, by the same
`StepWeights`, so casts cost both the same. Only texts of equal length: nobody pads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu_peers.peers import Ids
from benchmarks.training_step import Losses, plain_forward
from dynabert.distill.losses import run_teacher
from dynabert.distill.step_weights import StepWeights
from dynabert.modeling.stacking import stack
from dynabert_kernels import SubnetShape

from .contender import OURS, Answer, Call, Contender, Work, compiled, step_begins
from .setting import WIDTHS, Model, Setting, encoder_operations, in_float32, subnet

LOOP = "loop, eager"
# With the compiler's CUDA graphs, which copy weights and states into their own memory, and without. The faster counts.
COMPILED_LOOPS = ("loop, compile", "loop, compile without graphs")
IN_TWO = f"{OURS} in two micro-batches"


def shapes_of(model: Model) -> list[SubnetShape]:
    """The four widths at full depth, widest first."""
    return [model.shape(subnet(width)) for width in WIDTHS]


def gradients_of(student: Model) -> Callable[[Any], Answer]:
    """The summed gradients that a step left in the student, and its loss. Copies: the next step overwrites them."""

    def read(loss: Any) -> Answer:
        found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        return {"loss": loss.detach().float().reshape(1), **found}

    return read


def our_step(setting: Setting, student: Model, teacher: Model, ids: Ids, launches: int) -> Call:
    """As the trainer does it: packed, one forward of the teacher and one launch of all widths for each micro-batch."""
    shapes, weights = shapes_of(student), StepWeights(Losses(student), setting.dtype)
    size = -(-len(ids) // launches)
    parts = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
    packed = [(student.pack(part)[0], [len(text) for text in part]) for part in parts]
    tokens = sum(map(len, ids))

    def run() -> Tensor:
        student.zero_grad()
        total = torch.zeros((), device=setting.device)
        for batch, lengths in packed:
            output = run_teacher(teacher, batch, lengths, shapes)
            given = (stack(batch, lengths, shapes), output)
            found: Any = torch.func.functional_call(weights.module, weights.of_launch(), given, {"first": 0})
            loss = found.weighted(
                logit_weight=1.0,
                hidden_weight=1.0,
                num_sequences=len(ids),
                hidden_numbers=tokens * student.config.hidden_size,
            ).sum()
            loss.backward()
            weights.finish()
            total += loss.detach()
        return total

    return run


class LoopLosses(nn.Module):
    """One width's loss on a batch without padding, in plain PyTorch."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, told: Sequence[Tensor], target: Tensor, shape: SubnetShape) -> Tensor:
        """A number, in float32."""
        states, logits = plain_forward(self.model, ids, None, shape)
        loss = -(target * torch.log_softmax(logits.float(), 1)).sum(1).mean()
        for state, other in zip(states, told, strict=True):
            loss = loss + (state.float() - other.float()).square().sum() / other.numel()
        return loss


def loop_step(setting: Setting, student: Model, teacher: Model, ids: Ids, mode: str, dtype: torch.dtype) -> Call:
    """Each width's forward, loss and backward in turn; the teacher runs once. ``mode``: a contender's name."""
    compile_it, graphs = mode in COMPILED_LOOPS, mode == COMPILED_LOOPS[0]
    module = LoopLosses(student)
    weights = StepWeights(module, dtype)
    rows = torch.tensor([list(text) for text in ids], device=setting.device)
    whole = teacher.shape(None)

    def tell(ids: Tensor) -> tuple[list[Tensor], Tensor]:
        states, logits = plain_forward(teacher, ids, None, whole)
        return states, torch.softmax(logits.float(), 1)

    def losses(shape: SubnetShape) -> Callable[..., Tensor]:
        def loss(named: dict[str, Tensor], ids: Tensor, told: Sequence[Tensor], target: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(module, named, (ids, told, target, shape))
            return found

        return compiled(setting, loss, graphs) if compile_it else loss

    told_by: Callable[..., Any] = compiled(setting, tell, graphs) if compile_it else tell
    by_width = [losses(shape) for shape in shapes_of(student)]

    def run() -> Tensor:
        student.zero_grad()
        if graphs:
            step_begins()
        with torch.no_grad():
            told, target = told_by(rows)
            if graphs:  # the compiler's graphs reuse the memory of what they returned
                told, target = [state.clone() for state in told], target.clone()
        total = torch.zeros((), device=setting.device)
        named = weights.of_launch()
        for loss_of in by_width:
            if graphs:
                step_begins()
            loss = loss_of(named, rows, told, target)
            loss.backward()
            total += loss.detach()
        weights.finish()
        return total

    return run


def step_operations(setting: Setting, ids: Ids) -> int:
    """Products of four forwards and backwards, and of the teacher's forward."""
    layers, shape = setting.networks["base"]
    total = encoder_operations(setting, "base", ids, [1.0] * len(ids))
    for width in WIDTHS:
        forward = encoder_operations(setting, "base", ids, [width] * len(ids))
        inner = round(shape.heads * width) * shape.head_size
        scores = layers * sum(4 * len(text) ** 2 * inner for text in ids)
        # Backward: two products for each; of attention's two five, since it forms the scores again.
        total += forward + 2 * (forward - scores) + 5 * scores // 2
    return total


def distillation(setting: Setting, count: int, allowed: float) -> Work:
    """A step on ``count`` texts of 128 tokens."""
    ids = setting.batch(count, 128)
    student: list[Model] = []

    def pupil() -> Model:
        if not student:
            student.append(in_float32(setting.model("base")))
            student[0].requires_grad_(True)
        return student[0]

    def teacher() -> Model:
        return setting.model("base", setting.seed + 1)

    def wanted() -> Answer:
        exact = in_float32(teacher())
        loss = loop_step(setting, pupil(), exact, ids, LOOP, torch.float32)()
        return gradients_of(pupil())(loss)

    def contender(name: str, build: Callable[[], Call]) -> Contender:
        return Contender(
            name, build, answer=lambda loss: gradients_of(pupil())(loss), operations=step_operations(setting, ids)
        )

    def loop(name: str) -> Callable[[], Call]:
        return lambda: loop_step(setting, pupil(), teacher(), ids, name, setting.dtype)

    return Work(
        f"distillation {count} x 128",
        f"four widths and a teacher, BERT-base, {count} x 128 tokens, forward and backward",
        [
            contender(f"{OURS} in one", lambda: our_step(setting, pupil(), teacher(), ids, 1)),
            contender(IN_TWO, lambda: our_step(setting, pupil(), teacher(), ids, 2)),
            *(contender(name, loop(name)) for name in (LOOP, *COMPILED_LOOPS)),
        ],
        {"all": wanted},
        allowed,
        gradients=True,
        memory=True,
        tokens=sum(map(len, ids)),
        padded_tokens=sum(map(len, ids)),
    )
