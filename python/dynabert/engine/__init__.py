"""Inference: texts in, predictions out, at any width and depth of one set of weights."""

from __future__ import annotations

from dynabert.engine.device import torch_dtype
from dynabert.engine.files import FileSummary, predict_file
from dynabert.engine.inference import InferenceEngine
from dynabert.engine.loading import load_masked_lm, load_model, load_tokenizer
from dynabert.engine.prediction import Prediction
from dynabert.engine.server import ElasticServer, ServerOverloaded, ServerStats

__all__ = [
    "ElasticServer",
    "FileSummary",
    "InferenceEngine",
    "Prediction",
    "ServerOverloaded",
    "ServerStats",
    "load_masked_lm",
    "load_model",
    "load_tokenizer",
    "predict_file",
    "torch_dtype",
]
