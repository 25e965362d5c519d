"""The ONNX form: the graph of a cut-out network, written node by node.

Not traced: the graph is the same whatever PyTorch's exporters do from version to version, needs none of them, and
stays dynamic in batch and sequence by construction. Operators of opset 17 alone (LayerNormalization is the youngest).
Arithmetic is float32; weights stored in half precision are cast where they are used, which ONNX Runtime does once, at
load. Padding is masked as transformers masks it; the head reads each row's first real token, as our model does.

Inputs ``input_ids``, ``attention_mask`` and, in BERT, ``token_type_ids``: (batch, sequence) int64. Output ``logits``:
(batch, labels) float32; of a sentence embedder ``sentence_embedding``: (batch, hidden size) float32. RoBERTa's token
type is always 0, the only one that its checkpoints have.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynabert.export.kinds import Exported, is_embedder
from dynabert.export.plain import class_name, padded_sizes
from dynabert.export.remote import elastic_values, head_orders
from dynabert.export.report import LOGITS, ONNX_FILE, VECTORS
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification
from dynabert.modeling.encoder import relative_position_buckets

OPSET = 17
SHORTEST = 1e-12  # a vector is divided by its length, or by this where it is shorter, as torch does
IR_VERSION = 8
MASKED = torch.finfo(torch.float32).min
PROTOBUF_LIMIT = 1_900_000_000  # a single file holds 2 GB at most; beyond it, weights lie in a file of their own
PACKAGES = ("onnx", "onnxruntime")


def need_packages() -> None:
    """Raises ``ImportError`` that names the extra, where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"export: the format onnx needs {' and '.join(missing)}, not installed here; pip install "
            "'dynabert-kernels[onnx]', or choose another format"
        )


def has_token_types(small: Exported) -> bool:
    """Whether the graph has the input ``token_type_ids``."""
    return small.config.architecture == "bert" and small.config.type_vocab_size > 1


class _Graph:
    """Nodes and initializers as they are added. Every method returns the name of what it made."""

    def __init__(self) -> None:
        import onnx

        self.onnx: Any = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._known: dict[tuple[str, Any], str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, tensor: Tensor) -> str:
        """An initializer in the dtype of the tensor, as float32."""
        kinds = self.onnx.TensorProto
        kind = {torch.float32: kinds.FLOAT, torch.float16: kinds.FLOAT16, torch.bfloat16: kinds.BFLOAT16}[tensor.dtype]
        values = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            values = values.view(torch.int16)  # numpy has no bfloat16; the bytes are the same
        data = values.numpy().tobytes()
        self.initializers.append(self.onnx.helper.make_tensor(name, kind, list(tensor.shape), data, raw=True))
        return name if kind == kinds.FLOAT else self.op("Cast", name, to=kinds.FLOAT)

    def integers(self, values: list[int] | int) -> str:
        """An int64 constant: a list, or one number without dimensions."""
        listed = values if isinstance(values, list) else [values]
        dims = [len(values)] if isinstance(values, list) else []
        return self._constant(self.onnx.TensorProto.INT64, dims, listed, ("integers", str(values)))

    def number(self, value: float) -> str:
        """A float32 constant."""
        return self._constant(self.onnx.TensorProto.FLOAT, [], [value], ("number", value))

    def _constant(self, kind: int, dims: list[int], values: list[Any], key: tuple[str, Any]) -> str:
        if key not in self._known:
            name = self._known[key] = f"constant_{len(self._known)}"
            self.initializers.append(self.onnx.helper.make_tensor(name, kind, dims, values))
        return self._known[key]

    def linear(self, x: str, name: str, weight: Tensor, bias: Tensor) -> str:
        """``x @ weight.T + bias``."""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", weight.t()))
        return self.op("Add", product, self.weight(f"{name}.bias", bias))

    def norm(self, x: str, name: str, module: torch.nn.LayerNorm) -> str:
        """LayerNorm over the last dimension."""
        weight, bias = self.weight(f"{name}.weight", module.weight), self.weight(f"{name}.bias", module.bias)
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=module.eps)

    def activation(self, x: str, kind: str) -> str:
        """gelu, gelu_tanh or relu."""
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "gelu":
            inner = self.op("Erf", self.op("Div", x, self.number(math.sqrt(2.0))))
        else:
            cube = self.op("Mul", self.op("Mul", self.op("Mul", x, x), x), self.number(0.044715))
            inner = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.number(math.sqrt(2.0 / math.pi))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", inner, self.number(1.0))), self.number(0.5))


def _embedded(graph: _Graph, small: Exported) -> str:
    """(B, S, C): the embedding output."""
    config, part = small.config, small.encoder.embeddings
    x = graph.op("Gather", graph.weight("word_embeddings", part.word_embeddings.weight), "input_ids")
    if config.architecture == "bert":
        length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.integers(1))
        places = graph.op("Range", graph.integers(0), length, graph.integers(1))
    else:
        pad = graph.integers(config.padding_idx)
        real = graph.op("Not", graph.op("Equal", "input_ids", pad))
        real = graph.op("Cast", real, to=graph.onnx.TensorProto.INT64)
        places = graph.op("Add", graph.op("Mul", graph.op("CumSum", real, graph.integers(1)), real), pad)
    x = graph.op("Add", x, graph.op("Gather", graph.weight("positions", part.position_embeddings.weight), places))
    if part.token_type_embeddings is not None:
        table = part.token_type_embeddings.weight
        if has_token_types(small):
            types = graph.op("Gather", graph.weight("token_types", table), "token_type_ids")
        else:
            types = graph.weight("token_type", table[0])
        x = graph.op("Add", x, types)
    return graph.norm(x, "embeddings.norm", part.norm)


def _mask(graph: _Graph) -> str:
    """(B, 1, 1, S): 0 at real tokens, the least float32 at padding. Not -inf: an empty row would become NaN."""
    mask = graph.op("Cast", "attention_mask", to=graph.onnx.TensorProto.FLOAT)
    mask = graph.op("Unsqueeze", graph.op("Sub", graph.number(1.0), mask), graph.integers([1, 2]))
    return graph.op("Mul", mask, graph.number(MASKED))


def _position_bias(graph: _Graph, small: Exported) -> str | None:
    """(heads of the table, S, S): MPNet's bias, looked up by distance."""
    part, longest = small.encoder.relative_position_bias, small.config.max_sequence_length
    if part is None:
        return None
    # The bucket of every distance is known now; a logarithm in the graph might round to another one.
    table = part.embedding.weight[relative_position_buckets(longest, small.config.relative_attention_num_buckets)]
    length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.integers(1))
    places = graph.op("Range", graph.integers(0), length, graph.integers(1))
    rows = graph.op("Unsqueeze", places, graph.integers([1]))
    columns = graph.op("Unsqueeze", places, graph.integers([0]))
    distance = graph.op("Add", graph.op("Sub", columns, rows), graph.integers(longest - 1))
    bias = graph.op("Gather", graph.weight("position_bias", table), distance)
    return graph.op("Transpose", bias, perm=[2, 0, 1])


def _layer(graph: _Graph, small: Exported, index: int, x: str, mask: str, bias: str | None) -> str:
    """(B, S, C) to (B, S, C)."""
    config, part, name = small.config, small.encoder.elastic_layers[index], f"layers.{index}"
    heads, size = config.layer_heads[index], config.head_dim
    split, joined = graph.integers([0, 0, heads, size]), graph.integers([0, 0, heads * size])
    turned = []
    for place, (kind, perm) in enumerate((("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))):
        weight, offset = part.qkv_weight[:, place].flatten(0, 1), part.qkv_bias[:, place].flatten()
        inner = graph.op("Reshape", graph.linear(x, f"{name}.{kind}", weight, offset), split)
        turned.append(graph.op("Transpose", inner, perm=perm))
    query, key, value = turned
    scores = graph.op("Mul", graph.op("MatMul", query, key), graph.number(size**-0.5))
    if bias is not None:
        orders = head_orders(small)
        order = list(range(heads)) if orders is None else orders[index]
        scores = graph.op("Add", scores, graph.op("Gather", bias, graph.integers(order), axis=0))
    weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    mixed = graph.op("Reshape", mixed, joined)
    mixed = graph.linear(mixed, f"{name}.attention", part.attention_weight, part.attention_bias)
    x = graph.norm(graph.op("Add", mixed, x), f"{name}.attention_norm", part.attention_norm)
    inner = graph.activation(graph.linear(x, f"{name}.ffn_in", part.ffn_in_weight, part.ffn_in_bias), config.activation)
    inner = graph.linear(inner, f"{name}.ffn_out", part.ffn_out_weight, part.ffn_out_bias)
    return graph.norm(graph.op("Add", inner, x), f"{name}.ffn_norm", part.ffn_norm)


def _first(graph: _Graph, x: str) -> str:
    """(B, C): the state of each row's first real token."""
    mask = graph.op("Cast", "attention_mask", to=graph.onnx.TensorProto.INT32)  # ONNX Runtime has no int64 ArgMax
    place = graph.op("ArgMax", mask, axis=1, keepdims=1)
    return graph.op("GatherND", x, place, batch_dims=1)


def _head(graph: _Graph, small: ElasticBertForSequenceClassification, x: str) -> None:
    """Adds ``logits`` from each row's first real token."""
    first = _first(graph, x)
    pooler, head = small.encoder.pooler, small.classifier
    dense = pooler.dense if pooler is not None else head.dense
    if dense is not None:
        first = graph.op("Tanh", graph.linear(first, "dense", dense.weight, dense.bias))
    logits = graph.linear(first, "out_proj", head.out_proj.weight, head.out_proj.bias)
    graph.nodes.append(graph.onnx.helper.make_node("Identity", [logits], ["logits"], name="logits"))


def _vectors(graph: _Graph, small: ElasticBertForSentenceEmbedding, x: str) -> None:
    """Adds ``sentence_embedding``, as `dynabert.modeling.Pooling` makes it: the mean of each row's real tokens, or its
    first one, of length 1 where the pooling says so. A row without a token has zeros as its mean."""
    if small.pooling.mode == "cls":
        found = _first(graph, x)
    else:
        mask = graph.op("Cast", "attention_mask", to=graph.onnx.TensorProto.FLOAT)
        mask = graph.op("Unsqueeze", mask, graph.integers([2]))
        axis = graph.integers([1])
        total = graph.op("ReduceSum", graph.op("Mul", x, mask), axis, keepdims=0)
        count = graph.op("Max", graph.op("ReduceSum", mask, axis, keepdims=0), graph.number(1.0))
        found = graph.op("Div", total, count)
    if small.pooling.normalize:
        length = graph.op("ReduceL2", found, axes=[1], keepdims=1)
        found = graph.op("Div", found, graph.op("Max", length, graph.number(SHORTEST)))
    graph.nodes.append(graph.onnx.helper.make_node("Identity", [found], [VECTORS], name=VECTORS))


def build(small: Exported) -> Any:
    """The ``onnx.ModelProto`` of a cut-out network, weights in its dtype."""
    graph = _Graph()
    with torch.no_grad():
        x, mask, bias = _embedded(graph, small), _mask(graph), _position_bias(graph, small)
        for index in range(small.config.num_hidden_layers):
            x = _layer(graph, small, index, x, mask, bias)
        if isinstance(small, ElasticBertForSentenceEmbedding):
            _vectors(graph, small, x)
        else:
            _head(graph, small, x)
    helper, kinds = graph.onnx.helper, graph.onnx.TensorProto
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_token_types(small) else [])]
    inputs = [helper.make_tensor_value_info(name, kinds.INT64, ["batch", "sequence"]) for name in names]
    name, size = (VECTORS, small.config.hidden_size) if is_embedder(small) else (LOGITS, small.config.num_labels)
    output = helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", size])
    made = helper.make_graph(graph.nodes, "elastic_bert", inputs, [output], graph.initializers)
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dynabert-kernels",
    )
    helper.set_model_props(model, {"elastic": json.dumps(small.config.elastic_block())})
    return model


def write(small: Exported, folder: Path) -> None:
    """Writes ``model.onnx`` and, for tools that read names of labels and kinds of tokenizers there, ``config.json``.

    The configuration is the plain one of the architecture, with the sizes of each layer in its ``elastic`` block; the
    graph needs none of it.
    """
    import onnx

    model = build(small)
    size = sum(parameter.numel() * parameter.element_size() for parameter in small.parameters())
    if size < PROTOBUF_LIMIT:
        onnx.checker.check_model(model)
        onnx.save_model(model, folder / ONNX_FILE)
    else:
        onnx.save_model(
            model, folder / ONNX_FILE, save_as_external_data=True, location=f"{ONNX_FILE}.data", size_threshold=1024
        )
        onnx.checker.check_model(folder / ONNX_FILE)
    try:
        content = padded_sizes(small.config).to_plain().to_diff_dict() | {"elastic": small.config.elastic_block()}
        content["architectures"] = [class_name(small)]
    except ValueError:  # a head size that no plain class has; the graph does not mind
        content = elastic_values(small) | {"model_type": small.config.model_type}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
