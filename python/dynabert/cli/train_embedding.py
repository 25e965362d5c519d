"""``dynabert train --recipe embedding``: an elastic sentence embedder from text without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError
from dynabert.cli.output import say
from dynabert.cli.similarity_texts import only_numbers_of_pairs, read_scored, similarity_set

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dynabert.cli.train import InputArguments
    from dynabert.data import Encoded, Examples
    from dynabert.distill import DistillationArguments

RECIPE = "embedding"
_OF_LABELS = ("label_separator", "problem_type", "fine_tuned")
_OF_OTHER_TEXT = ("unlabelled_file", "augment", "augment_copies", "augment_probability", "augment_candidates")


def train_embedder(
    inputs: InputArguments, args: DistillationArguments, callbacks: Sequence[TrainerCallback] = ()
) -> None:
    """Do what the options say; ``callbacks`` as in `dynabert.distill.pipeline.train_elastic`."""
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from dynabert.cli.train import draw, show, show_costs
    from dynabert.data.tokenisation import check_tokenizer
    from dynabert.distill.pipeline import check_recipe, stage_costs, student_config, train_elastic
    from dynabert.engine.loading import check_there, load_tokenizer
    from dynabert.modeling import ElasticBertForSentenceEmbedding

    quiet = args.process_index != 0
    disable_progress_bar()  # one for each file that is written; the stages have their own

    def tell(text: str) -> None:
        if not quiet:
            say(text)

    _check_options(inputs)
    train, validation = read_texts(inputs, tell)
    check_there(inputs.model_name_or_path)
    tokenizer = load_tokenizer(inputs.model_name_or_path)
    model = ElasticBertForSentenceEmbedding.from_pretrained(inputs.model_name_or_path)
    check_tokenizer("train", tokenizer, model.config.vocab_size)
    recipe = args.make_recipe()
    check_recipe(model, recipe)
    length = min(inputs.max_seq_length, model.config.max_sequence_length)
    model.pooling = replace(model.pooling, max_seq_length=length)
    encode = partial(_encoded, inputs, tokenizer, length, token_types=model.config.type_vocab_size > 1, tell=tell)
    with args.main_process_first(local=True, desc="token ids"):  # the others find them kept
        data, scored = encode(train), None if validation is None else similarity_set(validation, encode)
    tell(
        f"vectors: {model.pooling.mode} of the tokens{', of length 1' if model.pooling.normalize else ''}; "
        f"{len(data)} texts to distil on, {0 if scored is None else len(scored)} to score; {args.world_size} "
        f"process(es); --step {args.resolved_step()}"
    )
    if not quiet:
        show_costs(stage_costs(model, recipe))
    results = train_elastic(
        model,
        args,
        data,
        scored,
        tokenizer=tokenizer,
        rewiring=not inputs.no_rewiring,
        parts_of=inputs.parts_of or (),
        say=tell,
        callbacks=callbacks,
    )
    if not quiet:
        show(results, Path(str(args.output_dir)))
        draw(results, student_config(model.config, recipe), Path(str(args.output_dir)))
    if args.world_size > 1:
        # The group's threads, left running, may abort a process at its end.
        PartialState().destroy_process_group()


def _check_options(inputs: InputArguments) -> None:
    if (inputs.task_name is None) == (inputs.train_file is None):
        raise UsageError("give either --task_name or --train_file")
    if inputs.bad_rows not in ("error", "skip"):
        raise UsageError(f"--bad_rows is {inputs.bad_rows!r}; allowed: error, skip")
    usual = {option.name: option.default for option in fields(inputs)}
    for name in _OF_LABELS:
        if getattr(inputs, name) != usual[name]:
            raise UsageError(f"--{name} is for labels, and --recipe {RECIPE} trains without; leave one of them out")
    for name in _OF_OTHER_TEXT:
        if getattr(inputs, name) != usual[name]:
            raise UsageError(
                f"--{name} is text beside labelled text, and --recipe {RECIPE} needs no labels; give all text as "
                "--train_file"
            )
    if inputs.task_name is not None and (inputs.validation_file or inputs.text_column or inputs.second_text_column):
        raise UsageError("--validation_file and column names belong to --train_file; a task knows its own")
    if inputs.train_file is not None and inputs.data_dir is not None:
        raise UsageError("--data_dir belongs to --task_name; with --train_file leave it out")
    if inputs.label_column is not None and inputs.validation_file is None:
        raise UsageError("--label_column names the numbers of --validation_file; give both")


def read_texts(inputs: InputArguments, tell: Callable[[str], None]) -> tuple[Examples, Examples | None]:
    """The texts to distil on, each once (both of a pair), and what is scored: pairs with numbers, or texts alone."""
    from dynabert.data import load_task, read_examples

    bad_rows: Any = inputs.bad_rows
    validation = None
    if inputs.task_name is not None:
        train = load_task(inputs.task_name, "train", data_dir=inputs.data_dir, bad_rows=bad_rows)
        validation = load_task(inputs.task_name, "validation", data_dir=inputs.data_dir, bad_rows=bad_rows)
    else:
        columns: dict[str, Any] = {
            "text_column": inputs.text_column,
            "second_text_column": inputs.second_text_column,
            "bad_rows": bad_rows,
        }
        train = read_examples(str(inputs.train_file), **columns, need_labels=False)
        if inputs.validation_file is not None:
            validation = read_scored(inputs.validation_file, inputs.label_column, columns)
    for own in (train, validation):
        if own is not None and own.skipped:
            tell(f"{own.source}: {own.skipped} bad rows left out")
    if validation is not None:
        validation = only_numbers_of_pairs(validation)
    if validation is not None and inputs.max_eval_samples is not None:
        validation = validation.head(inputs.max_eval_samples)
    return _once(train, inputs.max_train_samples), validation


def _once(examples: Examples, most: int | None) -> Examples:
    from dynabert.data.examples import Examples

    texts = tuple(dict.fromkeys((*examples.texts, *(examples.seconds or ()))))
    found = Examples(texts, source=examples.source)
    return found if most is None else found.head(most)


def _encoded(
    inputs: InputArguments,
    tokenizer: Any,
    length: int,
    examples: Examples,
    *,
    token_types: bool,
    tell: Callable[[str], None],
) -> Encoded:
    from dynabert.data import tokenise_once

    found = tokenise_once(
        examples,
        tokenizer,
        length,
        True,
        token_types=None if token_types else False,
        cache_dir=inputs.cache_dir,
        overwrite=inputs.overwrite_cache,
        say=tell,
    )
    if found.num_truncated:
        tell(f"{examples.source}: {found.num_truncated} of {len(found)} texts cut to {length} tokens")
    return found
