"""``python -m benchmarks.accuracy``: the method beside what it is compared with, one folder a variant.

* ``dynabert``: the whole method, as ``dynabert train`` does it. Its teacher is that of the others.
* ``no_rewiring``: heads and neurons stay in their order.
* ``no_distillation``: the same sub-networks, stages and steps, learned from labels.
* ``independent``: for each sub-network a network of its own shape, layers, leading heads and neurons taken from the
  plain checkpoint, as DistilBERT and LayerDrop take layers, and fine-tuned on labels.

A variant that is complete is not repeated; one that was cut goes on. Every option of ``dynabert train`` may follow.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..rows import said_options
from .independent import run_independent
from .rows import collect, draw, shown

VARIANTS = ("dynabert", "no_rewiring", "no_distillation", "independent")
_OF_VARIANT = {"no_rewiring": ["--no_rewiring"], "no_distillation": ["--no_distillation"]}


def train_arguments(variant: str, rest: Sequence[str], model: str, out: Path) -> list[str]:
    """The options of ``dynabert train`` for a variant."""
    if variant == "dynabert":
        return ["--model_name_or_path", model, *rest, "--output_dir", str(out / variant)]
    teacher = str(out / "dynabert" / "teacher")
    given = ["--model_name_or_path", teacher, "--fine_tuned", *rest, *_OF_VARIANT[variant]]
    return [*given, "--output_dir", str(out / variant)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the variants in turn, then writes rows.json, with the call or calls that made each, and a picture."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="The method beside its comparisons; unknown options go to 'dynabert train'.",
        allow_abbrev=False,
    )
    flags.add_argument("--model_name_or_path", help="the plain checkpoint; default: the packaged all-MiniLM-L6-v2")
    flags.add_argument("--output_dir", type=Path, required=True, help="a folder for this task and seed")
    flags.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}, in this order")
    flags.add_argument(
        "--independent_subnets", help="only these shapes, such as 'w0.5-d1,w0.25-d0.5'; default: every one"
    )
    flags.add_argument("--rows", type=Path, help="write the rows here too")
    options, rest = flags.parse_known_args(argv)
    chosen = [name.strip() for name in options.variants.split(",")]
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        flags.error(f"--variants has {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    out: Path = options.output_dir
    if "dynabert" not in chosen and not (out / "dynabert" / "teacher" / "complete.json").is_file():
        flags.error(f"{out} has no finished teacher; run the variant dynabert first")
    model = options.model_name_or_path
    if model is None:
        from dynabert.cli.demo import default_model_path

        model = str(default_model_path())

    from dynabert.cli.train import parse, run_arguments

    commands = known_commands(out / "rows.json")
    said = "python -m benchmarks.accuracy " + shlex.join(said_options(argv))
    for variant in [name for name in VARIANTS if name in chosen]:
        before = parts_done(out / variant)
        given = train_arguments("dynabert" if variant == "independent" else variant, rest, model, out)
        print(f"== {variant}", flush=True)
        if variant == "independent":
            run_independent(*parse(given), out / variant, options.independent_subnets)
        else:
            run_arguments(given)
        own = commands.setdefault(variant, [])
        if said not in own and (not own or parts_done(out / variant) != before):
            # A call that found all of it done made none of its rows. Where the maker is not known it stands for it: the
            # settings of a folder are checked, so they are the same.
            own.append(said)
    found = collect(out, [name for name in VARIANTS if (out / name).is_dir()])
    found["commands"] = {name: commands[name] for name in VARIANTS if commands.get(name)}
    text = json.dumps(found, indent=1) + "\n"
    (out / "rows.json").write_text(text, encoding="utf-8")
    print(shown(found))
    picture = draw(found, out / "scores.png")
    if options.rows is not None:
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        options.rows.write_text(text, encoding="utf-8")
        if picture is not None:
            options.rows.with_suffix(".png").write_bytes(picture.read_bytes())
    return 0


def parts_done(folder: Path) -> set[str]:
    """The parts of a variant that are complete."""
    return {str(path.parent.relative_to(folder)) for path in folder.glob("*/complete.json")}


def known_commands(path: Path) -> dict[str, list[str]]:
    """For each variant the calls that made its rows, from a rows.json that is there. An older one has only the last
    call's ``command``: it stands for the variants that it names."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if "commands" in found:
        return {name: list(calls) for name, calls in found["commands"].items()}
    words = shlex.split(found.get("command", ""))
    if not words:
        return {}
    named: tuple[str, ...] = VARIANTS
    for index, word in enumerate(words):
        if word == "--variants" and index + 1 < len(words):
            named = tuple(words[index + 1].split(","))
        elif word.startswith("--variants="):
            named = tuple(word.removeprefix("--variants=").split(","))
    return {name.strip(): [found["command"]] for name in named}


if __name__ == "__main__":
    sys.exit(main())
