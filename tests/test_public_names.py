"""The public names are a promise: each can be imported, is documented, and tells its errors."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import dynabert
import dynabert_kernels as dk

MODEL_NAMES = [
    "SubnetConfig",
    "ElasticBertConfig",
    "ElasticBertForSequenceClassification",
    "compute_importance",
    "rewire",
    "DistillationArguments",
    "DistillationTrainer",
    "distillation_losses",
    "InferenceEngine",
    "EmbeddingEngine",
    "ElasticBertForSentenceEmbedding",
    "Pooling",
    "export_subnet",
    "ExportReport",
]
KERNEL_NAMES = [
    "SubnetShape",
    "Plan",
    "LayerPlan",
    "PackedBatch",
    "group_by_shape",
    "elastic_linear",
    "varlen_attention",
    "add_layer_norm",
    "embed_layer_norm",
    "elastic_attention",
    "elastic_ffn",
    "elastic_encoder",
    "LayerWeights",
    "elastic_encoder_int8",
    "elastic_classifier",
    "EmbeddingWeights",
    "HeadWeights",
    "classification_head",
    "quantise_layer",
    "Int8LayerWeights",
    "Int8Linear",
    "distillation_loss",
    "plan_table",
    "plan_on_device",
    "use_provider",
    "show_config",
    "config",
    "SlowerProviderWarning",
]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_model_names(name: str) -> None:
    thing = getattr(dynabert, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    assert name in dir(dynabert)


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_kernel_names(name: str) -> None:
    assert inspect.getdoc(getattr(dk, name)), f"{name} has no docstring"
    assert name in dk.__all__


@pytest.mark.parametrize("name", ["elastic_linear", "varlen_attention", "add_layer_norm", "elastic_attention"])
def test_an_op_says_shapes_errors_and_synchronisation(name: str) -> None:
    text = inspect.getdoc(getattr(dk, name)) or ""
    for word in ("(T, ", "float32", "Raises", "ynchronise", "Deterministic" if name != "elastic_linear" else "copied"):
        assert word in text, f"{name}: the docstring does not say {word!r}"


def test_kernels_import_no_transformers() -> None:
    code = "import sys, dynabert_kernels; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_importing_dynabert_is_cheap() -> None:
    code = "import sys, dynabert; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
