"""All works of the comparison, by name. A work is made when its turn comes, and what it builds is let go after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.cpu_peers.peers import Ids

from . import kernels, networks, training
from .contender import Answer, Contender, Work
from .setting import WIDTHS, Setting, padded

# The largest difference from the reference that is timed, as a share of the largest entry: of a network's logits, of
# one op's results, of a step's gradients (each tensor's own).
ALLOWED = {
    torch.float32: {"logits": 1e-3, "op": 1e-4, "gradients": 2e-3},
    torch.bfloat16: {"logits": 0.1, "op": 0.03, "gradients": 0.1},
    torch.float16: {"logits": 0.02, "op": 0.005, "gradients": 0.05},
}


def _forward(
    setting: Setting,
    name: str,
    text: str,
    network: str,
    ids: Ids,
    contenders: Sequence[Contender],
    references: dict[str, Sequence[float]],
    cache: str = "warm",
) -> Work:
    """A work from packed (padded) ids to logits; ``references``: label to the width of each text."""

    def wanted(widths: Sequence[float]) -> Callable[[], Answer]:
        return lambda: networks.reference(setting, network, ids, widths)

    rows, _ = padded(setting, ids)
    return Work(
        name,
        text,
        contenders,
        {label: wanted(widths) for label, widths in references.items()},
        ALLOWED[setting.dtype]["logits"],
        cache=cache,
        tokens=sum(map(len, ids)),
        padded_tokens=rows.numel(),
    )


def _whole(ids: Ids) -> dict[str, Sequence[float]]:
    return {"w1": [1.0] * len(ids)}


def widths(setting: Setting) -> Work:
    """128 x 128 tokens at every width, in place and cut out, mixed, and by others at the full width."""
    ids = setting.batch(128, 128)
    references: dict[str, Sequence[float]] = {f"w{width:g}": [width] * len(ids) for width in WIDTHS}
    references["mixed"] = networks.mixed_widths(len(ids))
    own = [
        contender
        for label, asked in references.items()
        for contender in networks.our_contenders(setting, "base", ids, asked, label)
    ]
    own += [c for width in WIDTHS[1:] for c in networks.extracted_contenders(setting, "base", ids, width)]
    others = [
        *networks.unpadded_contenders(setting, "base", ids),
        *networks.padded_contenders(setting, "base", ids),
    ]
    text = "BERT-base, 128 x 128 tokens, every width, four widths mixed"
    return _forward(setting, "widths", text, "base", ids, [*own, *others], references)


def mixed(setting: Setting, count: int) -> Work:
    """Four widths in one small batch."""
    ids = setting.batch(count, 128)
    references: dict[str, Sequence[float]] = {"mixed": networks.mixed_widths(len(ids))}
    own = networks.our_contenders(setting, "base", ids, references["mixed"], "mixed")
    others = networks.mixed_contenders(setting, "base", ids)
    text = f"BERT-base, {count} x 128 tokens, a quarter of the texts at each of four widths"
    return _forward(setting, f"mixed {count} x 128", text, "base", ids, [*own, *others], references)


def large(setting: Setting) -> Work:
    """BERT-large on a full batch."""
    ids = setting.batch(32, 384)
    own = networks.our_contenders(setting, "large", ids, [1.0] * len(ids), "w1")
    others = networks.padded_contenders(setting, "large", ids)[:1]
    text = "BERT-large, 32 x 384 tokens"
    return _forward(setting, "large 32 x 384", text, "large", ids, [*own, *others], _whole(ids))


def ragged(setting: Setting, name: str, network: str, count: int, mean: int, longest: int) -> Work:
    """Unequal lengths: ours and unpadded PyTorch on what is there, transformers padded."""
    ids = setting.ragged(count, mean, longest)
    own = networks.our_contenders(setting, network, ids, [1.0] * len(ids), "w1")
    others = [
        *networks.unpadded_contenders(setting, network, ids),
        *networks.padded_contenders(setting, network, ids),
    ]
    text = f"BERT-{network}, {count} texts, {mean} tokens on average, {longest} at most (drawn, log-normal)"
    return _forward(setting, name, text, network, ids, [*own, *others], _whole(ids))


def single(setting: Setting, cache: str) -> Work:
    """One text: latency, at the full width and a quarter of it."""
    ids = setting.batch(1, 128)
    references: dict[str, Sequence[float]] = {"w1": [1.0], "w0.25": [0.25]}
    own = [
        contender
        for label, asked in references.items()
        for contenders in (networks.our_contenders, networks.dependent_contenders)
        for contender in contenders(setting, "base", ids, asked, label)
    ]
    others = [
        *networks.padded_contenders(setting, "base", ids),
        *networks.cut_out_contenders(setting, "base", ids, 0.25),
    ]
    text = f"BERT-base, 1 x 128 tokens, {cache} cache"
    return _forward(setting, f"single, {cache}", text, "base", ids, [*own, *others], references, cache)


def _op(make: Callable[[Setting, float], Work], setting: Setting) -> Work:
    return make(setting, ALLOWED[setting.dtype]["op"])


def _step(count: int, setting: Setting) -> Work:
    return training.distillation(setting, count, ALLOWED[setting.dtype]["gradients"])


# Those without a compiler first: a run that is cut short has measured the most goals.
WORKS: dict[str, Callable[[Setting], Work]] = {
    "products": partial(_op, kernels.products),
    "ragged product": partial(_op, kernels.ragged_product),
    "attention": partial(_op, kernels.attention),
    "widths": widths,
    "large 32 x 384": large,
    "single, warm": partial(single, cache="warm"),
    "single, cold": partial(single, cache="cold"),
    "short ragged": partial(ragged, name="short ragged", network="base", count=128, mean=52, longest=128),
    "squad-like": partial(ragged, name="squad-like", network="large", count=32, mean=178, longest=384),
    "mixed 16 x 128": partial(mixed, count=16),
    "mixed 32 x 128": partial(mixed, count=32),
    "distillation 32 x 128": partial(_step, 32),
    "distillation 128 x 128": partial(_step, 128),
}
