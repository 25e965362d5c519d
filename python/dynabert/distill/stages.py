"""The stages of DynaBERT's training, and what each costs: DynaBERT, arXiv 2004.04037, section 2, Algorithms 1 and 2."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from dynabert.configuration import SubnetConfig
from dynabert.configuration.grid import DEPTHS, WIDTHS

RECIPES = ("best", "paper", "reference", "sandwich", "embedding")
SAMPLING = ("all", "sandwich")
SECOND_TEACHERS = ("width", "fine_tuned")
EMBEDDING_HIDDEN_WEIGHTS = (1.0, 1.0)


def grid(widths: Sequence[float], depths: Sequence[float]) -> tuple[SubnetConfig, ...]:
    """Every width at every depth, deepest first, widest first."""
    return tuple(
        SubnetConfig(width, depth) for depth in sorted(depths, reverse=True) for width in sorted(widths, reverse=True)
    )


@dataclass(frozen=True)
class Stage:
    """One stage: which sub-networks learn, from whom, and by which loss.

    Attributes:
        name: ``"width"``, ``"depth"`` or ``"final"``; its folder.
        subnets: those of a step, largest first.
        logit_weight, hidden_weight, relation_weight: of the distillation loss; all 0 in a stage that learns from
            labels.
        embedding_weight: of the loss of a sentence embedder's vectors; 0 for a classifier.
        teacher_width: ``"full"`` or ``"same"``.
        sampling: ``"all"``: each of ``subnets`` in every step. ``"sandwich"``: the first, the last and two others.
        labels: True: the task's own loss on labels, without a teacher.
        regression_logits: False leaves the logits' loss of a regression out.
        relation_heads: into how many heads queries, keys and values are cut for their relations; None: as many as a
            head has numbers.
        label_weight: of the task's own loss on labels, beside what is distilled; 0 in a stage that learns from labels
            alone.
    """

    name: str
    subnets: tuple[SubnetConfig, ...]
    logit_weight: float = 1.0
    hidden_weight: float = 0.1
    teacher_width: str = "full"
    sampling: str = "all"
    labels: bool = False
    regression_logits: bool = True
    relation_weight: float = 0.0
    relation_heads: int | None = None
    label_weight: float = 0.0
    embedding_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.subnets:
            raise ValueError(f"stage {self.name}: no sub-network; give at least one")
        if self.sampling not in SAMPLING:
            raise ValueError(f"stage {self.name}: sampling is {self.sampling!r}; allowed: {', '.join(SAMPLING)}")
        names = ("logit_weight", "hidden_weight", "relation_weight", "label_weight", "embedding_weight")
        weights = [getattr(self, name) for name in names]
        for name in names:
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"stage {self.name}: {name} is {getattr(self, name)}; allowed: 0 or more")
        if self.relation_heads is not None and self.relation_heads < 1:
            raise ValueError(f"stage {self.name}: relation_heads is {self.relation_heads}; allowed: 1 or more")
        if not self.labels and not any(weights):
            raise ValueError(f"stage {self.name}: all weights are 0, so there is nothing to learn; give one of them")

    @property
    def reads_labels(self) -> bool:
        """Whether its loss needs labels."""
        return self.labels or self.label_weight != 0.0

    def chosen(self, step: int, seed: int) -> tuple[SubnetConfig, ...]:
        """The sub-networks of optimiser step ``step``: the same in every process, and in a resumed run."""
        if self.sampling == "all" or len(self.subnets) <= 4:
            return self.subnets
        middle = range(1, len(self.subnets) - 1)
        picked = sorted(random.Random(f"{seed}/{self.name}/{step}").sample(middle, 2))
        return (self.subnets[0], *(self.subnets[index] for index in picked), self.subnets[-1])

    def forward_passes(self, shares: Sequence[float], teacher_shares: Sequence[float] | None = None) -> float:
        """What a step costs, in forward passes of the full network.

        ``shares``: the work of each of ``subnets`` over the full network's. A sub-network costs its forward and twice
        that for the backward. ``teacher_shares``: of the teacher's forwards (None: one full forward).
        """
        work = list(shares)
        if self.sampling == "sandwich" and len(work) > 4:
            between = work[1:-1]
            total = work[0] + work[-1] + 2 * sum(between) / len(between)
        else:
            total = sum(work)
        teacher = 0.0 if self.labels else sum(teacher_shares) if teacher_shares is not None else 1.0
        return 3.0 * total + teacher


@dataclass(frozen=True)
class Recipe:
    """Everything that the stages are made from.

    Attributes:
        widths, depths: the multipliers; the first stage trains the widths, the second every pair.
        subnets: named sub-networks in place of the grid, largest first; the first stage trains those that keep every
            layer. None for the grid.
        logit_weights, hidden_weights, relation_weights, label_weights, embedding_weights: of the first and the second
            stage.
        relation_heads: of the relations' loss; None: as many as a head has numbers.
        starting_layers: the teacher's layers that the student starts from, 0-based and rising; its sub-networks are
            parts of these alone. None: all.
        teacher_width: of the second stage (in the first the teacher is the fine-tuned network itself).
        second_teacher: the network that the second stage learns from: ``"width"``, what came out of the first, or
            ``"fine_tuned"``, the first stage's own teacher. Only the first stage's result knows every width.
        sampling: of the second and the final stage.
        importance_mode: how the scores of batches add up.
        depth_rule: which layers a depth keeps.
        regression_logits: whether a regression's logits are distilled.
        final: whether there is a last stage on labels.
        distillation: False: the same stages learn from labels, without a teacher: to see what distillation is worth.
    """

    widths: tuple[float, ...] = WIDTHS
    depths: tuple[float, ...] = DEPTHS
    subnets: tuple[SubnetConfig, ...] | None = None
    logit_weights: tuple[float, float] = (1.0, 1.0)
    hidden_weights: tuple[float, float] = (0.1, 1.0)
    teacher_width: str = "same"
    sampling: str = "all"
    importance_mode: str = "per_batch"
    depth_rule: str = "keep_last"
    regression_logits: bool = True
    final: bool = False
    distillation: bool = True
    relation_weights: tuple[float, float] = (0.0, 0.0)
    relation_heads: int | None = None
    starting_layers: tuple[int, ...] | None = None
    second_teacher: str = "width"
    label_weights: tuple[float, float] = (0.0, 0.0)
    embedding_weights: tuple[float, float] = (0.0, 0.0)
    stages: tuple[Stage, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            values = getattr(self, name)
            if not isinstance(values, tuple):
                raise TypeError(f"{name} are {values!r}; allowed: a list of numbers, such as [1.0, 0.5]")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} are {list(values)}; allowed: at least one, each once")
        if self.second_teacher not in SECOND_TEACHERS:
            raise ValueError(f"second_teacher is {self.second_teacher!r}; allowed: {', '.join(SECOND_TEACHERS)}")
        if self.second_teacher == "fine_tuned" and self.teacher_width != "full":
            raise ValueError(
                f"second_teacher is 'fine_tuned' and teacher_width {self.teacher_width!r}: the fine-tuned network was "
                "trained at full width alone; use teacher_width='full' (--teacher_width full), or "
                "second_teacher='width' (--second_teacher width)"
            )
        if self.starting_layers is not None:
            layers = self.starting_layers
            if not layers or layers[0] < 0 or any(b <= a for a, b in pairwise(layers)):
                raise ValueError(
                    f"starting_layers are {list(layers)}; allowed: at least one, from 0, each above the one before"
                )
        both = grid(self.widths, self.depths) if self.subnets is None else self.subnets
        wide = tuple(subnet for subnet in both if _keeps_all_layers(subnet))
        stages = []
        if wide:
            stages.append(
                Stage(
                    "width",
                    wide,
                    self.logit_weights[0],
                    self.hidden_weights[0],
                    regression_logits=self.regression_logits,
                    relation_weight=self.relation_weights[0],
                    relation_heads=self.relation_heads,
                    label_weight=self.label_weights[0],
                    embedding_weight=self.embedding_weights[0],
                )
            )
        stages.append(
            Stage(
                "depth",
                both,
                self.logit_weights[1],
                self.hidden_weights[1],
                teacher_width=self.teacher_width,
                sampling=self.sampling,
                regression_logits=self.regression_logits,
                relation_weight=self.relation_weights[1],
                relation_heads=self.relation_heads,
                label_weight=self.label_weights[1],
                embedding_weight=self.embedding_weights[1],
            )
        )
        if self.final:
            stages.append(Stage("final", both, 0.0, 0.0, sampling=self.sampling, labels=True))
        if not self.distillation:
            stages = [
                replace(
                    stage,
                    logit_weight=0.0,
                    hidden_weight=0.0,
                    relation_weight=0.0,
                    label_weight=0.0,
                    embedding_weight=0.0,
                    labels=True,
                )
                for stage in stages
            ]
        object.__setattr__(self, "stages", tuple(stages))


def _keeps_all_layers(subnet: SubnetConfig) -> bool:
    return subnet.depth_mult == 1.0 and subnet.layers is None and (subnet.heads is None or all(subnet.heads))


def recipe(name: str) -> Recipe:
    """A recipe by name.

    * ``"paper"``: the method as published.
    * ``"best"``: of its single changes those that kept more of the score: the second stage learns from the fine-tuned
      network at full width, and a last stage from labels. What each is worth: docs/results.md.
    * ``"reference"``: the released code's choices.
    * ``"sandwich"``: four sub-networks a step in the second stage.
    * ``"embedding"``: for a sentence embedder, whose vectors and hidden states are distilled, and nothing else: text
      without labels will do. Both stages learn from the whole network as it came.

    Raises ``ValueError`` for another name.
    """
    paper = Recipe()
    if name == "paper":
        return paper
    if name == "best":
        return replace(paper, teacher_width="full", second_teacher="fine_tuned", final=True)
    if name == "reference":
        return replace(
            paper,
            teacher_width="full",
            importance_mode="reference",
            depth_rule="reference",
            regression_logits=False,
        )
    if name == "sandwich":
        return replace(paper, sampling="sandwich", teacher_width="full")
    if name == "embedding":
        return replace(
            paper,
            logit_weights=(0.0, 0.0),
            embedding_weights=(1.0, 1.0),
            hidden_weights=EMBEDDING_HIDDEN_WEIGHTS,
            teacher_width="full",
            second_teacher="fine_tuned",
        )
    raise ValueError(f"recipe is {name!r}; allowed: {', '.join(RECIPES)}")
