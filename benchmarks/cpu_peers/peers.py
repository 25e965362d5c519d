"""Who takes part: each engine with the same weights, from token ids to logits.

Our own runtime takes texts without padding, at any sub-network. Every peer takes a batch padded to its longest text,
which is what these engines offer. All are given lists of token ids, and padding is a part of their time, as packing is
of ours.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert_kernels import packed_panel

Ids = Sequence[Sequence[int]]
Subnets = str | Sequence[str] | None
OURS = ("ours float32", "ours bfloat16", "ours int8")
# The largest difference from transformers' float32 logits, as a share of the largest of them, that is timed.
ALLOWED = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}


class NotHere(Exception):
    """Why a peer is not measured."""


class Peer:
    """One engine. ``answer``: token ids of a batch, and for ours a sub-network, to (B, labels) logits."""

    def __init__(self, name: str, answer: Callable[..., NDArray[Any]], version: str) -> None:
        self.name, self.answer, self.version = name, answer, version

    @property
    def dtype(self) -> str:
        """The last word of the name."""
        return self.name.split()[-1]


def padded(ids: Ids) -> tuple[Tensor, Tensor]:
    """(B, S) int64 ids and their mask."""
    longest = max(map(len, ids))
    rows, mask = np.zeros((len(ids), longest), dtype=np.int64), np.zeros((len(ids), longest), dtype=np.int64)
    for row, text in enumerate(ids):
        rows[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(rows), torch.from_numpy(mask)


class Logits(nn.Module):
    """transformers' classifier with two inputs and one output, as exporters want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _ours(model: ElasticBertForSequenceClassification) -> Callable[..., NDArray[Any]]:
    def answer(ids: Ids, subnet: Subnets = None) -> NDArray[Any]:
        with torch.inference_mode():
            batch, plan = model.pack(ids, subnet=subnet)
            return model.packed_logits(batch, plan).float().numpy()  # type: ignore[no-any-return]

    return answer


def _torch(model: nn.Module) -> Callable[..., NDArray[Any]]:
    def answer(ids: Ids) -> NDArray[Any]:
        with torch.inference_mode():
            return model(*padded(ids)).float().numpy()  # type: ignore[no-any-return]

    return answer


def _need(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise NotHere(f"{', '.join(missing)} not installed (see constraints-peers.txt)")


class Builder:
    """Builds peers by name over one checkpoint folder. ``threads``: for every engine."""

    def __init__(self, folder: Path, threads: int) -> None:
        from transformers import AutoModelForSequenceClassification

        self.folder, self.threads = folder, threads
        self.plain = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
        self._onnx: Path | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="dynabert-peers-")

    def names(self) -> list[str]:
        """All peers that this builder knows."""
        return [*OURS, *self._makers()]

    def build(self, name: str) -> Peer:
        """Raises `NotHere` with the reason where it cannot take part."""
        if name in OURS:
            return Peer(name, _ours(self._elastic(name.split()[-1])), "this library")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer, version = self._makers()[name]()
        return Peer(name, answer, version)

    def take_part(self, name: str, check: Ids, wanted: NDArray[Any]) -> tuple[Peer, float]:
        """The peer and its `difference` on ``check``. `NotHere` with the reason, whatever goes wrong inside it."""
        try:
            peer = self.build(name)
            return peer, difference(peer, check, wanted)
        except NotHere:
            raise
        except Exception as error:  # another engine may raise anything, and the others are still to be measured
            first = str(error).strip().partition("\n")[0]
            raise NotHere(f"raised {type(error).__name__}: {first}") from error

    def _elastic(self, dtype: str) -> ElasticBertForSequenceClassification:
        if dtype == "int8":
            return InferenceEngine.from_pretrained(self.folder, dtype="int8").model
        model = ElasticBertForSequenceClassification.from_pretrained(self.folder, dtype=getattr(torch, dtype)).eval()
        if not packed_panel(model.dtype):
            print(f"note: {dtype} weights are not packed on this processor")
        return model.pack_weights()

    def _makers(self) -> dict[str, Callable[[], tuple[Callable[..., NDArray[Any]], str]]]:
        return {
            "torch eager float32": lambda: (_torch(Logits(self.plain)), f"torch {torch.__version__}"),
            "torch eager bfloat16": lambda: (_torch(Logits(self._half())), f"torch {torch.__version__}"),
            "torch compiled float32": lambda: (self._compiled(self.plain), f"torch {torch.__version__}"),
            "torch compiled bfloat16": lambda: (self._compiled(self._half()), f"torch {torch.__version__}"),
            "torch dynamic int8": self._torch_int8,
            "OpenVINO float32": lambda: self._openvino("f32"),
            "OpenVINO bfloat16": lambda: self._openvino("bf16"),
            "ONNX Runtime float32": lambda: self._onnxruntime(False),
            "ONNX Runtime int8": lambda: self._onnxruntime(True),
        }

    def _half(self) -> nn.Module:
        return copy.deepcopy(self.plain).to(torch.bfloat16)

    def _compiled(self, model: nn.Module) -> Callable[..., NDArray[Any]]:
        return _torch(torch.compile(Logits(model), dynamic=True))  # type: ignore[arg-type]

    def _torch_int8(self) -> tuple[Callable[..., NDArray[Any]], str]:
        quantise = getattr(torch.ao.quantization, "quantize_dynamic", None)
        if quantise is None:
            raise NotHere("this PyTorch has no quantize_dynamic")
        return _torch(Logits(quantise(self.plain, {nn.Linear}, dtype=torch.qint8))), f"torch {torch.__version__}"

    def _example(self) -> tuple[Tensor, Tensor]:
        return padded([[101, *range(2000, 2014), 102], [101, *range(3000, 3007), 102]])

    def _openvino(self, precision: str) -> tuple[Callable[..., NDArray[Any]], str]:
        _need("openvino")
        import openvino  # type: ignore[import-not-found, unused-ignore]

        ids, mask = self._example()
        converted = openvino.convert_model(Logits(self.plain), example_input={"input_ids": ids, "attention_mask": mask})
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = openvino.Core().compile_model(converted, "CPU", hints).create_infer_request()

        def answer(batch: Ids) -> NDArray[Any]:
            ids, mask = padded(batch)
            found = request.infer({0: ids.numpy(), 1: mask.numpy()})
            return np.asarray(next(iter(found.values())))

        return answer, f"openvino {openvino.__version__}"

    def _exported(self) -> Path:
        if self._onnx is None:
            path = Path(self._scratch.name) / "model.onnx"
            ids, mask = self._example()
            batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=512)
            axes = {0: batch, 1: tokens}
            names = ["input_ids", "attention_mask"]
            torch.onnx.export(
                Logits(self.plain), (ids, mask), str(path), input_names=names, output_names=["logits"], dynamo=True,
                dynamic_shapes=(axes, axes), verbose=False,
            )  # fmt: skip
            self._onnx = path
        return self._onnx

    def _onnxruntime(self, int8: bool) -> tuple[Callable[..., NDArray[Any]], str]:
        _need("onnxruntime", "onnx", "onnxscript")
        import onnxruntime  # type: ignore[import-not-found, unused-ignore]

        path = self._exported()
        if int8:
            from onnxruntime.quantization import (  # type: ignore[import-not-found, unused-ignore]
                QuantType,
                quantize_dynamic,
            )

            smaller = path.with_name("int8.onnx")
            quantize_dynamic(path, smaller, weight_type=QuantType.QInt8, per_channel=True)
            path = smaller
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def answer(batch: Ids) -> NDArray[Any]:
            ids, mask = padded(batch)
            return np.asarray(session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])

        return answer, f"onnxruntime {onnxruntime.__version__}"


def difference(peer: Peer, batch: Ids, wanted: NDArray[Any]) -> float:
    """The largest difference from the float32 logits, as a share of the largest of them; `NotHere` when too large."""
    found = float(np.abs(peer.answer(batch) - wanted).max() / np.abs(wanted).max())
    if not found <= ALLOWED[peer.dtype]:
        raise NotHere(f"its logits differ by {found:.3g} of the largest; allowed: {ALLOWED[peer.dtype]}")
    return found
