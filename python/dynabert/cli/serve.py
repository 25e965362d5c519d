"""``dynabert serve``: an HTTP server that answers at the width that keeps its promise."""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import (
    UsageError,
    add_command,
    add_model_options,
    add_threshold_option,
    cpu_threads,
)
from dynabert.cli.output import print_table, say
from dynabert.cli.pick_files import say_if_untrained, trained_subnets

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig, SubnetConfig
    from dynabert.engine import ElasticServer, InferenceEngine

_MOST_PORT = 65535
_BACKLOG = 2048  # connections that wait to be accepted
_LADDER_TOKENS, _SLOWER = 512, 1.2  # where one sub-network is clearly slower than another


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "serve",
        run,
        "answer over HTTP",
        "Answer texts over HTTP. Requests that wait share a batch, and under load they get narrower sub-networks, so "
        'that --promise_ms is kept. POST /predict takes JSON, {"text": "a film"} or {"texts": [...]}; GET '
        "/health, /info, /stats and /metrics (Prometheus) tell of the server. It needs starlette and uvicorn: pip "
        "install 'dynabert-kernels[serve]'.",
    )
    add_model_options(parser, int8=True)
    parser.add_argument(
        "--subnets",
        metavar="LIST",
        help="from which the server chooses, the one that is wanted most first, such as w1,w0.5,w0.25-d0.5; default: "
        "the widths that the checkpoint was trained for, at full depth, or the whole network alone",
    )
    parser.add_argument(
        "--any_subnet", action="store_true", help="requests may name any sub-network of the network, trained or not"
    )
    parser.add_argument(
        "--promise_ms", metavar="X", type=float, default=100.0, help="milliseconds in which a request is to be answered"
    )
    parser.add_argument("--max_waiting", metavar="N", type=int, default=4096, help="texts that may wait")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU; default: torch's own")
    add_threshold_option(parser)
    group = parser.add_argument_group("HTTP")
    group.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="0.0.0.0: every network of this machine")
    group.add_argument("--port", metavar="N", type=int, default=8000, help="0: any that is free; it is said which")
    group.add_argument("--max_body_mb", metavar="N", type=int, default=2, help="most mebibytes of a request")
    group.add_argument("--access_log", action="store_true", help="a line on stderr for each request")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check_usage(args)
    http_app = _http_app()  # before the network is loaded

    with _listening(args.host, args.port) as listener, cpu_threads(args.threads):
        engine = _engine(args)
        with _server(args, engine) as server:
            app = http_app(
                server,
                model_name=args.model_name_or_path,
                max_body_bytes=args.max_body_mb << 20,
                truncate=args.truncate,
                any_subnet=args.any_subnet,
            )
            _tell(server)
            # A full collection else walks through all of PyTorch while requests wait.
            gc.collect()
            gc.freeze()
            try:
                _answer(app, listener, server, args)
            finally:
                gc.unfreeze()


def _http_app() -> Callable[..., Any]:
    """`dynabert.engine.http.http_app`; ``ImportError`` with advice where something that it or its server needs is not
    installed."""
    try:
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'dynabert-kernels[serve]'") from error
    from dynabert.engine.http import http_app

    return http_app


def _check_usage(args: argparse.Namespace) -> None:
    for name, least, most in (
        ("max_waiting", 1, None),
        ("max_batch_tokens", 1, None),
        ("threads", 1, None),
        ("max_body_mb", 1, None),
        ("port", 0, _MOST_PORT),
    ):
        value = getattr(args, name)
        if value is not None and (value < least or (most is not None and value > most)):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise UsageError(f"--{name} is {value}; allowed: {allowed}")
    if not args.promise_ms > 0.0:
        raise UsageError(f"--promise_ms is {args.promise_ms:g}; allowed: above 0")


def _listening(host: str, port: int) -> socket.socket:
    """A socket of this address, before minutes of loading."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--host {host} is no address: {why}; allowed: such as 127.0.0.1 or ::1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _not_listening(host, port, error) from error
    return listener


def _not_listening(host: str, port: int, error: OSError) -> ValueError:
    return ValueError(
        f"--host {host} --port {port} cannot be listened on: {error.strerror}; give another, or --port 0 for any that "
        "is free"
    )


def _engine(args: argparse.Namespace) -> InferenceEngine:
    from dynabert.engine import InferenceEngine

    return InferenceEngine.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        dtype=args.dtype,
        max_length=args.max_seq_length,
        max_batch_tokens=args.max_batch_tokens,
        threshold=args.threshold,
    )


def _server(args: argparse.Namespace, engine: InferenceEngine) -> ElasticServer:
    from dynabert.engine import ElasticServer

    subnets = ladder_subnets(args.subnets, args.model_name_or_path, engine.model.config)
    say_if_untrained(args.model_name_or_path, engine.model.config, [*map(str, subnets)])
    return ElasticServer(
        engine,
        subnets,
        promise_ms=args.promise_ms,
        max_waiting=args.max_waiting,
    )


def ladder_subnets(asked: str | None, folder: str, config: ElasticBertConfig) -> list[SubnetConfig]:
    """Those named; else the trained ones of full depth and one width, the widest first; else the whole network.

    Raises:
        ValueError: a named one that cannot be read or does not fit.
    """
    from dynabert.configuration import SubnetConfig
    from dynabert.configuration.grid import parse_subnets

    if asked is not None:
        return parse_subnets(asked, config)
    whole = SubnetConfig()
    found = {config.shape(whole): whole}
    for name in trained_subnets(folder):
        one = SubnetConfig.parse(name)
        shape = config.shape(one)
        if one.heads is None and min(shape.heads) > 0:
            found.setdefault(shape, one)
    return [found[shape] for shape in sorted(found, key=lambda shape: -sum(shape.work))]


def _tell(server: ElasticServer) -> None:
    print_table(
        ["sub-network", "ms of a batch", "and of 100 tokens"],
        [[own.subnet, f"{own.fixed_ms:.2f}", f"{100 * own.ms_per_token:.2f}"] for own in server.ladder],
        title=f"the first of these at which all that waits is answered in {server.promise_ms:g} ms answers",
    )
    for before, own in itertools.pairwise(server.ladder):
        if own.milliseconds(_LADDER_TOKENS) > _SLOWER * before.milliseconds(_LADDER_TOKENS):
            say(
                f"{own.subnet} takes longer than {before.subnet}, which is asked first: it answers only those who name "
                "it; give the one that is wanted most, which is the slowest, first"
            )


def _answer(app: Any, listener: socket.socket, server: ElasticServer, args: argparse.Namespace) -> None:
    """Until a signal ends it: requests that are there are answered first. A second signal ends it at once."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.end()
            super().handle_exit(sig, frame)

        def end(self) -> None:
            if self.should_exit:
                self.force_exit = True
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # that it cuts requests off is known
            self.should_exit = True

    config = uvicorn.Config(
        app, log_level="info" if args.access_log else "warning", access_log=args.access_log, lifespan="on"
    )
    config.load()  # imports: a signal should not meet them
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another one was bound to it too, and was loaded first
        raise _not_listening(args.host, args.port, error) from error
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    say(f"answering at http://{shown}:{port}/predict; Ctrl-C ends it")
    own = Server(config)
    try:
        with _ended_by_hangup(own.end):
            own.run(sockets=[listener])
    finally:
        if own.force_exit:
            server.close(cancel=True)


@contextmanager
def _ended_by_hangup(end: Callable[[], None]) -> Iterator[None]:
    """SIGHUP, which uvicorn leaves alone, ends it as SIGTERM does; where it is ignored (``nohup``) it stays so."""
    kind = getattr(signal, "SIGHUP", None)  # Windows has none
    before = None if kind is None else signal.getsignal(kind)
    if kind is None or before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hung_up(number: int, _: FrameType | None) -> None:
        came.append(number)
        end()

    signal.signal(kind, hung_up)
    try:
        yield
    finally:
        signal.signal(kind, before)
    if came:
        signal.raise_signal(kind)
