"""A search whose index is made by the whole network and whose queries are embedded by a narrow one.

    python examples/search_with_narrow_queries.py --model_name_or_path embedder --file texts.txt "a dull plot"
    python examples/search_with_narrow_queries.py --tiny "a dull plot"         # a tiny random network, made-up texts

Shows: `EmbeddingEngine` on one checkpoint. The texts are embedded once, by all of it; each query by each of several
sub-networks, all in one batch, and looked up in the same index. Prints what each finds, and how many of its hits the
whole network finds too. The checkpoint is what `dynabert train --recipe embedding` leaves: its narrow vectors are near
the whole network's. One that was never trained so finds other texts. Takes some seconds with `--tiny`; else as long
as the texts take to embed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tiny_network

from dynabert import EmbeddingEngine, Pooling
from dynabert.data import read_examples

SUBNETS = ("w1-d1", "w0.5-d1", "w0.25-d0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("query", help="what to look for")
    parser.add_argument("--model_name_or_path", help="an elastic sentence embedder with its tokenizer")
    parser.add_argument("--file", help="the texts: .txt, .tsv, .csv, .jsonl or .parquet")
    parser.add_argument("--tiny", action="store_true", help="a tiny random network and made-up texts in place of yours")
    parser.add_argument("--hits", type=int, default=3, help="shown of each sub-network")
    args = parser.parse_args()
    if bool(args.model_name_or_path and args.file) == args.tiny:
        parser.error("give either --model_name_or_path and --file, or --tiny")

    if args.tiny:
        with tempfile.TemporaryDirectory() as folder:
            path = tiny_network.tiny_checkpoint(Path(folder))
            engine = EmbeddingEngine.from_pretrained(path, pooling=Pooling("mean"))  # a classifier says no pooling
        texts = list(dict.fromkeys(text for text, _ in tiny_network.texts(200)))
    else:
        engine = EmbeddingEngine.from_pretrained(args.model_name_or_path)
        texts = list(read_examples(args.file, need_labels=False).texts)

    index = engine.embed(texts, truncate=True)  # (N, C), by the whole network
    queries = engine.embed([args.query] * len(SUBNETS), subnet=SUBNETS)  # one batch, a width for each row
    alike = index @ queries.T  # cosines, where vectors have length 1
    hits = np.argsort(-alike, axis=0)[: args.hits]
    for column, subnet in enumerate(SUBNETS):
        shared = len(set(hits[:, column]) & set(hits[:, 0]))
        print(f"{subnet}: {shared} of {len(hits)} are the whole network's too")
        for place in hits[:, column]:
            print(f"  {alike[place, column]:.3f}  {texts[place]}")


if __name__ == "__main__":
    main()
