"""Inference: texts in, predictions or vectors out, at any width and depth of one set of weights."""

from __future__ import annotations

from dynabert.engine.device import torch_dtype
from dynabert.engine.embedding import EmbeddingEngine
from dynabert.engine.files import FileSummary, predict_file
from dynabert.engine.inference import InferenceEngine
from dynabert.engine.loading import load_embedder, load_masked_lm, load_model, load_tokenizer
from dynabert.engine.prediction import Prediction
from dynabert.engine.server import ElasticServer, ServerOverloaded, ServerStats
from dynabert.engine.vector_files import embed_file

__all__ = [
    "ElasticServer",
    "EmbeddingEngine",
    "FileSummary",
    "InferenceEngine",
    "Prediction",
    "ServerOverloaded",
    "ServerStats",
    "embed_file",
    "load_embedder",
    "load_masked_lm",
    "load_model",
    "load_tokenizer",
    "predict_file",
    "torch_dtype",
]
