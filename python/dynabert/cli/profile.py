"""``dynabert profile``: what every sub-network costs on this device, in a file that states its own error."""

from __future__ import annotations

import argparse
import logging
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError, add_command
from dynabert.cli.output import percent, print_json, print_table, say

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile import DeviceProfile

DTYPES = ("float32", "bfloat16", "float16", "int8")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "profile",
        run,
        "measure this device",
        "Time sub-networks of one checkpoint on this device, fit what a layer, its heads and its neurons cost, time "
        "random sub-networks that the fit has not seen, and state the error. A time is that of the model's own pass on "
        "packed random tokens; tokenising is not in it. Run it while the machine is quiet.",
    )
    parser.add_argument(
        "--model_name_or_path", metavar="PATH", required=True, help="folder or hub id of a checkpoint of any kind"
    )
    parser.add_argument("--output_file", metavar="FILE", required=True, help="the profile to write, JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the --output_file if it is there")
    parser.add_argument("--batch_sizes", metavar="LIST", default="1,8", help="sequences of a pass")
    parser.add_argument("--seq_lengths", metavar="LIST", default="32,128", help="tokens of a sequence")
    parser.add_argument(
        "--dtypes",
        metavar="LIST",
        help=f"of {', '.join(DTYPES)}; default: float32, bfloat16, and int8 where the processor has AVX512-VNNI",
    )
    parser.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu or cuda (not yet run on a GPU)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of a pass on the CPU; default: torch's own")
    parser.add_argument("--max_minutes", metavar="M", type=float, default=5.0, help="for everything")
    parser.add_argument(
        "--check", metavar="N", type=int, default=50, help="random sub-networks for the error at every point"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="decides tokens, sub-networks and order")
    parser.add_argument("--json", action="store_true", help="print the profile instead of tables")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    batch_sizes = numbers("--batch_sizes", args.batch_sizes)
    seq_lengths = numbers("--seq_lengths", args.seq_lengths)
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; allowed: 1 or more")
    if not 0.0 < args.max_minutes < math.inf:
        raise UsageError(f"--max_minutes is {args.max_minutes}; allowed: above 0")
    if args.check < 0:
        raise UsageError(f"--check is {args.check}; allowed: 0 or more")
    path = Path(args.output_file)
    if path.is_dir() or (path.exists() and not args.overwrite):
        raise ValueError(f"--output_file {path} is there; give another file, or --overwrite")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--output_file {path}: there is no folder {path.parent}; make it first")
    _check_writable(path)

    import torch

    from dynabert.engine.device import checked_device
    from dynabert.profile import profile_device

    device = checked_device(args.device)
    dtypes = default_dtypes(device.type) if args.dtypes is None else names(args.dtypes)
    before = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        found = profile_device(
            lambda dtype: open_to_serve(args.model_name_or_path, str(device), dtype),
            dtypes=dtypes,
            batch_sizes=batch_sizes,
            seq_lengths=seq_lengths,
            max_minutes=args.max_minutes,
            check=args.check,
            seed=args.seed,
            progress=None,
        )
    finally:
        torch.set_num_threads(before)
    found.save(path)
    if args.json:
        print_json(found.to_dict())
    else:
        show(found)
    pick = f"dynabert pick --profile {shlex.quote(str(path))} --max_latency_ms ..."
    say(f"{found.seconds:.0f} s; {path}; what fits a limit: {pick}")


def _check_writable(path: Path) -> None:
    """Written to once, beside the file: what cannot be kept is refused before minutes of measuring."""
    probe = path.with_name(f"{path.name}.part")
    try:
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--output_file {path} cannot be written: {error}; give another file") from error


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from ``"1,8"``, each once."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or len(set(found)) < len(found):
        raise UsageError(f"{option} is {text!r}; allowed: whole numbers from 1, each once, such as 1,8")
    return found


def names(text: str) -> tuple[str, ...]:
    """Dtypes from ``"float32,int8"``, each once."""
    found = tuple(part.strip() for part in text.split(","))
    if len(set(found)) < len(found) or not set(found) <= set(DTYPES):
        raise UsageError(f"--dtypes is {text!r}; allowed: {', '.join(DTYPES)}, each once")
    return found


def default_dtypes(device: str) -> tuple[str, ...]:
    """Those that this machine has fast products for."""
    if device != "cpu":
        return ("float32", "bfloat16", "float16")
    import dynabert_kernels as dk

    features = dk.config()["cpu_features"] or {}
    fast = features.get("isa") in ("avx512", "amx") and features.get("avx512_vnni")
    return ("float32", "bfloat16", *(("int8",) if fast else ()))


def open_to_serve(path: str, device: str, dtype: str) -> ElasticBertForSequenceClassification:
    """The model as `InferenceEngine.from_pretrained` would hold it; a head that is missing is drawn, and costs what a
    trained one does."""
    from dynabert.engine import load_model, torch_dtype

    int8 = dtype == "int8"
    with _no_word_of_a_fresh_head():
        model = load_model(
            path, device=device, dtype=torch_dtype("float32" if int8 else dtype), fresh_head=True, int8=int8
        )
    if not int8 and model.device.type == "cpu":
        model.pack_weights()
    return model


@contextmanager
def _no_word_of_a_fresh_head() -> Iterator[None]:
    logger = logging.getLogger("dynabert.modeling")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def show(profile: DeviceProfile) -> None:
    """Tables of the paper's sub-networks and of the stated errors."""
    from dynabert.configuration.grid import subnet_grid

    facts = profile.facts
    subnets = []
    for subnet in subnet_grid():
        try:
            profile.encoder.shape(subnet)
        except ValueError:  # a width that is not whole heads in this network
            continue
        subnets.append(subnet)
    points = [(batch, length) for batch in profile.batch_sizes for length in profile.seq_lengths]
    machine = facts.cpu if facts.device == "cpu" else facts.device
    for dtype in profile.dtypes:
        print_table(
            ["sub-network", *(f"{batch} x {length}" for batch, length in points)],
            [
                [str(subnet), *(f"{profile.latency_ms(subnet, *point, dtype):.2f}" for point in points)]
                for subnet in subnets
            ],
            title=f"{dtype}: milliseconds of batch x tokens; {machine}, {facts.isa}, {facts.threads} threads",
        )
    rows = [
        [
            f"{cell.dtype}, {cell.batch_size} x {cell.seq_length}",
            *_error_columns(cell.error),
            f"{100 * cell.disturbed:.0f}",
        ]
        for cell in profile.cells
    ]
    rows += [
        [f"{dtype}, {batch} x {length}, interpolated", *_error_columns(error), ""]
        for dtype, batch, length, error in profile.between
    ]
    print_table(
        ["point", "random ones", "mean %", "worst %", "later: mean %", "worst %", "drift", "held up %"],
        rows,
        title="error: predicted against measured, random sub-networks that the fit has not seen",
    )
    for note in profile.notes:
        say(note)


def _error_columns(error: Any) -> list[str]:
    if not error.networks:
        return ["0", "", "", "", "", ""]
    later = error.drift is not None
    return [
        f"{error.networks}",
        percent(error.mean),
        percent(error.worst),
        percent(error.mean_later) if later else "",
        percent(error.worst_later) if later else "",
        f"{error.drift:.2f}" if later else "",
    ]
