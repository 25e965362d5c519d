"""What each sub-network is told by its teacher: soft cross-entropy of the logits, squared error of the hidden states,
and, where it is asked for, the relations between the last layer's queries, keys and values (`relations`).

    SCE = - mean over sequences of sum_c softmax(t)_c log_softmax(s)_c
    HID = sum over states j of MSE(student state j, teacher state K[j])

A sentence embedder has vectors in the place of logits:

    EMB = mean over sequences of sum_c (s_c - t_c)^2, which is 2 - 2 cos(s, t) where vectors have length 1

DynaBERT, arXiv 2004.04037, section 2.2. The student's states are what enters each layer that the sub-network keeps, and
the last; K[j] is what enters the same layer of the teacher, and its last. So the two are compared layer by layer in
place: a group that skips a layer has no loss there. A student of fewer layers than its teacher was cut out of the same
network: its layer's place there (``config.layer_index``) says which layer of the teacher is the same.

Everything here adds up; nothing is divided but in `distillation_losses`. A mean runs over a whole optimiser step, and
only the trainer knows how many sequences and tokens that has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import dynabert_kernels as dk
from dynabert.configuration import ElasticBertConfig, Subnet, SubnetConfig
from dynabert.data.examples import MULTI_LABEL, REGRESSION
from dynabert.distill.relations import Relations, chunks_of, project, relation_sum, resolved_relation_heads
from dynabert.modeling.inputs import pack_padded
from dynabert.modeling.model import ElasticBertForSequenceClassification, check_classifier
from dynabert.modeling.sentence_embedding import ElasticBertForSentenceEmbedding
from dynabert.modeling.stacking import Stack, stack
from dynabert_kernels import PackedBatch, SubnetShape

Network: TypeAlias = ElasticBertForSequenceClassification | ElasticBertForSentenceEmbedding

TEACHER_WIDTHS = ("full", "same")
STEPS = ("stacked", "loop")


@dataclass(frozen=True, eq=False)
class LossSums:
    """Sums for each of ``S`` sub-networks, (S,), float32 (float64 for a float64 student), differentiable.

    ``logits``: over sequences (for several outputs of a regression: their mean), or None where it was not asked for.
    ``hidden``: over states, tokens and features, or None. ``task``: of the task's own loss over sequences, or None.
    ``relation``: of the relations' loss over sequences, or None. ``embedding``: of the squared distances of a sentence
    embedder's vectors, over sequences, or None.
    """

    logits: Tensor | None
    hidden: Tensor | None
    task: Tensor | None = None
    relation: Tensor | None = None
    embedding: Tensor | None = None

    def weighted(
        self,
        *,
        logit_weight: float,
        hidden_weight: float,
        num_sequences: float,
        hidden_numbers: float,
        relation_weight: float = 0.0,
        label_weight: float = 1.0,
        embedding_weight: float = 0.0,
    ) -> Tensor:
        """(S,): ``logit_weight * SCE + hidden_weight * HID + relation_weight * REL + label_weight * TASK +
        embedding_weight * EMB``, of those that there are.

        ``num_sequences``: over which SCE, REL, TASK and EMB are means. ``hidden_numbers``: tokens times features, over
        which HID is.
        """
        parts = []
        if self.task is not None:
            parts.append(self.task * (label_weight / num_sequences))
        if self.logits is not None:
            parts.append(self.logits * (logit_weight / num_sequences))
        if self.hidden is not None:
            parts.append(self.hidden * (hidden_weight / hidden_numbers))
        if self.relation is not None:
            parts.append(self.relation * (relation_weight / num_sequences))
        if self.embedding is not None:
            parts.append(self.embedding * (embedding_weight / num_sequences))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """What the teacher said of a batch, without gradient, at ``W`` widths.

    ``logits``: (W*B, labels), or None of a sentence embedder, whose ``vectors`` are (W*B, C). ``states``: what enters
    each layer, and the last, each (W*T, C). ``copies``: for each sub-network of the step, which of the ``W`` it is
    compared with. ``layer_index``: the teacher's, see its configuration. ``relations``: what the last layer's relations
    are made of, or None where they were not asked for.
    """

    logits: Tensor | None
    states: tuple[Tensor, ...]
    copies: tuple[int, ...]
    layer_index: tuple[int, ...]
    relations: Relations | None = None
    vectors: Tensor | None = None


def teacher_shapes(
    teacher: ElasticBertConfig, shapes: Sequence[SubnetShape], teacher_width: str
) -> tuple[list[SubnetShape], tuple[int, ...]]:
    """The teacher's sub-networks, each once, and for each of the student's which one is its teacher.

    ``teacher_width``: ``"full"``: the whole teacher for all. ``"same"``: all layers of the teacher at the student's
    width, which must be the same number of heads and neurons in every kept layer.
    """
    if teacher_width not in TEACHER_WIDTHS:
        raise ValueError(
            f"teacher_width is {teacher_width!r}; allowed: {', '.join(map(repr, TEACHER_WIDTHS))}; 'same' runs the "
            "teacher at the student's width"
        )
    if teacher_width == "full":
        return [teacher.shape(None)], (0,) * len(shapes)
    found: list[SubnetShape] = []
    copies = []
    for shape in shapes:
        wide = _all_layers(shape, teacher.num_hidden_layers)
        if wide not in found:
            found.append(wide)
        copies.append(found.index(wide))
    return found, tuple(copies)


def _all_layers(shape: SubnetShape, num_layers: int) -> SubnetShape:
    kept = shape.kept_layers
    heads, neurons = {shape.heads[i] for i in kept}, {shape.neurons[i] for i in kept}
    if len(kept) == num_layers:
        return shape
    if len(heads) != 1 or len(neurons) != 1:
        raise ValueError(
            "teacher_width 'same': a sub-network that skips layers and differs in width from layer to layer says no "
            f"width for the skipped ones; got {shape}; use teacher_width='full'"
        )
    return SubnetShape((heads.pop(),) * num_layers, (neurons.pop(),) * num_layers)


def teacher_layers(student: ElasticBertConfig, layer_index: Sequence[int]) -> tuple[int, ...]:
    """For each layer of the student the teacher's layer that is the same; ``layer_index``: the teacher's.

    With as many layers as the student each is that in its place. Else both were cut out of one network, and the places
    there are compared. Raises ``ValueError`` where the teacher has not all of the student's layers.
    """
    if len(layer_index) == student.num_hidden_layers:
        return tuple(range(len(layer_index)))
    places = {own: place for place, own in enumerate(layer_index)}
    missing = [own for own in student.layer_index if own not in places]
    if missing:
        raise ValueError(
            f"distillation: num_hidden_layers is {student.num_hidden_layers} in the student and {len(layer_index)} in "
            f"the teacher, whose layers are {list(layer_index)} of the network that both come from; the student's are "
            f"{list(student.layer_index)}; allowed: equally many, or some of the teacher's; take a teacher of the same "
            "network"
        )
    return tuple(places[own] for own in student.layer_index)


def check_network(name: str, model: object) -> None:
    """``TypeError`` that begins with ``name`` where a model can be neither student nor teacher."""
    if not is_embedder(model):
        check_classifier(name, model)


def is_embedder(model: object) -> bool:
    """Whether a network is a sentence embedder, which has vectors in the place of logits."""
    return isinstance(model, ElasticBertForSentenceEmbedding)


def check_pair(student: Network, teacher: Network, *, relation: bool = False) -> None:
    """Raises ``ValueError`` where the teacher's states and logits, and with ``relation`` its heads, are not of the
    student's kind. It may have more layers: see `teacher_layers`."""
    if is_embedder(student) != is_embedder(teacher):
        raise ValueError(
            f"distillation: the student is an {type(student).__name__}, the teacher an {type(teacher).__name__}; "
            "allowed: one class; open both with the same one"
        )
    if isinstance(student, ElasticBertForSentenceEmbedding) and isinstance(teacher, ElasticBertForSentenceEmbedding):
        ours, theirs = (replace(own.pooling, max_seq_length=None) for own in (student, teacher))
        if ours != theirs:
            raise ValueError(f"distillation: the student pools by {ours}, the teacher by {theirs}; allowed: equal")
    teacher_layers(student.config, teacher.config.layer_index)
    names = ("architecture", "hidden_size", "vocab_size", "num_labels")
    for name in (*names, "head_dim") if relation else names:
        mine, other = getattr(student.config, name), getattr(teacher.config, name)
        if mine != other:
            raise ValueError(
                f"distillation: {name} is {mine} in the student and {other} in the teacher; allowed: equal; take a "
                "teacher of the same network"
            )
    if student.dtype != teacher.dtype or student.device != teacher.device:
        raise ValueError(
            f"distillation: the student is {student.dtype} on {student.device}, the teacher {teacher.dtype} on "
            f"{teacher.device}; put both in one dtype on one device"
        )


def problem_of(model: Network) -> str:
    """``config.problem_type``; where that is None, one output is a regression and several are classes."""
    config = model.config
    if config.problem_type is not None:
        return config.problem_type
    return REGRESSION if config.num_labels == 1 else "single_label_classification"


@torch.no_grad()
def run_teacher(
    teacher: Network,
    batch: PackedBatch,
    seqlens: Sequence[int],
    shapes: Sequence[SubnetShape],
    teacher_width: str = "full",
    *,
    hidden: bool = True,
    relation: bool = False,
    relation_heads: int | None = None,
) -> TeacherOutput:
    """The teacher's logits (a sentence embedder's vectors) and, with ``hidden``, states, in one forward, without
    dropout whatever its mode is.

    ``relation``: also what the relations of its last layer are made of; ``relation_heads``: into how many heads they
    are cut, None for the size of a head. ``ValueError`` where a width cannot be cut so.
    """
    wanted, copies = teacher_shapes(teacher.config, shapes, teacher_width)
    stacked = stack(batch, seqlens, wanted)
    x, states = teacher.encoder.encode(stacked.batch, stacked.plan, None, keep_states=hidden or relation)
    logits = vectors = None
    if isinstance(teacher, ElasticBertForSentenceEmbedding):
        vectors = teacher.pooling(x, stacked.batch.cu_seqlens)
    else:
        logits = teacher.classify(x.index_select(0, stacked.batch.cu_seqlens[:-1]))
    relations = None
    if relation:
        assert states is not None  # asked for above
        cut = resolved_relation_heads(relation_heads, teacher.config.head_dim, (*wanted, *shapes))
        relations = Relations(
            tuple(_last_projections(teacher, stacked, states)), chunks_of(seqlens, cut, batch.device), cut
        )
    return TeacherOutput(logits, states or (), copies, teacher.config.layer_index, relations, vectors)


def loss_sums(
    student: Network,
    stacked: Stack,
    teacher: TeacherOutput,
    *,
    first: int = 0,
    logits: bool = True,
    hidden: bool = True,
    relation: bool = False,
    targets: Tensor | None = None,
    embedding: bool = False,
    dropout_state: Tensor | None = None,
) -> LossSums:
    """The sums of every sub-network in ``stacked``, which are number ``first`` and on of the teacher's ``copies``.

    ``logits`` and ``targets`` are for a classifier, ``embedding`` for a sentence embedder.

    ``targets``: labels of the sequences, for the task's own loss beside the others; None without it.
    ``dropout_state``: (2,) int64 or None; sub-network ``s`` draws with the offset plus ``first + s``, so that its masks
    are the same in one launch and alone.
    """
    state = _shifted(dropout_state, first)
    x, states = student.encoder.encode(stacked.batch, stacked.plan, state, keep_states=hidden or relation)
    copies = teacher.copies[first : first + stacked.num_groups]
    found = task = None
    if logits or targets is not None:
        assert isinstance(student, ElasticBertForSequenceClassification)  # the callers have checked
        own = student.classify(x.index_select(0, stacked.batch.cu_seqlens[:-1]), state, stacked.num_groups)
        if logits:
            assert teacher.logits is not None  # a pair of one kind
            found = logit_sums(student, own, stacked, teacher.logits, copies)
        if targets is not None:
            task = task_sums(student, own, targets, stacked.num_groups)
    total = None
    if hidden:
        assert states is not None  # asked for above
        same = teacher_layers(student.config, teacher.layer_index)
        total = _hidden_sums(stacked, states, [*(teacher.states[i] for i in same), teacher.states[-1]], copies)
    apart = None
    if relation:
        assert states is not None  # asked for above
        assert teacher.relations is not None  # and of the teacher
        told = teacher.relations
        pairs = zip(_last_projections(student, stacked, states), copies, strict=True)
        apart = torch.stack([relation_sum(mine, told.projections[copy], told) for mine, copy in pairs])
    distance = None
    if embedding:
        assert isinstance(student, ElasticBertForSentenceEmbedding)  # the callers have checked
        assert teacher.vectors is not None  # a pair of one kind
        own = student.pooling(x, stacked.batch.cu_seqlens)
        rows = _of_copies(stacked.sequence_rows, copies, stacked.sequence_rows.shape[0] // stacked.num_groups)
        distance = dk.distillation_loss(
            own, teacher.vectors, rows=stacked.sequence_borders, teacher_rows=rows, kind="squared_error"
        )
    return LossSums(found, total, task, apart, distance)


def task_sums(
    student: ElasticBertForSequenceClassification, logits: Tensor, targets: Tensor, num_groups: int
) -> Tensor:
    """(S,): the task's own loss of each copy of a batch, added over its sequences (averaged over several outputs)."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    kind = problem_of(student)
    repeated = targets.repeat(num_groups, *([1] * (targets.dim() - 1)))
    if kind == REGRESSION:
        losses = F.mse_loss(scores, repeated.to(scores.dtype).view_as(scores), reduction="none").mean(1)
    elif kind == MULTI_LABEL:
        losses = F.binary_cross_entropy_with_logits(scores, repeated.to(scores.dtype), reduction="none").mean(1)
    else:
        losses = F.cross_entropy(scores, repeated, reduction="none")
    return losses.view(num_groups, -1).sum(1)


def _shifted(dropout_state: Tensor | None, first: int) -> Tensor | None:
    if dropout_state is None or first == 0:
        return dropout_state
    return dropout_state + torch.tensor([0, first], dtype=torch.int64).to(dropout_state.device)


def _of_copies(rows: Tensor, copies: Sequence[int], size: int) -> Tensor:
    """Each group's rows, moved to its teacher's copy, which lies ``size`` rows after the one before."""
    if not any(copies):
        return rows
    starts = torch.tensor(copies, dtype=torch.int32).to(rows.device) * size
    return rows + starts.repeat_interleave(rows.shape[0] // len(copies), output_size=rows.shape[0])


def logit_sums(
    student: ElasticBertForSequenceClassification,
    logits: Tensor,
    stacked: Stack,
    teacher_logits: Tensor,
    copies: Sequence[int],
) -> Tensor:
    """(S,) of the logits' loss: soft cross-entropy of classes; of multi-label outputs, the soft binary one of each
    label, added; squared error of a regression, averaged over its outputs."""
    size = stacked.sequence_rows.shape[0] // stacked.num_groups
    rows = _of_copies(stacked.sequence_rows, copies, size)
    kind, outputs = problem_of(student), logits.shape[1]
    borders = stacked.sequence_borders
    if kind == REGRESSION:
        sums = dk.distillation_loss(logits, teacher_logits, rows=borders, teacher_rows=rows, kind="squared_error")
        return sums / outputs
    if kind == MULTI_LABEL:
        # The softmax over (z, 0) is the sigmoid of z and what is left: a label is a row of two classes.
        logits, teacher_logits = _pairs(logits), _pairs(teacher_logits)
        places = torch.arange(outputs, dtype=torch.int32, device=rows.device)
        rows = (rows[:, None] * outputs + places).reshape(-1)
        borders = borders * outputs
    return dk.distillation_loss(logits, teacher_logits, rows=borders, teacher_rows=rows)


def _pairs(logits: Tensor) -> Tensor:
    flat = logits.reshape(-1, 1)
    return torch.cat([flat, torch.zeros_like(flat)], 1)


def _hidden_sums(
    stacked: Stack, states: Sequence[Tensor], teacher_states: Sequence[Tensor], copies: Sequence[int]
) -> Tensor:
    plan = stacked.plan
    rows = _of_copies(stacked.token_rows, copies, stacked.token_rows.shape[0] // stacked.num_groups)
    kept = [layer for layer in range(plan.num_layers) if plan.max_heads[layer] > 0]
    sums = [
        dk.distillation_loss(
            state,
            teacher_states[layer],
            rows=plan.rows,
            teacher_rows=rows,
            active=plan.layer(layer).heads,
            kind="squared_error",
        )
        for layer, state in zip(kept, states[:-1], strict=True)
    ]
    last = dk.distillation_loss(states[-1], teacher_states[-1], rows=plan.rows, teacher_rows=rows, kind="squared_error")
    return torch.stack([*sums, last]).sum(0)


def _last_projections(model: Network, stacked: Stack, states: Sequence[Tensor]) -> Iterator[Tensor]:
    """For each group the queries, keys and values of the last layer that it keeps, (T, 3, h*D), from what enters it."""
    plan = stacked.plan
    kept = [layer for layer in range(plan.num_layers) if plan.max_heads[layer] > 0]
    size = stacked.token_rows.shape[0] // stacked.num_groups
    for group, shape in enumerate(stacked.shapes):
        last = shape.kept_layers[-1]
        state = states[kept.index(last)][group * size : (group + 1) * size]
        yield project(model.elastic_encoder.elastic_layers[last], state, shape.heads[last])


def distillation_losses(
    student: Network,
    teacher: Network,
    batch: Mapping[str, Any],
    subnets: Sequence[Subnet],
    logit_weight: float = 1.0,
    hidden_weight: float = 0.1,
    teacher_width: str = "full",
    regression_logits: bool = True,
    *,
    relation_weight: float = 0.0,
    relation_heads: int | None = None,
    embedding_weight: float = 1.0,
    step: str = "stacked",
    dropout_state: Tensor | None = None,
) -> Tensor:
    """The distillation loss of each sub-network on one batch.

    ``logit_weight * SCE + hidden_weight * HID + relation_weight * REL``; of two sentence embedders ``embedding_weight *
    EMB + hidden_weight * HID + relation_weight * REL``.

    Args:
        student: the network that learns. In training mode each sub-network has its own dropout masks.
        teacher: a network of the same sizes, with all of the student's layers or more (a student that was cut out of
            it compares each layer with the one that it was); runs once, without dropout and without gradient.
        batch: a padded batch as the model takes it (``input_ids``, ``attention_mask``, ``token_type_ids``,
            ``position_ids``; labels are not used), or ``{"batch": PackedBatch}`` without row padding.
        subnets: the student's sub-networks, each once.
        logit_weight: weight of the logits' loss: soft cross-entropy, or squared error for a regression.
        hidden_weight: weight of the hidden states' squared error, over real tokens.
        teacher_width: ``"full"``: one teacher for all. ``"same"``: the teacher at the student's width, at full depth.
        regression_logits: False leaves the logits' loss of a regression out, as the released code does.
        relation_weight: weight of the relations' loss, MiniLMv2, arXiv 2012.15828: between the queries, the keys and
            the values of the last layer that the sub-network keeps, against those of the teacher's last layer.
        relation_heads: into how many heads the vectors of all active heads, side by side, are cut for it. None: as
            many as a head has numbers, which fits every width.
        embedding_weight: of two sentence embedders: weight of the squared distance of their vectors, which takes the
            place of the logits' loss.
        step: ``"stacked"``: all sub-networks in one launch. ``"loop"``: one by one. The same losses and gradients.
        dropout_state: (2,) int64, seed and offset, to repeat a draw; None draws one in training mode.

    Returns:
        (S,) differentiable losses, in the order of ``subnets``; float32, float64 for a float64 student. Their sum is
        what a training step goes down.

    Raises:
        TypeError: another kind of model; one sub-network in place of a list.
        ValueError: no sub-network, one named twice or one that does not fit; networks that do not belong together;
            an unknown ``teacher_width`` or ``step``; weights that leave nothing to learn; ``relation_heads`` that do
            not divide a width; a batch as in the model.

    Reads the sequences' lengths back once. Source: DynaBERT, arXiv 2004.04037, equations 2 to 5.
    """
    if step not in STEPS:
        raise ValueError(f"distillation_losses: step is {step!r}; allowed: {', '.join(map(repr, STEPS))}")
    check_network("distillation_losses", student)
    check_network("distillation_losses: teacher", teacher)
    check_pair(student, teacher, relation=relation_weight != 0.0)
    shapes = checked_shapes(student, subnets)
    packed = _packed(student, batch)
    seqlens = packed.cu_seqlens.diff().tolist()
    wants_vectors = is_embedder(student) and embedding_weight != 0.0
    wants_logits = logit_weight != 0.0 and (regression_logits or problem_of(student) != REGRESSION)
    wants_logits = wants_logits and not is_embedder(student)
    wants_hidden, wants_relation = hidden_weight != 0.0, relation_weight != 0.0
    if not (wants_logits or wants_hidden or wants_relation or wants_vectors):
        first = ("embedding_weight", embedding_weight) if is_embedder(student) else ("logit_weight", logit_weight)
        raise ValueError(
            f"distillation_losses: {first[0]} {first[1]}, hidden_weight {hidden_weight} and relation_weight "
            f"{relation_weight} leave no loss; give one of them"
        )
    output = run_teacher(
        teacher,
        packed,
        seqlens,
        shapes,
        teacher_width,
        hidden=wants_hidden,
        relation=wants_relation,
        relation_heads=relation_heads,
    )
    if dropout_state is None:
        dropout_state = student.draw_dropout_state()
    runs = [shapes] if step == "stacked" else [[shape] for shape in shapes]
    losses, done = [], 0
    for run in runs:
        sums = loss_sums(
            student,
            stack(packed, seqlens, run),
            output,
            first=done,
            logits=wants_logits,
            hidden=wants_hidden,
            relation=wants_relation,
            embedding=wants_vectors,
            dropout_state=dropout_state,
        )
        done += len(run)
        losses.append(
            sums.weighted(
                logit_weight=logit_weight,
                hidden_weight=hidden_weight,
                relation_weight=relation_weight,
                embedding_weight=embedding_weight,
                num_sequences=len(seqlens),
                hidden_numbers=sum(seqlens) * student.config.hidden_size,
            )
        )
    return torch.cat(losses)


def checked_shapes(student: Network, subnets: Sequence[Subnet]) -> list[SubnetShape]:
    """The shape of each sub-network; ``ValueError`` where there is none or one twice."""
    if subnets is None or isinstance(subnets, (str, SubnetConfig, SubnetShape)):
        raise TypeError("distillation_losses: subnets is one sub-network; give a list of them")
    shapes = [student.shape(subnet) for subnet in subnets]
    if not shapes:
        raise ValueError("distillation_losses: no sub-network given; give at least one")
    for index, shape in enumerate(shapes):
        if shape in shapes[:index]:
            raise ValueError(
                f"distillation_losses: {subnets[index]} is the same sub-network as {subnets[shapes.index(shape)]}; "
                "name each once"
            )
    return shapes


def _packed(model: Network, batch: Mapping[str, Any]) -> PackedBatch:
    if not isinstance(batch, Mapping):
        raise TypeError(f"distillation_losses: batch must be a mapping of tensors; got {type(batch).__name__}")
    if batch.get("subnet") is not None:
        raise ValueError(
            f"distillation_losses: the batch says subnet {batch['subnet']!r}; allowed: tokens alone; name the "
            "sub-networks in subnets"
        )
    if "batch" in batch:
        return batch["batch"]
    return pack_padded(
        model.config,
        batch.get("input_ids"),
        batch.get("attention_mask"),
        batch.get("token_type_ids"),
        batch.get("position_ids"),
        None,
        device=model.device,
    ).batch


__all__ = [
    "LossSums",
    "TeacherOutput",
    "check_pair",
    "distillation_losses",
    "loss_sums",
    "run_teacher",
    "teacher_layers",
    "teacher_shapes",
]
