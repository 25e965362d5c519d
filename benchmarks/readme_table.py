"""The README's table, made from a committed measurement: ``python -m benchmarks.readme_table --write``.

Takes ``benchmarks/results/demo/results.json``, which ``make demo`` left there, and writes the table between the
README's markers. A test holds the README to it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "demo" / "results.json"
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"
WIDTHS, DEPTHS = ("1", "0.75", "0.5", "0.25"), ("1", "0.75", "0.5")


def table(results: dict[str, Any]) -> str:
    """The Markdown text between the markers."""
    by_name = {entry["subnet"]: entry for entry in results["subnets"]}
    largest = by_name["w1-d1"]
    lines = [
        "| width, depth | parameters | GFLOP | latency | time | Matthews | not rewired | accuracy | not rewired |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for depth in DEPTHS:
        for width in WIDTHS:
            entry = by_name[f"w{width}-d{depth}"]
            lines.append(
                f"| {width}, {depth} | {entry['parameters'] / 1e6:.1f} M | {entry['gflop']:.2f} "
                f"| {entry['latency_ms']:.1f} ms | {entry['latency_ms'] / largest['latency_ms']:.2f} "
                f"| {100 * entry['metrics']['matthews_correlation']:.1f} "
                f"| {100 * entry['metrics_unrewired']['matthews_correlation']:.1f} "
                f"| {100 * entry['score']:.1f} % | {100 * entry['score_unrewired']:.1f} % |"
            )
    latency, versions = results["latency"], results["versions"]
    lines += [
        "",
        f"Measured by `make demo`: all-MiniLM-L6-v2, fine-tuned on {results['train_examples']} drug reviews (three "
        f"classes) and scored on {results['examples']} others. The majority class is "
        f"{100 * results['majority_score']:.1f} %; seed {results['seed']}. *Time* is the share of the whole network's "
        f"latency: one text of {latency['seq_length']} tokens, {latency['device']}, {latency['dtype']}, "
        f"{results['threads']} threads, median of {latency['rounds']} interleaved rounds on a shared machine, torch "
        f"{versions['torch']}. The classes are uneven, so accuracy says little: a network that answers the majority "
        "class to everything has a Matthews correlation (times 100) of 0. No sub-network was trained here; this is "
        "what rewiring alone gives, and at small widths and depths it is not enough. The row: "
        "`benchmarks/results/demo/results.json`.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table; with ``--write``, puts it into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    text = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        old = readme.read_text(encoding="utf-8")
        pattern = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.S)
        readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", old), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
