"""How much each head and neuron matters to the loss of a fine-tuned network, or to the vectors of a sentence embedder:
first-order Taylor scores.

DynaBERT, arXiv 2004.04037, section 2.1; for heads also Michel et al. 2019, for the criterion Molchanov et al. 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification
from dynabert.modeling.model import check_classifier
from dynabert.modeling.modes import evaluating
from dynabert_kernels import Plan

MODES = ("per_batch", "accumulated", "reference")


@dataclass
class Importance:
    """Scores of heads, (L, H), and neurons, (L, F): float tensors on the CPU, free to edit before rewiring.

    Higher is kept longer. Where layers differ in size, ``H`` and ``F`` are the largest; what lies past a layer's own
    count is 0 and not read.
    """

    heads: Tensor
    neurons: Tensor

    def check(self, config: ElasticBertConfig) -> None:
        """Raises ``TypeError`` or ``ValueError`` when the scores are not those of a network of ``config``, or NaN."""
        layers = config.num_hidden_layers
        for name, widest in (("heads", config.num_attention_heads), ("neurons", config.intermediate_size)):
            scores = getattr(self, name)
            if not isinstance(scores, Tensor) or not scores.dtype.is_floating_point:
                kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
                raise TypeError(f"Importance: {name} must be a floating point tensor; got {kind}")
            if tuple(scores.shape) != (layers, widest):
                raise ValueError(
                    f"Importance: {name} has shape {tuple(scores.shape)}; the network has {layers} layers of {widest}"
                )
            if scores.isnan().any():
                layer = int(scores.isnan().any(1).nonzero()[0])
                raise ValueError(f"Importance: {name} of layer {layer} hold NaN; give each a number")

    def save(self, path: str | PathLike[str]) -> None:
        """Writes both tensors to one safetensors file."""
        save_file({"heads": self.heads.contiguous(), "neurons": self.neurons.contiguous()}, Path(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Importance:
        """Reads what :meth:`save` wrote. Raises ``ValueError`` when the file is not that."""
        try:
            tensors = load_file(Path(path))
        except SafetensorError as error:
            raise ValueError(f"Importance.load: cannot read {path}: {error}; compute the scores again") from error
        if set(tensors) != {"heads", "neurons"}:
            raise ValueError(f"Importance.load: {path} holds {sorted(tensors)}; allowed: heads, neurons")
        return cls(tensors["heads"], tensors["neurons"])


def compute_importance(
    model: ElasticBertForSequenceClassification | ElasticBertForSentenceEmbedding,
    batches: Iterable[Mapping[str, Any]],
    mode: str = "per_batch",
    *,
    progress: bool = False,
    seed: int = 0,
) -> Importance:
    """Scores every head and neuron of ``model`` by how much the task loss would change, to first order, without it.

    * head ``h`` of a layer: ``|dLoss/d mask[h]|``, ``mask`` being ones that multiply its attention probabilities;
    * neuron ``i``: ``|<w1_i, g1_i> + b1_i * gb1_i| + |<w2_i, g2_i>|``, with row i of FFN in, its bias, column i of FFN
      out, and their gradients.

    No mask is needed for the heads. A mask scales the head's output, so ``dLoss/d mask[h] = sum_t <dctx_th, ctx_th>``
    over tokens t, with ``ctx_th`` the head's output. It enters the layer as ``o_t = sum_h Wo_h ctx_th + b``, so
    ``dctx_th = Wo_h' do_t`` and ``dWo_h = sum_t do_t ctx_th'``, hence
    ``<Wo_h, dWo_h> = sum_t do_t' Wo_h ctx_th = sum_t <dctx_th, ctx_th>``: the inner product of the head's columns of
    the attention output weight with their gradient, exactly.

    A sentence embedder has no labels, and its vectors are what shall not change. Its loss is the inner product of each
    text's vector with a random vector of signs: a head's derivative of that, over the draws, is as large in the root
    mean square as the length of the vectors' own derivative, so that the score says how far the vectors of a batch
    would move, to first order, without the head. Nothing but one backward pass a batch is needed for it.

    ``model``: runs at full width in eval mode on its own device; its training flags, ``requires_grad`` flags and
    gradients are left as they were.
    ``batches``: mappings of tensors with ``labels``, as the model takes them; moved to its device. They say tokens and
    labels: one that says a sub-network (``subnet``, or a ``plan`` of one) is refused. A sentence embedder takes batches
    without labels.
    ``mode``: ``"per_batch"``: absolute values per batch, added. ``"accumulated"``: gradients of all batches added, then
    scored once (the paper's Algorithm 1). ``"reference"``: after each batch the score of the running sum is added (its
    released code).
    A sentence embedder takes ``"per_batch"`` alone: a sum over draws of signs would be one draw.
    ``progress``: shows a bar. ``seed``: of the signs.

    Returns float32 scores; the inner products are taken in float64. Raises ``ValueError`` for an unknown mode, no
    batch, a batch without labels or with a sub-network, and a loss or score that is not finite; ``TypeError`` for
    another model or batch type.
    """
    embedder = isinstance(model, ElasticBertForSentenceEmbedding)
    if not embedder:
        check_classifier("compute_importance", model)
    elif mode in MODES[1:]:
        raise ValueError(
            f"compute_importance: mode is {mode!r} and the model a sentence embedder; allowed: 'per_batch'; its loss "
            "is drawn anew for every batch"
        )
    if mode not in MODES:
        raise ValueError(f"compute_importance: mode is {mode!r}; allowed: {', '.join(map(repr, MODES))}")
    if isinstance(batches, Mapping):
        raise TypeError("compute_importance: batches is one mapping; give an iterable of batches: [batch]")
    if not isinstance(batches, Iterable):
        raise TypeError(f"compute_importance: batches must be an iterable of batches; got {type(batches).__name__}")
    total: list[Tensor] | None = None
    running: list[Tensor] | None = None
    count = 0
    with _differentiating(model):
        for count, batch in enumerate(tqdm(batches, desc="importance", disable=not progress), 1):
            signed = _signed_scores(model, batch, count - 1, seed)
            # Weights stand still, so scores are linear in the gradient: sums of scores are scores of sums.
            running = signed if running is None else [a + b for a, b in zip(running, signed, strict=True)]
            if mode == "accumulated":
                total = running
                continue
            new = [score.abs() for score in (signed if mode == "per_batch" else running)]
            total = new if total is None else [a + b for a, b in zip(total, new, strict=True)]
    if total is None:
        labelled = "" if embedder else ", with labels"
        raise ValueError(f"compute_importance: no batch given; give at least one{labelled}")
    heads, inward, outward = (score.abs() for score in total)
    return Importance(heads.float().cpu(), (inward + outward).float().cpu())


def _signed_scores(
    model: ElasticBertForSequenceClassification | ElasticBertForSentenceEmbedding,
    batch: Mapping[str, Any],
    number: int,
    seed: int,
) -> list[Tensor]:
    """Of one batch, before the absolute value: heads (L, H), FFN in (L, F), FFN out (L, F), float64."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"compute_importance: batch {number} must be a mapping of tensors; got {type(batch).__name__}")
    embedder = isinstance(model, ElasticBertForSentenceEmbedding)
    if embedder and batch.get("labels") is not None:
        batch = {name: value for name, value in batch.items() if name != "labels"}
    if not embedder and batch.get("labels") is None:
        raise ValueError(f"compute_importance: batch {number} has no labels; the score is a gradient of the task loss")
    _check_whole(model.config, batch, number)
    inputs = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    layers = model.encoder.elastic_layers
    weights = [
        weight
        for layer in layers
        for weight in (layer.attention_weight, layer.ffn_in_weight, layer.ffn_in_bias, layer.ffn_out_weight)
    ]
    with torch.enable_grad():
        output = model(**inputs, return_dict=True)
        loss = _projected(output.pooler_output, number, seed) if embedder else output.loss
        if not bool(loss.isfinite()):
            check = "weights" if embedder else "labels"
            raise ValueError(f"compute_importance: batch {number} has a loss of {loss.item()}; check its {check}")
        gradients = torch.autograd.grad(loss, weights)
    config = model.config
    shape = (config.num_hidden_layers, config.intermediate_size)
    heads = torch.zeros(shape[0], config.num_attention_heads, dtype=torch.float64, device=model.device)
    inward, outward = (torch.zeros(shape, dtype=torch.float64, device=model.device) for _ in range(2))
    for index in range(len(layers)):
        pairs = zip(weights[4 * index : 4 * index + 4], gradients[4 * index : 4 * index + 4], strict=True)
        attention, in_weight, in_bias, out_weight = (w.detach().double() * g.double() for w, g in pairs)
        by_head = attention.unflatten(1, (-1, config.head_dim)).sum((0, 2))
        heads[index, : by_head.shape[0]] = by_head
        inward[index, : in_bias.shape[0]] = in_weight.sum(1) + in_bias
        outward[index, : in_bias.shape[0]] = out_weight.sum(0)
    for score in (heads, inward, outward):
        if not bool(score.isfinite().all()):
            raise ValueError(f"compute_importance: the gradients of batch {number} are not finite; check the weights")
    return [heads, inward, outward]


def _projected(vectors: Tensor, number: int, seed: int) -> Tensor:
    """The sum of each vector's inner product with signs of its own; ``vectors`` (B, C)."""
    chance = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    signs = torch.randint(0, 2, tuple(vectors.shape), generator=chance) * 2 - 1
    return (vectors * signs.to(vectors)).sum()


def _check_whole(config: ElasticBertConfig, batch: Mapping[str, Any], number: int) -> None:
    """What a batch may say beside tokens and labels must not change which network is scored, or how it runs."""
    for name in ("subnet", "dropout_state", "return_dict"):
        if batch.get(name) is not None:
            raise ValueError(
                f"compute_importance: batch {number} says {name}; allowed: tokens and labels, for the whole network is "
                "scored as it answers; leave it out"
                + ("; to score a sub-network alone, extract it first (model.extract)" if name == "subnet" else "")
            )
    plan = batch.get("plan")
    if not isinstance(plan, Plan) or plan.num_layers != config.num_hidden_layers:
        return  # the model says what is wrong
    whole = torch.tensor([[*config.layer_heads], [*config.layer_neurons]]).T  # (L, 2)
    asked = plan.table[plan.num_groups + 1 :].cpu().view(plan.num_layers, 2, plan.num_groups)
    if bool((asked != whole[:, :, None])[..., plan.rows.cpu().diff() > 0].any()):
        raise ValueError(
            f"compute_importance: the plan of batch {number} is of a sub-network; allowed: the whole network in every "
            "row (model.pack without subnet); to score a sub-network alone, extract it first (model.extract)"
        )


@contextmanager
def _differentiating(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients for all parameters; every flag is put back."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with evaluating(model):
        for parameter, _ in wanted:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
