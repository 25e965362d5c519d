"""Whether captured graphs answer as launches do, over batches that change from replay to replay."""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from benchmarks.gpu_peers.report import ALLOWED
from benchmarks.gpu_peers.works import Setting
from dynabert.engine.cuda_capture import CudaCapture
from dynabert.engine.graphs import Capture, GraphRunner
from dynabert_kernels.testing.frozen_replay import FrozenCapture

BATCHES = 60
SUBNETS = ("w1", "w0.75", "w0.5", "w0.25", "w1-d0.5", "w0.5-d0.5", "w0.25-d0.5")


def check_graphs(setting: Setting, batches: int = BATCHES) -> dict[str, Any]:
    """Random batches through graphs (frozen replays in a rehearsal) and by launches; the largest difference.

    Lengths, counts and sub-networks are drawn; each batch runs three times, so that most are replays of a graph that
    was made for another. Returns plain data; ``wrong`` counts the batches beyond what the dtype allows.
    """
    networks = setting.networks("base")
    capture: Capture = CudaCapture(setting.device) if setting.device.type == "cuda" else FrozenCapture()
    runner = GraphRunner(networks.ours, capture)
    chance = random.Random(0)
    worst, wrong, capturing_s = 0.0, 0, 0.0
    for _ in range(batches):
        texts = setting.texts([chance.randint(1, 128) for _ in range(chance.randint(1, 16))], chance.randrange(10**6))
        alone = chance.random() < 0.5
        subnets: Any = chance.choice(SUBNETS) if alone else [chance.choice(SUBNETS) for _ in texts]
        batch, plan = networks.ours.pack(texts, subnet=subnets, device="cpu")
        with torch.inference_mode():
            there, planned = networks.ours.pack(texts, subnet=subnets)
            wanted = networks.ours.packed_logits(there, planned).float().cpu()
        for _ in range(3):
            known, begun = len(runner.frames), time.perf_counter()
            found = runner.logits(batch, plan).float().cpu()
            if len(runner.frames) > known:
                capturing_s += time.perf_counter() - begun
            if batch.order is not None:
                found = torch.empty_like(found).index_copy(0, batch.order, found)
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            worst = max(worst, difference)
            wrong += not difference <= ALLOWED[setting.dtype]
    return {
        "batches": 3 * batches,
        "graphs": len(runner.frames),
        "largest_difference": worst,
        "wrong": wrong,
        "capturing_s": round(capturing_s, 3),
        "why_off": runner.why_off,
    }
