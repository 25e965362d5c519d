"""``dynabert serve``: an HTTP server that answers at the width that keeps its promise."""

from __future__ import annotations

import argparse
import gc
import socket
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError, add_command, add_model_options, cpu_threads
from dynabert.cli.output import print_table, say
from dynabert.cli.pick_files import say_if_untrained, trained_subnets

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig, SubnetConfig
    from dynabert.engine import ElasticServer, InferenceEngine

_MOST_PORT = 65535


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
        "--promise_ms", metavar="X", type=float, default=100.0, help="milliseconds in which a request is to be answered"
    )
    parser.add_argument("--max_waiting", metavar="N", type=int, default=4096, help="texts that may wait")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU; default: torch's own")
    parser.add_argument(
        "--threshold",
        metavar="P",
        type=float,
        default=0.5,
        help="least probability at which a multi-label model assigns a label",
    )
    group = parser.add_argument_group("HTTP")
    group.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="0.0.0.0: every network of this machine")
    group.add_argument("--port", metavar="N", type=int, default=8000, help="0: any that is free; it is said which")
    group.add_argument("--max_body_mb", metavar="N", type=int, default=8, help="most mebibytes of a request")
    group.add_argument("--access_log", action="store_true", help="a line on stderr for each request")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check_usage(args)
    from dynabert.engine.http import http_app  # before the network is loaded: it may not be installed

    with _listening(args.host, args.port) as listener, cpu_threads(args.threads):
        engine = _engine(args)
        with _server(args, engine) as server:
            app = http_app(
                server,
                model_name=args.model_name_or_path,
                max_body_bytes=args.max_body_mb << 20,
                truncate=args.truncate,
            )
            _tell(server)
            # A full collection else walks through all of PyTorch while requests wait.
            gc.collect()
            gc.freeze()
            try:
                _answer(app, listener, args)
            finally:
                gc.unfreeze()


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
    except OSError as error:
        raise ValueError(f"--host {host} is no address: {error.strerror}; allowed: such as 127.0.0.1 or ::1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--host {host} --port {port} cannot be listened on: {error.strerror}; give another, or --port 0 for any "
            "that is free"
        ) from error
    return listener


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
        if len(shape.heads) == config.num_hidden_layers and len(set(shape.heads)) == 1 and min(shape.heads) > 0:
            found.setdefault(shape, one)
    return [found[shape] for shape in sorted(found, key=lambda shape: -sum(shape.work))]


def _tell(server: ElasticServer) -> None:
    print_table(
        ["sub-network", "ms of a batch", "and of 100 tokens"],
        [[own.subnet, f"{own.fixed_ms:.2f}", f"{100 * own.ms_per_token:.2f}"] for own in server.ladder],
        title=f"the first of these at which all that waits is answered in {server.promise_ms:g} ms answers",
    )


def _answer(app: Any, listener: socket.socket, args: argparse.Namespace) -> None:
    """Until a signal ends it: requests that are there are answered first."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="info" if args.access_log else "warning", access_log=args.access_log, lifespan="on"
    )
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    say(f"answering at http://{shown}:{port}/predict; Ctrl-C ends it")
    uvicorn.Server(config).run(sockets=[listener])
