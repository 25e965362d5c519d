"""transformers' text-classification pipeline with one argument more: the sub-network."""

from __future__ import annotations

from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY, TextClassificationPipeline

from dynabert.configuration import Subnet
from dynabert.modeling.base import ElasticBertPreTrainedModel

TASK = "text-classification"


class SubnetTextClassificationPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", ...)`` that takes ``subnet``: in a call, or for all calls where it is made.

    Without ``subnet`` it is transformers' own pipeline, for every model. With it the model must be an elastic one; the
    sub-network goes along with each batch as an argument of the model's call. Raises ``ValueError`` for a sub-network
    that does not fit and for a model without sub-networks, ``TypeError`` for a list (one call, one sub-network).
    """

    def _sanitize_parameters(self, subnet: Subnet = None, **kwargs: Any) -> Any:  # type: ignore[override]
        # The class it stands in for hands what it does not know to the tokenizer, which drops it: the whole network
        # would answer in the sub-network's name.
        before, forward, after = super()._sanitize_parameters(**kwargs)
        if subnet is not None:
            if isinstance(subnet, (list, tuple)):
                raise TypeError("pipeline: subnet is a list; give one sub-network, and one call for each")
            if not isinstance(self.model, ElasticBertPreTrainedModel):
                raise ValueError(
                    f"pipeline: subnet given, but {type(self.model).__name__} has no sub-networks; open the checkpoint "
                    "with ElasticBertForSequenceClassification.from_pretrained and give pipeline that model, and its "
                    "tokenizer"
                )
            self.model.shape(subnet)
            forward = {**forward, "subnet": subnet}
        return before, forward, after

    def _forward(self, model_inputs: Any, subnet: Subnet = None) -> Any:  # type: ignore[override]
        return super()._forward(model_inputs if subnet is None else {**model_inputs, "subnet": subnet})


def _register() -> None:
    """Puts the class where `pipeline` looks, in the place of its parent, of which it changes nothing.

    `register_pipeline` would do the same, and warn. A class that someone else has put there stays.
    """
    entry = PIPELINE_REGISTRY.supported_tasks[TASK]
    usual = TextClassificationPipeline
    if entry["impl"] in (usual, f"{usual.__module__}.{usual.__qualname__}"):  # some versions keep the name alone
        entry["impl"] = SubnetTextClassificationPipeline


_register()
