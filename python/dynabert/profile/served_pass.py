"""A forward pass as the engine would run it, ready to be timed.

On a CPU that is the model's own pass on a batch and a plan. On a GPU the engine replays captured CUDA graphs for
batches of up to `dynabert.engine.graphs.MAX_GRAPH_TOKENS` tokens, where a pass without one would mostly time the host;
so a pass is a replay there too, with the copy of ids and plan to the device that goes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dynabert.engine.graphs import GraphRunner, graphs_for
from dynabert_kernels import Plan, SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

# Each sub-network alone has a graph of its own: more than are ever profiled at a point, so that none is captured twice.
MOST_GRAPHS = 4096


class ServedPass:
    """Passes of one batch at any sub-network.

    Args:
        model: the network, in eval mode, on its device.
        sequences: token ids of each sequence.
        runner: what holds the graphs; None for the engine's choice on the model's device.
    """

    def __init__(
        self,
        model: ElasticBertForSequenceClassification,
        sequences: Sequence[Sequence[int]],
        runner: GraphRunner | None = None,
    ) -> None:
        self._model = model
        self._lengths = [len(ids) for ids in sequences]
        runner = graphs_for(model, None, MOST_GRAPHS) if runner is None else runner
        self._runner = runner if runner is not None and runner.takes(sum(self._lengths)) else None
        self._device = model.device if self._runner is None else "cpu"
        self._batch, _ = model.pack(sequences, device=self._device)
        self._calls: dict[SubnetShape, Callable[[], Tensor]] = {}

    def of(self, shape: SubnetShape) -> Callable[[], Tensor]:
        """The pass of one sub-network, queued on the device when called. Plan and graph are made here, once; call it
        in inference mode."""
        call = self._calls.get(shape)
        if call is None:
            plan = Plan.uniform(shape, self._lengths, device=self._device)
            call = self._calls[shape] = self._made(plan)
        return call

    def _made(self, plan: Plan) -> Callable[[], Tensor]:
        runner, batch = self._runner, self._batch
        if runner is None:
            return lambda: self._model.packed_logits(batch, plan)
        runner.outputs(batch, plan, capture_now=True)
        return lambda: runner.outputs(batch, plan)
