"""`ElasticServer` over HTTP: an ASGI application, to run by itself (``dynabert serve``) or as a part of another.

Bodies are JSON in UTF-8. An error is ``{"error": "what was wrong, and what is allowed"}``.

    POST /predict   {"text": "a film"} or {"texts": ["a film", ["a first text", "and its second"], ...]}, and, each
                    optional, "subnet": "w0.5-d1" or a cascade (of those that are served), "within_ms": 20,
                    "truncate": true
                    -> {"predictions": [{"label", "score", "scores", "labels", "logits", "subnet"}, ...]}, in order
    GET  /health    {"status": "ok"}; 503 where the server has ended
    GET  /info      what is served: sub-networks and their times, the promise, labels
    GET  /stats     `ServerStats`
    GET  /metrics   the same as text, for Prometheus

A field that is null counts as one that is not there. All texts of a request are taken, or none. 400: the request is not
as it must be; 408: its body came too slowly; 413: it is too large; 415: its body is compressed; 503, with
``Retry-After``: too many wait; 500: the network failed on it. A caller who hangs up takes its request back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import Any

from dynabert.configuration.cascade import Cascade, as_cascade
from dynabert.configuration.subnet import SubnetConfig
from dynabert.engine.prediction import Prediction
from dynabert.engine.requests import Text
from dynabert.engine.server import AUTO, ElasticServer, ServerOverloaded

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(
        f"an HTTP server needs starlette and uvicorn ({error}); pip install 'dynabert-kernels[serve]'"
    ) from error

MAX_BODY_BYTES = 2 << 20
BODY_SECONDS = 30.0
MAX_WITHIN_MS = 3.6e6
MAX_SUBNET = 1000  # characters of a sub-network's name
FIELDS = ("text", "texts", "subnet", "within_ms", "truncate")
HUNG_UP = 499  # nobody reads it; as other servers log it
_SHORT = 4096  # bytes of a body up to which reading and tokenising do not hold up the event loop for long

_SHOWN = 60  # characters of a value in a message

_LOGGER = logging.getLogger(__name__)


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers


def http_app(
    server: ElasticServer,
    *,
    model_name: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
    body_seconds: float = BODY_SECONDS,
    truncate: bool = False,
    any_subnet: bool = False,
    close: bool = True,
) -> Starlette:
    """An ASGI application that answers through ``server``; see this module for its paths.

    Args:
        server: answers the requests; others may ask it at the same time.
        model_name: for ``/info``.
        max_body_bytes: of a request; a larger one is refused.
        body_seconds: in which the body of a request must have come, else it is refused.
        truncate: whether a request that does not say so has its long texts cut, else they are refused.
        any_subnet: whether a request may name others than the server's sub-networks. Callers could then ask for some
            that were never trained, and take the device's time with ever new ones.
        close: True closes ``server`` when the application ends; what waits is answered first. An application that this
            one is mounted in does not tell it of the end: there, close the server in the outer one's lifespan.

    Raises:
        ImportError: starlette is not installed.
        ValueError: ``max_body_bytes`` below 1, or ``body_seconds`` not above 0.

    Example:
        >>> app = http_app(ElasticServer(engine, ["w1-d1", "w0.5-d1"], promise_ms=50))  # doctest: +SKIP
        >>> uvicorn.run(app, port=8000)  # doctest: +SKIP
    """
    if max_body_bytes < 1:
        raise ValueError(f"http_app: max_body_bytes is {max_body_bytes}; allowed: 1 or more")

    if not body_seconds > 0.0:
        raise ValueError(f"http_app: body_seconds is {body_seconds}; allowed: above 0")

    async def predict(request: Request) -> Response:
        body = await _body(request, max_body_bytes, body_seconds)
        asked = functools.partial(_ask, server, body, truncate, any_subnet)
        futures = asked() if len(body) <= _SHORT else await run_in_threadpool(asked)
        waiting = [asyncio.wrap_future(one) for one in futures]
        answers = asyncio.gather(*waiting)
        answers.add_done_callback(_noted)
        gone = asyncio.ensure_future(_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {answers, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                return Response(status_code=HUNG_UP)
            found: list[Prediction] = answers.result()
        except asyncio.CancelledError:
            if not answers.done():  # it is this request that ends
                raise
            raise _Refused(503, "the server was closed before the answer") from None
        except Exception as error:
            _LOGGER.exception("a request failed")
            raise _Refused(500, f"the network failed on this request: {error}") from error
        finally:
            gone.cancel()
            for one in waiting:  # nobody reads the other answers of a request that has failed
                one.cancel()
        return JSONResponse({"predictions": [one.to_dict() for one in found]})

    async def health(_: Request) -> Response:
        if not server.running:
            raise _Refused(503, "the server has ended")
        return JSONResponse({"status": "ok"})

    async def info(_: Request) -> Response:
        return JSONResponse(_described(server, model_name))

    async def stats(_: Request) -> Response:
        return JSONResponse(vars(server.stats()))

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(prometheus_text(server), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        if close:
            await run_in_threadpool(server.close)

    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/health", health),
            Route("/info", info),
            Route("/stats", stats),
            Route("/metrics", metrics),
        ],
        exception_handlers={_Refused: _refusal, 404: _no_such_path, 405: _wrong_method, Exception: _fault},
        lifespan=lifespan,
    )


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return JSONResponse({"error": error.words}, error.status, headers=error.headers)


async def _no_such_path(request: Request, _: Exception) -> Response:
    own = request.scope.get("root_path", "")  # where this application is mounted in another
    gets = ", ".join(f"{own}/{name}" for name in ("health", "info", "stats", "metrics"))
    return JSONResponse({"error": f"no path {request.url.path}; allowed: POST {own}/predict; GET {gets}"}, 404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    words = f"{request.url.path} does not take {request.method}; allowed: {allowed}"
    return JSONResponse({"error": words}, 405, headers={"Allow": allowed})


async def _fault(_: Request, __: Exception) -> Response:
    """Of what nobody has foreseen; it is raised again, and whoever runs the application logs it."""
    return JSONResponse({"error": "a fault of the server's own, which has logged it"}, 500)


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The request's body; refused as soon as it is known to be too large."""
    if request.url.query:
        raise _Refused(400, f"{request.url.path} takes no query; give {', '.join(FIELDS[2:])} in the body, as JSON")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise _Refused(
            415, f"the body's Content-Encoding is {_shown(coding)}; allowed: none", **{"Accept-Encoding": "identity"}
        )
    words = f"the body is larger than {most} bytes, which is the most; send fewer texts at once"
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most:
        raise _Refused(413, words)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _Refused(413, words)
                parts.append(part)
    except ClientDisconnect:
        raise _Refused(HUNG_UP, "the caller hung up") from None
    except TimeoutError:
        words = f"the body did not come in {seconds:g} s; send it faster, or fewer texts at once"
        raise _Refused(408, words, Connection="close") from None
    return b"".join(parts)


def _ask(server: ElasticServer, body: bytes, truncate: bool, any_subnet: bool) -> list[Future[Prediction]]:
    """Puts the texts of a body into the server's queue."""
    texts, options = _read(body, truncate, server.max_waiting)
    if not any_subnet:
        _check_served(options["subnet"], [own.subnet for own in server.ladder])
    try:
        return server.ask_all(texts, **options)
    except ServerOverloaded as error:
        raise _Refused(503, str(error), **{"Retry-After": "1"}) from None
    except (TypeError, ValueError) as error:
        raise _Refused(400, str(error)) from None
    except RuntimeError as error:
        if server.running:
            raise
        raise _Refused(503, str(error)) from None


def _noted(answers: asyncio.Future[Any]) -> None:
    """Of a request that ends before its answers: asyncio logs an exception that nobody has asked for."""
    if not answers.cancelled():
        answers.exception()


def _read(body: bytes, truncate: bool, most_texts: int) -> tuple[list[Text], dict[str, Any]]:
    """The texts of a body, and the other arguments of `ElasticServer.ask_all`."""
    try:
        given = json.loads(body.decode("utf-8"), object_pairs_hook=_object)
    except ValueError as error:
        raise _Refused(400, f"the body is no JSON in UTF-8: {error}") from None
    except RecursionError:
        raise _Refused(400, "the body is nested too deep") from None
    if not isinstance(given, dict):
        raise _Refused(400, f'the body is {_kind(given)}; allowed: an object, such as {{"text": "a film"}}')
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise _Refused(400, f"unknown field {_shown(unknown[0])}; allowed: {', '.join(FIELDS)}")
    given = {name: value for name, value in given.items() if value is not None}
    if ("text" in given) == ("texts" in given):
        raise _Refused(400, 'give "text", or "texts" for a list of them')
    many = given["texts"] if "texts" in given else [given["text"]]
    if not isinstance(many, list) or not many:
        raise _Refused(400, f'"texts" is {_kind(many)}; allowed: a list of one or more texts')
    if len(many) > most_texts:
        raise _Refused(413, f'"texts" is {_kind(many)}; allowed: up to {most_texts}, as many as may wait; send fewer')
    within_ms = given.get("within_ms")
    if within_ms is not None and not (_is_number(within_ms) and 0 < within_ms <= MAX_WITHIN_MS):
        raise _Refused(400, f'"within_ms" is {_kind(within_ms)}; allowed: a number above 0, up to {MAX_WITHIN_MS:g}')
    cut = given.get("truncate", truncate)
    if not isinstance(cut, bool):
        raise _Refused(400, f'"truncate" is {_kind(cut)}; allowed: true or false')
    texts = [_text(one, index) for index, one in enumerate(many)]
    return texts, {"subnet": _subnet(given.get("subnet")), "within_ms": within_ms, "truncate": cut}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which each name stands once: of two values one would be lost in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _Refused(400, f"the body has {_shown(name)} twice; give it once")
    return found


def _text(given: object, index: int) -> Text:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and len(given) == 2 and all(isinstance(one, str) for one in given):
        return given[0], given[1]
    raise _Refused(400, f"text {index} is {_kind(given)}; allowed: a string, or a pair of them in a list")


def _subnet(given: object) -> str | SubnetConfig | Cascade:
    if given is None or given == AUTO:
        return AUTO
    if not isinstance(given, str):
        raise _Refused(400, f'"subnet" is {_kind(given)}; allowed: text such as "w0.5-d0.75", or "{AUTO}"')
    if len(given) > MAX_SUBNET:
        raise _Refused(400, f'"subnet" has {len(given)} characters; allowed: up to {MAX_SUBNET}')
    try:
        return as_cascade(given) or SubnetConfig.parse(given)
    except (TypeError, ValueError) as error:
        raise _Refused(400, str(error)) from None


def _check_served(subnet: str | SubnetConfig | Cascade, served: list[str]) -> None:
    named = subnet.subnets if isinstance(subnet, Cascade) else () if subnet == AUTO else (subnet,)
    others = [str(one) for one in named if str(one) not in served]
    if others:
        cascade = f", or a cascade such as {served[-1]}@0.9/{served[0]}" if len(served) > 1 else ""
        raise _Refused(
            400,
            f"sub-network {_shown(others[0])} is not served here; allowed: {AUTO}, {', '.join(served)}{cascade}; "
            "dynabert serve takes more with --subnets, and any with --any_subnet",
        )


def _is_number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def _kind(given: object) -> str:
    """A JSON value, in words."""
    if given is None:
        return "null"
    if isinstance(given, list):
        return f"a list of {len(given)}"
    if isinstance(given, Mapping):
        return "an object"
    return _shown(given)


def _shown(given: object) -> str:
    shown = json.dumps(given)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


async def _gone(request: Request) -> None:
    """Ends when the caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _described(server: ElasticServer, model_name: str) -> dict[str, Any]:
    engine = server.engine
    return {
        "model": model_name,
        "device": str(engine.model.device),
        "problem_type": engine.problem_type,
        "labels": list(engine.labels),
        "max_tokens": engine.max_length,
        "promise_ms": server.promise_ms if math.isfinite(server.promise_ms) else None,
        "max_waiting": server.max_waiting,
        "subnets": [own._asdict() for own in server.ladder],
    }


def prometheus_text(server: ElasticServer) -> str:
    """`ServerStats` in Prometheus' text format."""
    stats = server.stats()
    lines: list[str] = []

    def add(name: str, kind: str, words: str, values: Mapping[str, float | None]) -> None:
        lines.extend((f"# HELP dynabert_{name} {words}", f"# TYPE dynabert_{name} {kind}"))
        lines.extend(f"dynabert_{name}{own} {value:.15g}" for own, value in values.items() if value is not None)

    add("answered_total", "counter", "Requests answered.", {"": stats.answered})
    add("failed_total", "counter", "Requests on which the network failed.", {"": stats.failed})
    add("refused_total", "counter", "Requests refused because too many waited.", {"": stats.refused})
    add("late_total", "counter", "Answers that came after their promise.", {"": stats.late})
    add("batches_total", "counter", "Batches that gave answers.", {"": stats.batches})
    by_subnet = {f'{{subnet="{name}"}}': float(count) for name, count in stats.by_subnet.items()}
    add("answers_by_subnet_total", "counter", "Answers of each sub-network.", by_subnet)
    add("waiting", "gauge", "Requests that wait now.", {"": stats.waiting})
    add("slowdown", "gauge", "By which batches take longer than when the server was made.", {"": stats.slowdown})
    quantiles = {'{quantile="0.5"}': stats.p50_ms, '{quantile="0.95"}': stats.p95_ms, '{quantile="0.99"}': stats.p99_ms}
    add("latency_ms", "gauge", "From the request to its answer, of the last ones.", quantiles)
    return "\n".join(lines) + "\n"
