"""Whether the engine's captured graphs answer as launches do, over batches that change from replay to replay."""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from dynabert.engine.cuda_capture import CudaCapture
from dynabert.engine.graphs import Capture, GraphRunner
from dynabert_kernels.testing.frozen_replay import FrozenCapture
from dynabert_kernels.triton.dependent_launch import programmatic_launch, why_not_programmatic

from .setting import Setting, random_ids

BATCHES = 60
SUBNETS = ("w1", "w0.75", "w0.5", "w0.25", "w1-d0.5", "w0.5-d0.5", "w0.25-d0.5")
# As a share of the largest logit. Both run the same kernels, but a frame's size may choose another tile, and with it
# another order of additions.
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def check_graphs(setting: Setting, batches: int = BATCHES) -> dict[str, Any]:
    """Random batches through graphs and by launches; the largest difference.

    Lengths, counts and sub-networks are drawn; each batch runs three times, so that most are replays of a graph that
    was made for another. Then through graphs of dependent launches, where the device has them: they are to answer the
    same to the bit, and ``dependent_differ`` counts those that did not. Without a CUDA device frozen replays stand for
    graphs. Returns plain data; ``wrong`` counts the batches beyond what the dtype allows, ``why_off`` says why graphs
    were not to be had.
    """
    model = setting.model("base")
    capture: Capture = CudaCapture(model.device) if model.device.type == "cuda" else FrozenCapture()
    runner, dependent = GraphRunner(model, capture), GraphRunner(model, capture)
    why_not = why_not_programmatic(model.device)
    chance = random.Random(setting.seed)
    most, longest = (5, 9) if setting.rehearse else (16, 128)
    worst, wrong, capturing_s, differ = 0.0, 0, 0.0, 0
    for turn in range(batches):
        lengths = [chance.randint(1, longest) for _ in range(chance.randint(1, most))]
        texts = random_ids(lengths, setting.vocabulary, setting.seed + turn)
        alone = chance.random() < 0.5
        subnets: Any = chance.choice(SUBNETS) if alone else [chance.choice(SUBNETS) for _ in texts]
        batch, plan = model.pack(texts, subnet=subnets, device="cpu")
        with torch.inference_mode():
            wanted = model.packed_logits(*model.pack(texts, subnet=subnets)).float().cpu()
        for _ in range(3):
            known, begun = len(runner.frames), time.perf_counter()
            found = runner.outputs(batch, plan).float().cpu()
            if len(runner.frames) > known:
                capturing_s += time.perf_counter() - begun
            if batch.order is not None:
                found = torch.empty_like(found).index_copy(0, batch.order, found)
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            worst = max(worst, difference)
            wrong += not difference <= ALLOWED[setting.dtype]
        if why_not is None:
            # Both as graphs: without one the same batch runs at its own size, where other tiles may be chosen.
            found = runner.outputs(batch, plan, capture_now=True)
            with programmatic_launch():
                again = dependent.outputs(batch, plan, capture_now=True)
            differ += not torch.equal(again, found)
    return {
        "batches": 3 * batches,
        "graphs": len(runner.frames),
        "largest_difference": worst,
        "wrong": wrong,
        "capturing_s": round(capturing_s, 3),
        "why_off": runner.why_off,
        "dependent_differ": None if why_not is not None else differ,
        "why_not_dependent": why_not,
        "dependent_off": dependent.why_off,
    }
