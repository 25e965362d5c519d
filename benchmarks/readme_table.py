"""The tables of README and docs, made from committed measurements: ``python -m benchmarks.readme_table --write``.

Takes ``benchmarks/results/demo/results.json``, which ``make demo`` left there, and
``benchmarks/results/cpu-suite.json``, rows of ``dynabert-bench --suite cpu``, and
``benchmarks/results/cpu-peers-*.json``, rows of ``benchmarks.cpu_peers``, and writes the tables between the markers of
README.md (two threads) and docs/run.md (one), where ``serving.json``, of ``benchmarks.serving``, and
``http-overhead.json``, of ``benchmarks.http_overhead``, and ``embeddings.json``, of ``benchmarks.embeddings``, have
tables too.
``cpu-tiles-*.json`` are rows of ``dynabert-bench`` on a processor with
tile registers, with them and without; their table stands in docs/kernels.md. ``cascades.json``, of
``benchmarks.cascades``, has one in docs/pick.md. A test holds the pages to them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.cascades import report as cascade_table
from benchmarks.cpu_peers.report import lengths_table
from benchmarks.cpu_peers.report import readme as peer_table
from benchmarks.embeddings import report as embedding_table
from benchmarks.http_overhead import report as http_table
from benchmarks.serving import report as serving_table
from benchmarks.serving import urgent_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "demo" / "results.json"
SUITE = ROOT / "benchmarks" / "results" / "cpu-suite.json"
PEERS = {
    threads: [ROOT / "benchmarks" / "results" / f"cpu-peers-{model}{ending}.json" for model in ("minilm", "base")]
    for threads, ending in ((1, ""), (2, "-2threads"))
}
TILE_PEERS = [ROOT / "benchmarks" / "results" / f"cpu-peers-{model}-tiles.json" for model in ("minilm", "base")]
TILES = {isa: ROOT / "benchmarks" / "results" / f"cpu-tiles-{isa}.json" for isa in ("amx", "avx512")}
LENGTHS = ROOT / "benchmarks" / "results" / "cpu-peers-lengths.json"
SERVING = ROOT / "benchmarks" / "results" / "serving.json"
URGENT = ROOT / "benchmarks" / "results" / "serving-urgent.json"
HTTP = ROOT / "benchmarks" / "results" / "http-overhead.json"
EMBEDDINGS = ROOT / "benchmarks" / "results" / "embeddings.json"
CASCADES = ROOT / "benchmarks" / "results" / "cascades.json"
FUSED_GOAL = 1.2
WIDTHS, DEPTHS = ("1", "0.75", "0.5", "0.25"), ("1", "0.75", "0.5")


def table(results: dict[str, Any]) -> str:
    """The Markdown text between the markers."""
    by_name = {entry["subnet"]: entry for entry in results["subnets"]}
    largest = by_name["w1-d1"]
    trained = results.get("distillation")
    kinds = {"distilled": "_distilled", "rewired": "", "not rewired": "_unrewired"}
    if not trained:
        del kinds["distilled"]
    first, *others = kinds
    heads = ["width, depth", "parameters", "GFLOP", "latency", "time"]
    heads += [f"Matthews, {first}", *others, f"accuracy, {first}", *others]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for depth in DEPTHS:
        for width in WIDTHS:
            entry = by_name[f"w{width}-d{depth}"]
            cells = [
                f"{width}, {depth}",
                f"{entry['parameters'] / 1e6:.1f} M",
                f"{entry['gflop']:.2f}",
                f"{entry['latency_ms']:.1f} ms",
                f"{entry['latency_ms'] / largest['latency_ms']:.2f}",
                *(f"{100 * entry[f'metrics{kind}']['matthews_correlation']:.1f}" for kind in kinds.values()),
                *(f"{100 * entry[f'score{kind}']:.1f} %" for kind in kinds.values()),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    latency, versions, threads = results["latency"], results["versions"], results["threads"]
    lines += [
        "",
        f"Measured by `make demo`: all-MiniLM-L6-v2, fine-tuned on {results['train_examples']} drug reviews (three "
        f"classes) and scored on {results['examples']} others. The majority class is "
        f"{100 * results['majority_score']:.1f} %; seed {results['seed']}. *Time* is the share of the whole network's "
        f"latency: one text of {latency['seq_length']} tokens, {latency['device']}, {latency['dtype']}, "
        f"{threads} thread{'s' * (threads > 1)}, median of {latency['rounds']} interleaved rounds on a shared machine, "
        f"torch {versions['torch']}. The classes are uneven, so accuracy says little: a network that answers the "
        "majority class to everything has a Matthews correlation (times 100) of 0. "
        + (_gain(results, trained) if trained else UNTRAINED)
        + " The row: `benchmarks/results/demo/results.json`.",
    ]
    return "\n".join(lines)


UNTRAINED = (
    "No sub-network was trained here; this is what rewiring alone gives, and at small widths and depths it is not "
    "enough."
)


def _gain(results: dict[str, Any], trained: dict[str, Any]) -> str:
    """What the two stages did, and what came of it: the sub-networks' means, and where it was no gain."""
    width, depth = trained["stages"]
    rows = results["subnets"]
    scores = [
        100 * statistics.fmean(row[f"metrics{kind}"]["matthews_correlation"] for row in rows)
        for kind in ("_unrewired", "", "_distilled")
    ]
    close = [statistics.fmean(row[f"divergence{kind}"] for row in rows) for kind in ("", "_distilled")]
    lost = sum(
        row["metrics_distilled"]["matthews_correlation"] < row["metrics"]["matthews_correlation"] for row in rows
    )
    less = sum(row["score_distilled"] < row["score"] for row in rows)
    seconds = width["seconds"] + depth["seconds"]
    cut = ", ended by the clock" if width["cut"] or depth["cut"] else ""
    return (
        f"*Distilled*: DynaBERT's two stages without labels, {width['steps']} and {depth['steps']} steps of "
        f"{trained['batch_size']} reviews{cut}, {seconds / 60:.1f} minutes, {trained['dtype']}. Mean Matthews "
        f"correlation of the twelve: {scores[0]:.1f} not rewired, {scores[1]:.1f} rewired, {scores[2]:.1f} distilled "
        f"(lower than rewired at {lost} of {len(rows)}, in accuracy at {less}); mean divergence from the fine-tuned "
        f"network's answers: {close[0]:.2f} nats rewired, {close[1]:.2f} distilled."
    )


def kernel_table(suite: dict[str, Any]) -> str:
    """How many times plain PyTorch the fused sub-layers are, forward and backward, on the CPU: Markdown."""
    found = {
        (row["benchmark"], row["shape"], row["tokens"], row["width"], row["dtype"]): row
        for row in suite["rows"]
        if row["provider"] == "cpu" and row["speedup_vs_torch"] is not None
    }
    columns = [(dtype, width) for dtype in ("float32", "bfloat16") for width in (1.0, 0.25)]
    lines = [
        f"| sub-layer | {' | '.join(f'{dtype}, width {width:g}' for dtype, width in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for op in ("elastic_attention", "elastic_ffn"):
        for direction in ("forward", "backward"):
            cells = []
            for dtype, width in columns:
                name = op if direction == "forward" else f"{op}.backward"
                row = found[name, "bert-base", "128", width, dtype]
                cells.append(f"{row['median_ms']:.2f} ms, {row['speedup_vs_torch']:.2f}x")
            lines.append(f"| `{op}` {direction} | {' | '.join(cells)} |")
    measured = [row["speedup_vs_torch"] for row in found.values()]
    fused = [
        row["speedup_vs_torch"]
        for row in found.values()
        if row["op"] in ("elastic_attention", "elastic_ffn") and (row["tokens"] == "128" or row["width"] == 0.25)
    ]
    below = [ratio for ratio in fused if ratio < FUSED_GOAL]
    missed = (
        f"of the {len(fused)} rows of the fused sub-layers at 128 tokens or a quarter of the width {len(below)} miss "
        f"our goal of {FUSED_GOAL}, the lowest with {min(fused):.2f}"
    )
    facts = suite["environment"]
    lines += [
        "",
        f"One BERT-base sub-layer at 1 x 128 tokens, {facts['device']}, {facts['threads']} thread, and how many times "
        "as fast as plain PyTorch on views of the same weights (eager, its own attention; backward by autograd). Over "
        f"all {len(measured)} rows of the suite the ratio is {min(measured):.2f} at least, "
        f"{statistics.median(measured):.2f} in the median; {missed}. `dynabert-bench --suite cpu`; the rows: "
        "`benchmarks/results/cpu-suite.json`.",
    ]
    return "\n".join(lines)


def tile_table(amx: dict[str, Any], avx512: dict[str, Any]) -> str:
    """BERT-base's kernels in bfloat16 on a processor with tile registers, with and without them: Markdown."""

    def ratios(suite: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
        ours = (row for row in suite["rows"] if row["provider"] == "cpu")
        return {(row["benchmark"], row["shape"], row["tokens"], row["plan"]): row for row in ours}

    tiles, plain = ratios(amx), ratios(avx512)
    columns = [(tokens, plan) for tokens in ("128", "8x128") for plan in ("w1", "w0.25")]
    titles = [f"{tokens}, width {plan.removeprefix('w')}" for tokens, plan in columns]
    lines = [f"| BERT-base, bfloat16 | {' | '.join(titles)} |", f"| --- |{' --- |' * len(columns)}"]
    for op in ("varlen_attention", "elastic_attention", "elastic_ffn"):
        for direction in ("forward", "backward"):
            name = op if direction == "forward" else f"{op}.backward"
            cells = []
            for tokens, plan in columns:
                one, two = tiles[name, "bert-base", tokens, plan], plain[name, "bert-base", tokens, plan]
                cells.append(
                    f"{one['median_ms']:.2f} ms, {one['speedup_vs_torch']:.2f}x (without: "
                    f"{two['speedup_vs_torch']:.2f}x)"
                )
            lines.append(f"| `{op}` {direction} | {' | '.join(cells)} |")
    told = []
    for direction in ("forward", "backward"):
        here = [key for key in tiles if key[0].endswith(".backward") is (direction == "backward")]
        one, two = ([rows[key]["speedup_vs_torch"] for key in here] for rows in (tiles, plain))
        told.append(
            f"{direction} {min(one):.2f} at least and {statistics.median(one):.2f} in the median (without tiles "
            f"{min(two):.2f} and {statistics.median(two):.2f})"
        )
    facts = amx["environment"]
    command = facts["command"].split(" --out")[0]
    lines += [
        "",
        f"{facts['device']}, {facts['threads']} thread, torch {facts['torch']}, a shared machine; how many times as "
        "fast as plain PyTorch, whose library uses the tiles too, interleaved with it. Both widths, BERT-base and "
        f"MiniLM, these and the linear maps, {len(tiles)} rows: {'; '.join(told)}. `{command}`, "
        "and the same with `DYNABERT_CPU_ISA=avx512`; the rows: `benchmarks/results/cpu-tiles-amx.json`, "
        "`benchmarks/results/cpu-tiles-avx512.json`.",
    ]
    return "\n".join(lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tables() -> dict[str, dict[str, str]]:
    """For each page its tables: their text, by the name in its markers."""
    one, two = ([_read(path) for path in PEERS[threads]] for threads in (1, 2))
    return {
        "README.md": {"demo": table(_read(RESULTS)), "kernel": kernel_table(_read(SUITE)), "peers": peer_table(two)},
        "docs/run.md": {
            "peers": peer_table(one),
            "tile peers": peer_table([_read(path) for path in TILE_PEERS]),
            "lengths": lengths_table(_read(LENGTHS)),
            "serving": serving_table(_read(SERVING)),
            "urgent": urgent_report(_read(URGENT)),
            "http": http_table(_read(HTTP)),
            "embedding": embedding_table(_read(EMBEDDINGS)),
        },
        "docs/pick.md": {"cascade": cascade_table(_read(CASCADES))},
        "docs/kernels.md": {"tile": tile_table(*(_read(path) for path in TILES.values()))},
    }


def main() -> None:
    """Prints the tables; with ``--write``, puts them into the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write them into the pages")
    write = parser.parse_args().write
    for page, named in tables().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, made in named.items():
            begin, end = f"<!-- {name} table: begin -->", f"<!-- {name} table: end -->"
            pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.S)
            text = pattern.sub(lambda _, whole=f"{begin}\n{made}\n{end}": whole, text)  # type: ignore[misc]
            print(made)
        if write:
            (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
