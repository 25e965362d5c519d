"""An experiment: LayerNorm weights of their own for each width, as slimmable networks have for batch normalisation.

The package has no such network. Here is as much of one as shows what it would be worth: the layers' two LayerNorms have
a weight and a bias for each width of the recipe, everything else is shared. What is left is one ordinary network a
width, in a folder of its own, scored at every depth.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, set_seed

from dynabert.cli.options import encode
from dynabert.cli.train import InputArguments, open_model, read_inputs
from dynabert.configuration import SubnetConfig
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.configuration.grid import subnet_text
from dynabert.data import task_metric
from dynabert.distill import DistillationTrainer
from dynabert.distill.pipeline import StageResult, with_defaults
from dynabert.distill.progress import StageProgress
from dynabert.engine import load_tokenizer
from dynabert.evaluation import evaluate
from dynabert.finetuning import labelled_batches
from dynabert.importance import compute_importance
from dynabert.modeling import ElasticBertForSequenceClassification
from dynabert.modeling.encoder import ElasticLayer
from dynabert.rewiring import rewire
from dynabert_kernels import LayerPlan

if TYPE_CHECKING:
    from dynabert.distill import DistillationArguments

ATTENTION, FFN = 0, 1
WEIGHT, BIAS = 0, 1


class WidthNormLayer(ElasticLayer):
    """A layer with LayerNorm weights for each of some numbers of heads.

    ``width_norms``: (W, 2, 2, C): attention and FFN, weight and bias, widest first. ``which``: (H+1,) int64: for each
    number of active heads which of the W holds; W for a skipped layer, whose rows stay as they are. The layer's own
    LayerNorms are the identity.
    """

    which: Tensor

    def __init__(self, config: ElasticBertConfig, index: int, heads: Sequence[int]) -> None:
        super().__init__(config, index)
        self.width_norms = nn.Parameter(torch.empty(len(heads), 2, 2, config.hidden_size))
        # A number of heads that is not one of the widths takes the norms of the next wider.
        count = config.layer_heads[index]
        wider = [max(i for i, own in enumerate(heads) if own >= active) for active in range(1, count + 1)]
        self.register_buffer("which", torch.tensor([len(heads), *wider]), persistent=False)
        # Seen by the encoder, which then calls the layer itself, also where it would run all layers in one op.
        self.register_forward_hook(_nothing)

    @classmethod
    def of(cls, layer: ElasticLayer, heads: Sequence[int]) -> WidthNormLayer:
        """With the weights of ``layer``; ``heads``: active ones at each width, widest first."""
        made = cls(layer.config, layer.index, heads).to(layer.qkv_weight)
        made.load_state_dict(layer.state_dict(), strict=False)
        norms = (layer.attention_norm, layer.ffn_norm)
        with torch.no_grad():
            made.width_norms.copy_(torch.stack([torch.stack([norm.weight, norm.bias]) for norm in norms]))
        for norm in (made.attention_norm, made.ffn_norm):
            nn.init.ones_(norm.weight).requires_grad_(False)
            nn.init.zeros_(norm.bias).requires_grad_(False)
        return made.train(layer.training)

    def at(self, place: int) -> ElasticLayer:
        """The ordinary layer of one width, number ``place`` of them."""
        made = ElasticLayer(self.config, self.index).to(self.qkv_weight)
        made.load_state_dict({name: value for name, value in self.state_dict().items() if name != "width_norms"})
        with torch.no_grad():
            for norm, (weight, bias) in zip((made.attention_norm, made.ffn_norm), self.width_norms[place], strict=True):
                norm.weight.copy_(weight)
                norm.bias.copy_(bias)
        return made.train(self.training)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        layer: LayerPlan,
        max_seqlen: int,
        position_bias: Tensor | None,
        dropout_state: Tensor | None,
    ) -> Tensor:
        """As the ordinary layer's; each group of rows takes the norms of its width."""
        norms = self._norms(layer, x.shape[0], x.dtype)
        x = self.attend(x, cu_seqlens, layer, max_seqlen, position_bias, dropout_state)
        x = x * norms[:, ATTENTION, WEIGHT] + norms[:, ATTENTION, BIAS]
        x = self.feed_forward(x, layer, dropout_state)
        return x * norms[:, FFN, WEIGHT] + norms[:, FFN, BIAS]

    def _norms(self, layer: LayerPlan, rows: int, dtype: torch.dtype) -> Tensor:
        """(rows, 2, 2, C), or (1, 2, 2, C) where all rows have the same."""
        groups = self.which[layer.heads.long()]
        if len(groups) == 1:
            if layer.max_heads == 0:
                return self._skipped(dtype)
            return self.width_norms.index_select(0, groups)
        each = torch.cat([self.width_norms, self._skipped(dtype)])
        return each[groups.repeat_interleave(layer.rows.diff().long(), output_size=rows)]

    def _skipped(self, dtype: torch.dtype) -> Tensor:
        same = torch.tensor([1.0, 0.0], dtype=dtype, device=self.width_norms.device)
        return same[None, None, :, None].expand(1, 2, 2, self.config.hidden_size)


def _nothing(*_: object) -> None:
    """A hook that only has to be there."""


def with_width_norms(
    model: ElasticBertForSequenceClassification, widths: Sequence[float]
) -> ElasticBertForSequenceClassification:
    """A copy of a network whose layers have norms for each of ``widths``, widest first. It computes the same."""
    made = copy.deepcopy(model)
    shapes = [made.shape(SubnetConfig(width)) for width in widths]
    layers = cast("Any", made.encoder.layers)
    for index, layer in enumerate(made.encoder.elastic_layers):
        layers[index] = WidthNormLayer.of(layer, [shape.heads[index] for shape in shapes])
    return made


def at_width(model: ElasticBertForSequenceClassification, place: int) -> ElasticBertForSequenceClassification:
    """The ordinary network of one width: what `with_width_norms` changed, with the norms of width ``place``."""
    made = copy.deepcopy(model)
    layers = cast("Any", made.encoder.layers)
    for index, layer in enumerate(model.encoder.elastic_layers):
        layers[index] = cast("WidthNormLayer", layer).at(place)
    return made


def run_width_norms(inputs: InputArguments, args: DistillationArguments, out: Path) -> list[StageResult]:
    """The recipe's stages on a network with norms for each width, and a folder of ``out`` for each width.

    Each stage ends with its last step: no checkpoint is chosen by its score, so compare it with a recipe of one epoch.
    It has no checkpoints to go on from: cut, it begins anew.
    """
    recipe = args.make_recipe()
    train, validation, _ = read_inputs(inputs)
    assert validation is not None  # a task has one
    metric = None if inputs.task_name is None else task_metric(inputs.task_name)
    tokenizer = load_tokenizer(inputs.model_name_or_path)
    teacher = open_model(inputs, train, args.seed)
    teacher.config.depth_rule = recipe.depth_rule
    length = min(inputs.max_seq_length, teacher.config.max_sequence_length)
    data, scored = (encode(e, teacher, tokenizer, max_seq_length=length, truncate=True) for e in (train, validation))
    args = with_defaults(args, teacher, {}, print)
    began = time.perf_counter()
    batches = labelled_batches(teacher, data, args.per_device_train_batch_size)
    rewired = rewire(copy.deepcopy(teacher), compute_importance(teacher, batches, recipe.importance_mode))
    widths = sorted(recipe.widths, reverse=True)
    student = with_width_norms(rewired, widths)
    for stage in recipe.stages:
        own = copy.copy(args)
        own.output_dir = str(out / "training")
        own.save_strategy = own.eval_strategy = "no"
        own.load_best_model_at_end = False
        set_seed(own.seed)
        guide = None
        if not stage.labels:
            from_first = stage.name == "width" or recipe.second_teacher == "fine_tuned"
            guide = rewired if from_first else copy.deepcopy(student).eval()
        trainer = DistillationTrainer(student, own, stage, data, None, guide, callbacks=[StageProgress(stage.name)])
        for usual in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(usual)  # ours says more
        trainer.train()
    seconds = time.perf_counter() - began
    found = []
    for place, width in enumerate(widths):
        folder = out / f"w{width:g}"
        model = at_width(student, place).eval()
        subnets = [subnet for subnet in recipe.stages[-1].subnets if subnet.width_mult == width]
        rows = tuple(evaluate(model, scored, subnets, metric=metric))
        model.save_pretrained(folder)
        told = f"{', '.join(f'{subnet_text(s)} {100 * row.score:.1f}' for s, row in zip(subnets, rows, strict=True))}"
        print(f"width norms: {told}", flush=True)
        # All widths were trained together: the first one's folder has the time.
        content = {"rows": [row.to_dict() for row in rows], "seconds": round(seconds if place == 0 else 0.0, 1)}
        (folder / "complete.json").write_text(json.dumps(content | {"history": []}, indent=1) + "\n", encoding="utf-8")
        found.append(StageResult(folder.name, folder, rows, content["seconds"]))
    return found
