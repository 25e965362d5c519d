"""Examples a second of a distillation step, against a plain PyTorch loop: ``python -m benchmarks.training_step``.

The step is that of DynaBERT's second stage: 12 sub-networks, one forward of the teacher, losses of logits and hidden
states, the gradients summed. The peer is what a careful user of plain PyTorch writes: a padded batch, every sub-network
in turn on views of the leading rows and columns, scaled_dot_product_attention with the padding mask, losses over real
tokens, one backward each; the teacher runs once. It is timed padded to 128 tokens, as the released code pads, and
padded to the longest text of the batch. All take turns on the same batches, weights and threads. First their summed
gradients are compared. Batches have the lengths of SST-2's dev sentences (mean 25 tokens), drawn by the seed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynabert import ElasticBertForSequenceClassification
from dynabert.configuration.grid import subnet_grid
from dynabert.distill.losses import LossSums, TeacherOutput, loss_sums, run_teacher
from dynabert.distill.step_weights import StepWeights, compact
from dynabert.modeling.stacking import Stack, stack
from dynabert_kernels import SubnetShape

# SST-2 dev under bert-base-uncased's vocabulary: (tokens, sentences), special tokens counted.
SST2_LENGTHS = (
    *((4, 2), (5, 1), (6, 2), (7, 7), (8, 12), (9, 12), (10, 22), (11, 17), (12, 28), (13, 20), (14, 28), (15, 23)),
    *((16, 23), (17, 23), (18, 34), (19, 29), (20, 38), (21, 29), (22, 31), (23, 25), (24, 30), (25, 37), (26, 31)),
    *((27, 33), (28, 27), (29, 26), (30, 27), (31, 23), (32, 24), (33, 16), (34, 21), (35, 21), (36, 15), (37, 13)),
    *((38, 12), (39, 17), (40, 17), (41, 18), (42, 8), (43, 4), (44, 14), (45, 3), (46, 3), (47, 5), (48, 4), (49, 5)),
    *((50, 2), (51, 1), (52, 2), (53, 4), (54, 2), (55, 1)),
)
LOGIT_WEIGHT = HIDDEN_WEIGHT = 1.0
CONTENDERS = ("stacked", "loop", "padded to 128", "padded to the batch")
Model = ElasticBertForSequenceClassification


def draw_batches(count: int, size: int, vocabulary: int, seed: int) -> list[list[list[int]]]:
    """Batches of random ids with SST-2's lengths."""
    rng = random.Random(seed)
    lengths, weights = zip(*SST2_LENGTHS, strict=True)
    return [
        [[rng.randrange(1000, vocabulary) for _ in range(n)] for n in rng.choices(lengths, weights, k=size)]
        for _ in range(count)
    ]


# The peer.


def plain_forward(model: Model, ids: Tensor, mask: Tensor | None, shape: SubnetShape) -> tuple[list[Tensor], Tensor]:
    """States (what enters each kept layer, then the last; (B, S, C)) and logits of a padded batch, on views.

    ``mask``: (B, S), or None where no text is padded."""
    config, embeddings = model.config, model.encoder.embeddings
    places = torch.arange(ids.shape[1], device=ids.device)
    word = F.embedding(ids, embeddings.word_embeddings.weight, padding_idx=config.padding_idx)
    x = word + embeddings.position_embeddings.weight[places] + embeddings.token_type_embeddings.weight[0]
    x = F.layer_norm(x, (x.shape[-1],), embeddings.norm.weight, embeddings.norm.bias, embeddings.norm.eps)
    states = []
    rows, length, size = ids.shape[0], ids.shape[1], config.head_dim
    keep = None if mask is None else mask[:, None, None, :].bool()
    for layer, heads, neurons in zip(model.encoder.layers, shape.heads, shape.neurons, strict=True):
        if heads == 0:
            continue
        states.append(x)
        qkv = F.linear(x, layer.qkv_weight[:heads].flatten(0, 2), layer.qkv_bias[:heads].flatten())
        q, k, v = qkv.view(rows, length, heads, 3, size).permute(3, 0, 2, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2)
        out = F.linear(context, layer.attention_weight[:, : heads * size], layer.attention_bias)
        norm = layer.attention_norm
        x = F.layer_norm(x + out, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
        inner = F.gelu(F.linear(x, layer.ffn_in_weight[:neurons], layer.ffn_in_bias[:neurons]))
        out = F.linear(inner, layer.ffn_out_weight[:, :neurons], layer.ffn_out_bias)
        norm = layer.ffn_norm
        x = F.layer_norm(x + out, (x.shape[-1],), norm.weight, norm.bias, norm.eps)
    return [*states, x], model.classify(x[:, 0])


def plain_step(model: Model, teacher: Model, batch: Sequence[Sequence[int]], width: int | None) -> Tensor:
    """The summed loss of all sub-networks; gradients are left in the model. ``width``: None pads to the longest."""
    width = max(map(len, batch)) if width is None else width
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    mask = torch.zeros(len(batch), width)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    with torch.no_grad():
        told, target = plain_forward(teacher, ids, mask, teacher.shape(None))
        target = torch.softmax(target, 1)
    tokens, total = mask.sum() * model.config.hidden_size, torch.zeros(())
    for subnet in subnet_grid():
        shape = model.shape(subnet)
        states, logits = plain_forward(model, ids, mask, shape)
        loss = -LOGIT_WEIGHT * (target * F.log_softmax(logits, 1)).sum(1).mean()
        for state, place in zip(states, [*shape.kept_layers, shape.num_layers], strict=True):
            error = ((state - told[place]) ** 2).sum(2) * mask
            loss = loss + HIDDEN_WEIGHT * error.sum() / tokens
        loss.backward()
        total += loss.detach()
    return total


def our_step(model: Model, teacher: Model, batch: Sequence[Sequence[int]], stacked: bool) -> Tensor:
    """The same by the ops, as the trainer does it: packed, one launch for all sub-networks or one by one."""
    shapes = [model.shape(subnet) for subnet in subnet_grid()]
    packed, _ = model.pack(batch)
    lengths = list(map(len, batch))
    output = run_teacher(teacher, packed, lengths, shapes)
    total, weights, rows = torch.zeros(()), step_weights(model), None
    if not stacked:
        packed, rows = compact(packed, model.config.padding_idx)
    named = weights.of_launch(rows)
    for first, run in [(0, shapes)] if stacked else [(i, [shape]) for i, shape in enumerate(shapes)]:
        given = (stack(packed, lengths, run), output)
        losses = torch.func.functional_call(weights.module, named, given, {"first": first}).weighted(
            logit_weight=LOGIT_WEIGHT,
            hidden_weight=HIDDEN_WEIGHT,
            num_sequences=len(batch),
            hidden_numbers=sum(lengths) * model.config.hidden_size,
        )
        losses.sum().backward()
        total += losses.sum().detach()
    weights.finish()
    return total


class Losses(nn.Module):
    """A forward and its losses as a module, which can run on copies of its weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, stacked: Stack, output: TeacherOutput, *, first: int) -> LossSums:
        return loss_sums(self.model, stacked, output, first=first)


@functools.cache
def step_weights(model: Model) -> StepWeights:
    """A model's, kept from step to step as the trainer keeps them."""
    return StepWeights(Losses(model), None)


def step_of(contender: str, model: Model, teacher: Model) -> Callable[[Sequence[Sequence[int]]], Tensor]:
    """A contender's step on a batch."""
    if contender in ("stacked", "loop"):
        return lambda batch: our_step(model, teacher, batch, contender == "stacked")
    return lambda batch: plain_step(model, teacher, batch, 128 if contender.endswith("128") else None)


def agree(model: Model, teacher: Model, batch: Sequence[Sequence[int]]) -> float:
    """The largest difference of a summed gradient between the contenders, over the largest entry of that gradient."""
    found: dict[str, dict[str, Tensor]] = {}
    for contender in CONTENDERS:
        model.zero_grad()
        step_of(contender, model, teacher)(batch)
        found[contender] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    wanted = found["padded to the batch"]
    largest = max(float(g.abs().max()) for g in wanted.values())
    worst = 0.0
    for gradients in found.values():
        for name, gradient in wanted.items():
            scale = max(float(gradient.abs().max()), 1e-3 * largest)
            worst = max(worst, float((gradients[name] - gradient).abs().max()) / scale)
    return worst


def open_models(path: str) -> tuple[Model, Model]:
    """Student and teacher, with equal fresh heads, without dropout (the peer has none)."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(Model.from_pretrained(path, num_labels=2).eval())
    with torch.no_grad():
        for parameter in pair[0].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01 * parameter.abs().mean())
    return pair[0], pair[1]


def added_bytes(run: Callable[[], object]) -> int:
    """Peak resident memory while ``run`` runs, less what is resident before. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def peak_bytes(options: argparse.Namespace, contender: str) -> int:
    """`added_bytes` of two steps in a process of their own: activations, gradients and working memory."""
    command = [sys.executable, __file__, "--peak_of", contender, "--threads"]
    command += [str(options.threads), "--batch_size", str(options.batch_size), "--seed", str(options.seed)]
    if options.model_name_or_path:
        command += ["--model_name_or_path", options.model_name_or_path]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step", description=(__doc__ or "").split("\n")[0]
    )
    flags.add_argument("--model_name_or_path", help="default: the packaged all-MiniLM-L6-v2")
    flags.add_argument("--batch_size", type=int, default=32)
    flags.add_argument("--rounds", type=int, default=7, help="timed steps of each contender, each on another batch")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags.add_argument("--seed", type=int, default=42)
    flags.add_argument("--out", type=Path, default=Path("out/bench/training_step.json"))
    flags.add_argument("--peak_of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = flags.parse_args(argv)
    torch.set_num_threads(options.threads)
    path = options.model_name_or_path
    if path is None:
        from dynabert.cli.demo import default_model_path

        path = str(default_model_path())
    model, teacher = open_models(path)
    batches = draw_batches(options.rounds + 1, options.batch_size, model.config.vocab_size, options.seed)
    if options.peak_of:
        print(added_bytes(lambda: [step_of(options.peak_of, model, teacher)(batch) for batch in batches[:2]]))
        return 0
    difference = agree(model, teacher, batches[0])
    print(f"summed gradients agree within {difference:.1e} of each one's largest entry")
    if not difference < 1e-3:
        print("they do not: nothing is timed", file=sys.stderr)
        return 1
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number, batch in enumerate(batches[1:]):
        for place in range(len(CONTENDERS)):
            name = CONTENDERS[(place + number) % len(CONTENDERS)]
            model.zero_grad()
            begun = time.perf_counter()
            step_of(name, model, teacher)(batch)
            times[name].append(time.perf_counter() - begun)
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
        median = statistics.median(times[name])
        others = {other: [a / b for a, b in zip(times[other], times[name], strict=True)] for other in CONTENDERS[2:]}
        rows.append(
            {
                "contender": name,
                "median_s": median,
                "examples_per_s": options.batch_size / median,
                "times_s": times[name],
                "speedup": {other: statistics.median(values) for other, values in others.items()},
                "peak_bytes": peak_bytes(options, name),
            }
        )
        speedups = ", ".join(f"{value:.2f}x of '{other}'" for other, value in rows[-1]["speedup"].items())
        print(
            f"{name:>20}: {median:6.3f} s a step, {options.batch_size / median:6.1f} examples/s, {speedups}, "
            f"peak {rows[-1]['peak_bytes'] / 2**20:.0f} MiB over the weights"
        )
    facts = {
        "command": f"python -m benchmarks.training_step {' '.join(sys.argv[1:] if argv is None else argv)}".strip(),
        "model": options.model_name_or_path or "all-MiniLM-L6-v2",
        "lengths": "SST-2 dev",
        "threads": options.threads,
        "seed": options.seed,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "gradients_agree_within": difference,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
