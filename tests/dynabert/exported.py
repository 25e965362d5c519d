"""Sub-networks to export, and exports opened in a process that knows nothing of this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynabert import ElasticBertForSequenceClassification, Importance, rewire
from dynabert.export import modeling_elastic_bert, parity
from dynabert.export.parity import Opened
from tests.dynabert.tiny_texts import tiny_model

# What is cut -> the sub-network, and whether a plain class holds it as it is.
KINDS: dict[str, tuple[str | None, bool]] = {
    "full": (None, True),
    "depth": ("d0.5", True),
    "neurons": ("h4,4,4,4-n30,30,30,30", True),
    "depth and neurons": ("h4,0,4,0-n7,0,7,0", True),
    "width": ("w0.5", False),
    "neurons unequal": ("h4,4,4,4-n30,7,40,1", False),
    "all unequal": ("h4,1,0,2-n7,40,0,1", False),
}


def rewired(architecture: str, seed: int = 0, **changes: Any) -> ElasticBertForSequenceClassification:
    """A tiny network whose heads and neurons stand elsewhere in every layer."""
    model = tiny_model(architecture, seed, **changes)
    torch.manual_seed(seed)
    config = model.config
    scores = (torch.rand(config.num_hidden_layers, n) for n in (config.num_attention_heads, config.intermediate_size))
    return rewire(model, Importance(*scores))


def opened_here(
    folder: Path, dtype: torch.dtype, batches: list[dict[str, Tensor]], texts: tuple[str, ...] = ()
) -> Opened:
    """In place of `parity.opened_remote`, whose process takes seconds: the same code, in this process."""
    model: Any = modeling_elastic_bert.ElasticBertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return Opened(parity.answers(model.eval(), batches), None, "the code beside the weights")


def elsewhere(code: str, cache: Path, *arguments: str) -> Any:
    """Runs code in a process where this project cannot be imported; its last line is JSON."""
    blocked = "import sys\nsys.modules['dynabert'] = sys.modules['dynabert_kernels'] = None\n"
    result = subprocess.run(
        [sys.executable, "-P", "-c", blocked + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])
