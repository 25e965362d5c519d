"""What is compared: the method, what it is held against, and the method with one thing changed, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to come to the sub-networks, from the teacher that all variants of a task and seed share.

    Attributes:
        change: what it changes, in words.
        options: of ``dynabert train``, beside the recipe's.
        rate, epochs: by which the recipe's learning rate and epochs are multiplied.
        depth: the share of the teacher's layers that the student starts from; its sub-networks are parts of these.
        independent: True: a network of its own for each shape, fine-tuned on labels from the plain checkpoint.
        width_norms: True: an experiment of `benchmarks.accuracy.width_norms`, which leaves a network for each width.
        copies: altered copies of each text that the stages learn on; 0 for the task's usual number, None for none.
    """

    change: str
    options: tuple[str, ...] = ()
    rate: float = 1.0
    epochs: float = 1.0
    depth: float = 1.0
    independent: bool = False
    width_norms: bool = False
    copies: int | None = None


VARIANTS: dict[str, Variant] = {
    "dynabert": Variant("the recipe as it is"),
    "no_rewiring": Variant("heads and neurons stay in their order", ("--no_rewiring",)),
    "no_distillation": Variant("the same stages and steps, learned from labels", ("--no_distillation",)),
    "independent": Variant("a network of its own for each shape, with the epochs of all stages", independent=True),
    "teacher_full": Variant("the second stage's teacher runs at full width", ("--teacher_width", "full")),
    "teacher_same": Variant(
        "the second stage's teacher runs at the student's width, as in `paper` itself",
        ("--teacher_width", "same", "--second_teacher", "width"),
    ),
    "teacher_fine_tuned": Variant(
        "the second stage learns from the fine-tuned network, at full width",
        ("--teacher_width", "full", "--second_teacher", "fine_tuned"),
    ),
    "depth_reference": Variant("the released code's rule of which layers stay", ("--depth_rule", "reference")),
    "importance_accumulated": Variant("gradients of the whole set, then scores", ("--importance_mode", "accumulated")),
    "importance_reference": Variant("the released code's sum of scores", ("--importance_mode", "reference")),
    "no_hidden": Variant("no loss of the hidden states", ("--hidden_weights", "0", "0")),
    "hidden_equal": Variant("the hidden states' loss weighs 1 in both stages", ("--hidden_weights", "1", "1")),
    "hidden_tenfold": Variant("the hidden states' loss weighs 10 in both stages", ("--hidden_weights", "10", "10")),
    "no_logits": Variant("no loss of the logits", ("--logit_weights", "0", "0")),
    "attention_relation": Variant(
        "also a loss of the relations between queries, keys and values", ("--relation_weights", "1", "1")
    ),
    "labels_second": Variant("the second stage also learns from labels", ("--label_weights", "0", "1")),
    "labels_both": Variant("both stages also learn from labels", ("--label_weights", "1", "1")),
    "sandwich": Variant("four sub-networks a step in the second stage", ("--sampling", "sandwich")),
    "sandwich_double": Variant(
        "four sub-networks a step in the second stage, and twice the epochs", ("--sampling", "sandwich"), epochs=2.0
    ),
    "final_stage": Variant("a last stage on labels", ("--final_stage", "True")),
    "rate_half": Variant("half the learning rate in the stages", rate=0.5),
    "rate_double": Variant("twice the learning rate in the stages", rate=2.0),
    "epochs_half": Variant("half the epochs in the stages", epochs=0.5),
    "epochs_double": Variant("twice the epochs in the stages", epochs=2.0),
    # Its option, --starting_layers, depends on the network. Two thirds: of six layers, too, each of the
    # usual depths then keeps another number.
    "starting_layers": Variant(
        "the student starts from two thirds of the layers, and its depth 1 is these: smaller at the same name",
        depth=2 / 3,
    ),
    "width_layer_norm": Variant("LayerNorm weights of the layers' own for each width", width_norms=True),
    # Their options are those of --augment: they need a table of words, which the campaign is given.
    "augmented": Variant("the stages learn on altered copies of the text (--neighbours)", copies=0),
    "augmented_two": Variant(
        "two altered copies of each text in the recipe's epochs: three times the text and the steps", copies=2
    ),
    "augmented_same_steps": Variant(
        "four altered copies of each text in a fifth of the epochs: other text, no more steps", epochs=0.2, copies=4
    ),
}

FIRST = ("dynabert", "no_rewiring", "no_distillation", "independent")

# Of the whole campaign. `paper` is the method as published, without augmentation; `best` has the single changes that
# its rows showed to be better, and is what `dynabert train` does by default. `short` is `paper` in a third of the time,
# for the same teacher, for comparisons that would otherwise not be made. What a change is worth there, it need not be
# worth in the whole.
RECIPES: dict[str, Variant] = {
    "paper": Variant("the published method", ("--recipe", "paper")),
    "best": Variant(
        "the second stage learns from the fine-tuned network, and a last stage from labels",
        ("--recipe", "best"),
    ),
    "short": Variant("a third of the stages' epochs", ("--recipe", "paper"), epochs=1 / 3),
}
TRIALS = ("short",)  # recipes whose networks are for comparisons, not for use


def folder_name(recipe: str, variant: str) -> str:
    """The folder of a variant, beside the teacher that all recipes share: ``no_rewiring``, ``best`` for the whole
    recipe ``best``, ``best-no_rewiring``."""
    if recipe == "paper":
        return variant
    return recipe if variant == "dynabert" else f"{recipe}-{variant}"


def split_name(folder: str) -> tuple[str, str]:
    """Recipe and variant of a folder's name; ``ValueError`` for another folder."""
    if folder in RECIPES and folder != "paper":
        return folder, "dynabert"
    recipe, dash, variant = folder.partition("-")
    found = (recipe, variant) if dash else ("paper", folder)
    if found[0] not in RECIPES or found[1] not in VARIANTS:
        raise ValueError(f"accuracy: {folder} is no variant's folder; variants: {', '.join(VARIANTS)}")
    return found


def is_apart(folder: str) -> bool:
    """Whether the sub-networks there are parts of several networks, each in a folder of its own."""
    variant = VARIANTS[split_name(folder)[1]]
    return variant.independent or variant.width_norms
