"""The elastic encoder as a sentence embedder: one vector for each text, at any width and depth."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynabert.configuration import Subnet
from dynabert.configuration.run_folder import checked_source, network_folder
from dynabert.modeling.base import HUB_ARGUMENTS
from dynabert.modeling.model import ElasticBertModel
from dynabert.modeling.pooling import Pooling
from dynabert_kernels import PackedBatch, Plan

logger = logging.getLogger("dynabert.modeling")


class ElasticBertForSentenceEmbedding(ElasticBertModel):
    """The encoder, and of each text the mean of its tokens' last states (or the first one), of length 1.

    ``pooling``: which way, see `Pooling`. A folder of sentence-transformers says it; what this writes is one, which
    that library opens while transformers' own class can hold the network.
    """

    # BERT's own pooler, of its first token: sentence-transformers' folders hold it, and their vectors are made without.
    _expected_unused = r"^(\w+\.)?pooler\."

    def __init__(self, config: PreTrainedConfig, pooling: Pooling | None = None) -> None:
        _check_pooling(type(self).__name__, pooling)
        super().__init__(config, add_pooling_layer=False)
        self.pooling = Pooling() if pooling is None else pooling

    @property
    def encoder(self) -> ElasticBertModel:
        """The model itself."""
        return self

    def packed_outputs(self, batch: PackedBatch, plan: Plan) -> Tensor:
        """(B, C) vectors in the caller's order, float32 (float64 for a float64 model), for inference: the second door
        without what it returns beside them. Errors as in :meth:`forward`; ``RuntimeError`` in training mode."""
        if self.training:
            raise RuntimeError("packed_outputs: the model is in training mode; call eval()")
        self.check_packed(batch, plan)
        x, _ = self.encode(batch, plan)
        found = self.pooling(x, batch.cu_seqlens)
        return found if batch.order is None else torch.empty_like(found).index_copy(0, batch.order, found)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        subnet: Subnet | Sequence[Subnet] = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        batch: PackedBatch | None = None,
        plan: Plan | None = None,
        dropout_state: Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """As :meth:`ElasticBertModel.forward`, with the texts' vectors as ``pooler_output``, (B, C) float32 (float64
        for a float64 model), in the caller's order. Special tokens count as tokens."""
        given, keep = self.doors(
            input_ids, attention_mask, token_type_ids, position_ids, subnet, output_hidden_states, batch, plan
        )
        _, x, states = self.run(given, batch, plan, dropout_state, keep)
        packed = batch if given is None else given.batch
        assert packed is not None  # or run would have refused
        vectors = self.pooling(x, packed.cu_seqlens)
        if packed.order is not None:
            vectors = torch.zeros_like(vectors).index_copy(0, packed.order, vectors)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x if given is None else given.padded(x),  # type: ignore[arg-type]
            pooler_output=vectors,  # type: ignore[arg-type]
            hidden_states=states,  # type: ignore[arg-type]
        )
        return self.returned(output, return_dict)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        pooling: Pooling | None = None,
        **kwargs: Any,
    ) -> Self:
        """As :meth:`ElasticBertPreTrainedModel.from_pretrained`. ``pooling``: how the vectors are made; None: as the
        folder of sentence-transformers says, and where it is none, the mean of the tokens, of length 1, which is told
        in a warning.

        Raises also ``ValueError`` for a folder of sentence-transformers that pools in another way, or has more modules
        than that.
        """
        _check_pooling("from_pretrained", pooling)
        source = checked_source(pretrained_model_name_or_path)
        if not kwargs.get("subfolder"):
            source = network_folder(source)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        found: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        if pooling is None:
            pooling = Pooling.of_checkpoint(source, hub)
        if pooling is None:
            pooling = Pooling()
            logger.warning(
                "%s: %s is no folder of sentence-transformers (no modules.json), so a text's vector is the mean of its "
                "tokens, of length 1. Was it trained for that? Give pooling= to say another way.",
                cls.__name__,
                source,
            )
        longest = model.config.max_sequence_length
        if pooling.max_seq_length is not None and pooling.max_seq_length > longest:
            pooling = replace(pooling, max_seq_length=longest)
        model.pooling = pooling
        return found  # type: ignore[no-any-return]

    def extract(self, subnet: Subnet) -> Self:
        """As :meth:`ElasticBertPreTrainedModel.extract`."""
        small = super().extract(subnet)
        small.pooling = self.pooling
        return small

    def _write_beside(self, folder: Path) -> None:
        """The files that sentence-transformers opens a folder by."""
        self.pooling.save(folder, self.config.hidden_size)


def _check_pooling(name: str, pooling: object) -> None:
    if pooling is not None and not isinstance(pooling, Pooling):
        raise TypeError(f"{name}: pooling is {pooling!r}; allowed: None, or a Pooling, such as Pooling('cls')")


def check_embedder(name: str, model: object) -> None:
    """``TypeError`` that begins with ``name`` where a model is no `ElasticBertForSentenceEmbedding`."""
    if not isinstance(model, ElasticBertForSentenceEmbedding):
        raise TypeError(
            f"{name}: model must be an ElasticBertForSentenceEmbedding; got {type(model).__name__}; open the "
            "checkpoint with ElasticBertForSentenceEmbedding.from_pretrained"
        )
