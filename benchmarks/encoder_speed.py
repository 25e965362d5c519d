"""``python -m benchmarks.encoder_speed``: an encoder's layers, plain, packed and in int8, one call each.

Random weights of a network's shape and random activations: the time does not depend on the numbers. A dtype's name
alone means packed weights. All kinds take turns in the same rounds, so the ratios are free of the machine's drift.
Tokenising, embeddings and the head are not in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dynabert_kernels as dk
from dynabert_kernels import LayerWeights, Plan, SubnetShape
from dynabert_kernels.testing.timing import HostClock, time_interleaved

from .rows import environment, said_options

# Layers, hidden size, heads, neurons.
NETWORKS = {"bert-base": (12, 768, 12, 3072), "minilm": (6, 384, 12, 1536)}
BATCHES = ((1, 8), (1, 16), (1, 128), (8, 128))  # sequences, tokens of each
WIDTHS = (1.0, 0.25)


def random_layers(network: str) -> list[LayerWeights]:
    """Weights of a network's shape, float32."""
    layers, width, heads, neurons = NETWORKS[network]
    drawn = torch.Generator().manual_seed(0)

    def some(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=drawn) * 0.05

    made = []
    for _ in range(layers):
        attention = some(heads, 3, width // heads, width), some(heads, 3, width // heads), some(width, width)
        ffn = some(neurons, width), some(neurons), some(width, neurons), some(width)
        norms = 1 + some(width), some(width)
        made.append(LayerWeights(*attention, some(width), *norms, *ffn, *norms))
    return made


def packed(layers: Sequence[LayerWeights]) -> list[Any]:
    """The layers, packed where this machine packs their dtype."""
    if not dk.packed_panel(layers[0].qkv_weight.dtype):
        return list(layers)
    return [dk.pack_layer(layer) for layer in layers]


def measure(network: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each batch and width: medians and bests in milliseconds, and their ratios to int8's.

    On a machine with other work the best samples say more of short calls than the medians."""
    layers = random_layers(network)
    halves = [LayerWeights(*(tensor.bfloat16() for tensor in layer)) for layer in layers]
    wide, half = packed(layers), packed(halves)
    small = [dk.quantise_layer(layer, torch.bfloat16) for layer in layers]
    mixed = [dk.quantise_layer(layer, torch.float32) for layer in layers]
    count, columns, heads, neurons = NETWORKS[network]
    rows = []
    for sequences, tokens in BATCHES:
        for width in WIDTHS:
            shape = SubnetShape((int(heads * width),) * count, (int(neurons * width),) * count)
            plan = Plan.build([shape], [[tokens] * sequences])
            borders = torch.arange(sequences + 1, dtype=torch.int32) * tokens
            x = torch.randn(sequences * tokens, columns, generator=torch.Generator().manual_seed(1))
            b = x.bfloat16()
            timed = time_interleaved(
                {
                    "float32": lambda x=x, at=(borders, plan): dk.elastic_encoder(x, wide, *at),
                    "bfloat16": lambda x=b, at=(borders, plan): dk.elastic_encoder(x, half, *at),
                    "float32, not packed": lambda x=x, at=(borders, plan): dk.elastic_encoder(x, layers, *at),
                    "bfloat16, not packed": lambda x=b, at=(borders, plan): dk.elastic_encoder(x, halves, *at),
                    "int8": lambda x=b, at=(borders, plan): dk.elastic_encoder_int8(x, small, *at),
                    "int8, the rest float32": lambda x=x, at=(borders, plan): dk.elastic_encoder_int8(x, mixed, *at),
                },
                clock=HostClock(),
                rounds=rounds,
                warmup_rounds=2,
            )
            rows.append(
                {
                    "network": network,
                    "sequences": sequences,
                    "tokens": tokens,
                    "width": width,
                    "median_ms": {name: round(found.median_ms, 3) for name, found in timed.items()},
                    "best_ms": {name: round(found.best_ms, 3) for name, found in timed.items()},
                    "times_faster": {
                        name: round(found.median_ms / timed["int8"].median_ms, 3) for name, found in timed.items()
                    },
                    "times_faster_at_best": {
                        name: round(found.best_ms / timed["int8"].best_ms, 3) for name, found in timed.items()
                    },
                }
            )
            print(shown(rows[-1]), flush=True)
    return rows


def shown(row: dict[str, Any]) -> str:
    """A row as a line."""
    times = ", ".join(f"{name} {time:.2f}" for name, time in row["median_ms"].items())
    best = row["times_faster_at_best"]
    ratios = ", ".join(
        f"{ratio:.2f}x ({best[name]:.2f}x) {name}" for name, ratio in row["times_faster"].items() if name != "int8"
    )
    return f"{row['network']} {row['sequences']} x {row['tokens']} width {row['width']}: ms {times}; int8 is {ratios}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; ``--out`` writes the rows."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder_speed",
        description="An encoder's layers: plain, packed, in int8.",
        allow_abbrev=False,
    )
    flags.add_argument("--networks", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    flags.add_argument("--rounds", type=int, default=30, help="samples of each kind")
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--out", type=Path, help="write the rows here, as JSON")
    options = flags.parse_args(argv)
    chosen = options.networks.split(",")
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        flags.error(f"--networks has {', '.join(unknown)}; allowed: {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        rows = [row for name in chosen for row in measure(name, options.rounds)]
    if options.out is not None:
        facts = environment(torch.device("cpu"), said_options(argv), module="benchmarks.encoder_speed")
        found = {"environment": facts, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
