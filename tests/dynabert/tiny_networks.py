"""Tiny random networks of every architecture, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, MPNetConfig, PreTrainedModel, RobertaConfig

from tests.dynabert.slow_model import Slow

CONFIGS: dict[str, Any] = {"bert": BertConfig, "roberta": RobertaConfig, "mpnet": MPNetConfig}
VOCABULARY = 61  # a prime: no size divides another by accident
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 50,
    "num_labels": 3,
}


def plain_model(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """transformers' own classifier with weights large enough that heads, biases and LayerNorms all matter."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[architecture](**(TINY | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name:
                parameter.copy_(torch.rand_like(parameter) + (0.5 if name.endswith("weight") else -0.5))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def slow_model(model: PreTrainedModel) -> Slow:
    """The independent computation over the same weights, in float64."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return Slow(weights, model.config, model.config.model_type)


def padded_batch(model: PreTrainedModel, lengths: list[int], side: str = "right", seed: int = 1) -> dict[str, Tensor]:
    """Random texts of these lengths, padded to the longest on one side."""
    generator = torch.Generator().manual_seed(seed)
    width, pad = max(lengths), model.config.pad_token_id
    ids = torch.full((len(lengths), width), pad)
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    types = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        columns = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, columns] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        types[row, columns] = (torch.arange(length) > length // 2).long()
        mask[row, columns] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.model_type == "bert":
        batch["token_type_ids"] = types
    return batch


def text_of(
    model: PreTrainedModel, batch: dict[str, Tensor], row: int
) -> tuple[list[int], list[int], list[int] | None]:
    """Ids, positions and types of one text's real tokens, positions by each architecture's own rule."""
    real = batch["attention_mask"][row].bool()
    ids = batch["input_ids"][row][real].tolist()
    if model.config.model_type == "bert":
        return ids, real.nonzero().flatten().tolist(), batch["token_type_ids"][row][real].tolist()
    return ids, list(range(2, 2 + len(ids))), None  # after the padding token's id, 1


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Within ``tolerance`` of the largest entry."""
    assert found.shape == wanted.shape
    assert bool(torch.isfinite(found).all())
    error = (found.double() - wanted.double()).abs().max().item()
    scale = wanted.abs().max().item()
    assert error <= tolerance * scale, f"error {error:.3g}, allowed {tolerance:g} of {scale:.3g}"
