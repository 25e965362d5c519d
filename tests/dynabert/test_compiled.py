"""Under torch.compile: packed batches are one graph for all sub-networks, padded ones a few."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynabert import ElasticBertForSequenceClassification
from tests.dynabert.tiny_networks import CONFIGS, TINY, close


def test_padded_batches_of_any_lengths_are_compiled_a_few_times() -> None:
    """The lists of lengths are not traced: each would be a graph of its own."""
    torch._dynamo.reset()
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY)).eval()
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(model, backend=backend)
    for lengths in ([3, 1], [9, 8, 4], [2, 2], [7, 6, 5, 4], [5, 11], [1, 12, 3], [9, 9]):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        given = {"input_ids": torch.randint(5, 20, mask.shape), "attention_mask": mask, "subnet": "w0.5"}
        with torch.no_grad():
            close(compiled(**given).logits, model(**given).logits)
    assert graphs <= 3
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"for fullgraph=True pack with model\.pack"):
        torch.compile(model, backend=backend, fullgraph=True)(**given)
    torch._dynamo.reset()


@pytest.mark.parametrize(("architecture", "training"), [("mpnet", False), ("bert", True)])
def test_one_compiled_graph_serves_all_subnets(architecture: str, training: bool) -> None:
    torch._dynamo.reset()
    model = ElasticBertForSequenceClassification(CONFIGS[architecture](**TINY)).train(training)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.classifier.dropout.p = 0.0
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    texts = [[[5] * 7, [6] * 3, [7] * 9], [[8] * 4, [9] * 30]]
    counts = []
    for subnet in ("w1-d1", "w0.25-d0.5", "h4,1,0,2-n7,40,0,1"):
        for ids in texts:
            batch, plan = model.pack(ids, subnet=subnet)
            labels = torch.zeros(len(ids), dtype=torch.int64)
            model.zero_grad()
            with torch.set_grad_enabled(training):
                found = compiled(batch=batch, plan=plan, labels=labels)
                if training:
                    found.loss.backward()
                    gradients = [layer.qkv_weight.grad.clone() for layer in model.encoder.layers]
                    model.zero_grad()
                wanted = model(batch=batch, plan=plan, labels=labels)
            close(found.logits.detach(), wanted.logits.detach())
            if training:
                wanted.loss.backward()
                for layer, gradient in zip(model.encoder.layers, gradients, strict=True):
                    if layer.qkv_weight.grad is None:
                        assert not gradient.any()
                    else:
                        close(gradient, layer.qkv_weight.grad)
        counts.append(graphs)
    assert counts[0] <= 2  # one for the first sizes, one for all others
    assert counts[-1] == counts[0]
