"""The command ``dynabert``: one module for each subcommand, imported light; torch is only imported when a command runs.

Exit codes: 0 done; 1 refused or failed, with one line that says why (``--traceback`` shows where); 2 wrong usage; 130
interrupted; 143 and 129 ended from outside (SIGTERM, SIGHUP).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dynabert.cli import card, cascade, demo, embed, env, evaluate, export, pick, predict, profile, rewire, serve, train
from dynabert.cli.options import UsageError
from dynabert.configuration.run_folder import network_folder

COMMANDS = (train, predict, embed, serve, evaluate, rewire, profile, pick, cascade, export, card, demo, env)

# What a user's data, files or machine can bring about. Anything else is a fault of ours and keeps its traceback.
_REFUSALS = (ValueError, TypeError, OSError, ImportError, RuntimeError)


class _Version(argparse.Action):
    """Prints the installed version; it is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"dynabert-kernels {version('dynabert-kernels')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="dynabert",
        description="One BERT checkpoint at any width and depth: train, evaluate, rewire, profile, pick, export, run.",
        epilog="A sub-network is written w0.5-d0.75: half the heads and neurons, three quarters of the layers.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        if len(given) > 1 and given[0] == "train":
            # Its options are transformers' own and many: they are read when it runs.
            args = argparse.Namespace(command="train", traceback="--traceback" in given)
            args.run = lambda _: train.run_arguments(given[1:])
        else:
            args = parser.parse_args(given)
    except SystemExit as stop:  # argparse printed help (0) or what is wrong (2)
        return int(stop.code or 0)
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"dynabert {args.command}: {message}\n"
    try:
        with _ended_cleanly(args.command):
            _open_run_folder(args)
            args.run(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except UsageError as error:
        print(f"dynabert {args.command}: {error}; see dynabert {args.command} --help", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
        # Python flushes standard output once more at its end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"dynabert {args.command}: interrupted", file=sys.stderr)
        return 130
    except _REFUSALS as error:
        if args.traceback:
            raise
        text = " ".join(_told(error).split()) or type(error).__name__
        print(f"dynabert {args.command}: {text}", file=sys.stderr)
        return 1
    finally:
        warnings.formatwarning = formatted
    return 0


def _open_run_folder(args: argparse.Namespace) -> None:
    """Puts the network that a training run ended with in the place of the run's folder, and says so."""
    given = getattr(args, "model_name_or_path", None)
    if isinstance(given, str) and (found := network_folder(given)) != given:
        args.model_name_or_path = found
        print(f"dynabert {args.command}: {given} is a training run; its network is {found}", file=sys.stderr)
        if args.command == "card" and args.run_dir is None:
            args.run_dir = given


def _told(error: BaseException) -> str:
    """What was wrong, in words: the system's own errors have a number and a path, and no advice."""
    if not isinstance(error, OSError) or not error.strerror or not isinstance(error.filename, str):
        return str(error)
    path = Path(error.filename)
    blocking = next((above for above in (path, *path.parents) if above.exists() and not above.is_dir()), None)
    if isinstance(error, (FileExistsError, NotADirectoryError)) and blocking is not None:
        return f"{path} cannot be a folder: {blocking} is a file; give another path"
    return f"{path}: {error.strerror[0].lower()}{error.strerror[1:]}; give a path that can be read or written"


@contextmanager
def _ended_cleanly(command: str) -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as an exception does, so that drafts beside an output folder are removed.

    The second one ends it at once. Signals that somebody handles or ignores (``nohup``) stay as they are, and training
    has checkpoints in place of drafts and a launcher that waits for its processes.
    """
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    if command == "train" or threading.current_thread() is not threading.main_thread():
        kinds = []
    kinds = [kind for kind in kinds if signal.getsignal(kind) is signal.SIG_DFL]

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        print(f"dynabert {command}: ended by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number)

    for kind in kinds:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)
