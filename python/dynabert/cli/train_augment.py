"""The augmented text of ``dynabert train``: what ``--augment`` asks for, checked before anything is read, and made
once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

from dynabert.cli.options import UsageError

if TYPE_CHECKING:
    from dynabert.cli.train import InputArguments
    from dynabert.data import CandidateWords, Examples
    from dynabert.distill import DistillationArguments


class Asked(NamedTuple):
    """What candidate words are taken from: a masked language model, a file of neighbours, or both."""

    model: str | None
    neighbours: str | None


def check_options(inputs: InputArguments, args: DistillationArguments) -> Asked | None:
    """What ``--augment`` asks for; None without it.

    Raises:
        UsageError: words that say nothing; other text is given for the same stages; no stage would use it.
    """
    if inputs.unlabelled_file is not None and not args.distillation:
        raise UsageError("--unlabelled_file has no labels, and with --distillation False every stage needs labels")
    if inputs.augment is None:
        for option in fields(inputs):
            if option.name.startswith("augment_") and getattr(inputs, option.name) != option.default:
                raise UsageError(f"--{option.name} belongs to --augment; say by what words are replaced")
        return None
    match inputs.augment:
        case ["neighbours", file]:
            asked = Asked(None, file)
        case ["masked_lm"]:
            asked = Asked(inputs.model_name_or_path, None)
        case ["masked_lm", "neighbours", file]:
            asked = Asked(inputs.model_name_or_path, file)
        case ["masked_lm", model]:
            asked = Asked(model, None)
        case ["masked_lm", model, "neighbours", file]:
            asked = Asked(model, file)
        case _:
            raise UsageError(
                f"--augment is {inputs.augment!r}; allowed: neighbours FILE; masked_lm [MODEL]; masked_lm [MODEL] "
                "neighbours FILE"
            )
    if inputs.unlabelled_file is not None:
        raise UsageError(
            "--augment and --unlabelled_file both say what the distillation stages learn from; give one of them"
        )
    if not args.distillation:
        raise UsageError("--augment makes text without labels, and with --distillation False every stage needs labels")
    return asked


def augmented(
    inputs: InputArguments,
    args: DistillationArguments,
    asked: Asked,
    train: Examples,
    say: Callable[[str], None],
) -> Examples:
    """The training text and its altered copies, without labels: computed by the first process of each machine, which
    keeps it in the cache; the others wait and read it there."""
    from dynabert.data import augment, default_copies
    from dynabert.data.cache import cache_folder

    copies = default_copies(inputs.task_name) if inputs.augment_copies is None else inputs.augment_copies
    with args.main_process_first(desc="augmentation"):
        found = augment(
            train,
            open_candidates(asked, args),
            copies=copies,
            probability=inputs.augment_probability,
            num_candidates=inputs.augment_candidates,
            seed=args.seed,
            cache_dir=cache_folder(inputs.cache_dir),
            overwrite=inputs.overwrite_cache and args.process_index == 0,
            progress=False if args.disable_tqdm or args.process_index != 0 else None,
        )
    added = len(found) - len(train)
    say(f"{found.source}: {added} copies that differ of {len(train)} examples, {added / len(train):.1f} each")
    return found


def open_candidates(asked: Asked, args: DistillationArguments) -> CandidateWords:
    """The source of candidate words; a masked language model runs on the device that the training runs on."""
    from dynabert.data import MaskedWords, NeighbourWords
    from dynabert.engine import load_masked_lm, load_tokenizer

    neighbours = None if asked.neighbours is None else NeighbourWords.read(asked.neighbours)
    if asked.model is None:
        assert neighbours is not None  # one of the two is there
        return neighbours
    model = load_masked_lm(asked.model, device=args.device)
    return MaskedWords(model, load_tokenizer(asked.model), neighbours, name=asked.model)
