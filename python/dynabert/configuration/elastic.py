"""The configuration of an elastic network: a BERT, RoBERTa or MPNet encoder whose layers may differ in size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dynabert.configuration.run_folder import network_folder
from dynabert.configuration.subnet import DEPTH_RULES, Subnet, SubnetConfig, subnet_shape
from dynabert_kernels import SubnetShape

ARCHITECTURES = ("bert", "roberta", "mpnet")

# Hugging Face's name of an activation -> the name the ops know.
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "relu"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
MPNET_BUCKETS = 32  # transformers' MPNet computes its buckets with 32, whatever the configuration says
ELASTIC_FORMAT = 1
_WRITER_KEYS = ("model_type", "transformers_version", "architectures", "auto_map")
# What a plain configuration has no place for: it lies in config.json's `elastic` block.
ELASTIC_KEYS = (
    "architecture",
    "head_dim",
    "layer_heads",
    "layer_neurons",
    "layer_index",
    "relative_attention_heads",
    "depth_rule",
    "rewired",
)
# An exported network's heads in MPNet's shared bias table: the checkpoint's business, not an argument.
CHECKPOINT_KEYS = ("head_orders",)


class ElasticBertConfig(PreTrainedConfig):
    """Configuration of :class:`ElasticBertModel` and :class:`ElasticBertForSequenceClassification`.

    ``architecture``: ``"bert"``, ``"roberta"`` or ``"mpnet"``; decides names on disk, positions, token types, relative
    position bias and the classification head. ``vocab_size`` to ``classifier_dropout`` mean what they mean in
    transformers' ``BertConfig``, ``RobertaConfig`` and ``MPNetConfig``.
    ``layer_heads``, ``layer_neurons``: heads and neurons of each layer, by default ``num_attention_heads`` and
    ``intermediate_size`` in all; where they are given, those two become their maxima. ``head_dim``: size of one head,
    by default ``hidden_size / num_attention_heads``.
    ``layer_index``: for a network cut out of another, each layer's 0-based place in the first one.
    ``relative_attention_heads``: heads that MPNet's shared bias table has (those of the uncut network).
    ``depth_rule``: which layers a ``depth_mult`` keeps: ``"keep_last"`` or ``"reference"``; read at each call.
    ``rewired``: whether some head or neuron stands elsewhere than it did at first; the orders lie with the weights.
    ``elastic``: the block of a saved ``config.json``; its entries count as if given by name.

    Make one from a plain configuration with :meth:`from_plain`. Raises ``ValueError`` for what the kernels cannot run:
    decoders, cross-attention, other position embeddings than absolute, other activations than gelu, gelu_new,
    gelu_pytorch_tanh and relu, quantised checkpoints; for numbers out of range and an unknown ``problem_type``; and for
    sizes that contradict each other.
    """

    model_type = "elastic_bert"

    def __init__(
        self,
        architecture: str = "bert",
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int | None = None,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        relative_attention_num_buckets: int | None = None,
        classifier_dropout: float | None = None,
        head_dim: int | None = None,
        layer_heads: Sequence[int] | None = None,
        layer_neurons: Sequence[int] | None = None,
        layer_index: Sequence[int] | None = None,
        relative_attention_heads: int | None = None,
        depth_rule: str = "keep_last",
        rewired: bool = False,
        elastic: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        block = _read_block(elastic)
        architecture = block.get("architecture", architecture)
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"ElasticBertConfig: architecture is {architecture!r}; allowed: {', '.join(map(repr, ARCHITECTURES))}"
            )
        mpnet = architecture == "mpnet"
        self.architecture = architecture
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = (0 if mpnet else 2) if type_vocab_size is None else type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        default_buckets = MPNET_BUCKETS if mpnet else 0
        buckets = relative_attention_num_buckets
        self.relative_attention_num_buckets = default_buckets if buckets is None else buckets
        self.classifier_dropout = classifier_dropout

        heads = block.get("layer_heads", layer_heads)
        neurons = block.get("layer_neurons", layer_neurons)
        heads = (num_attention_heads,) * num_hidden_layers if heads is None else tuple(heads)
        neurons = (intermediate_size,) * num_hidden_layers if neurons is None else tuple(neurons)
        self.layer_heads = heads
        self.layer_neurons = neurons
        self.num_attention_heads = max(heads, default=num_attention_heads)
        self.intermediate_size = max(neurons, default=intermediate_size)
        index = block.get("layer_index", layer_index)
        self.layer_index = tuple(range(num_hidden_layers)) if index is None else tuple(index)
        size = block.get("head_dim", head_dim)
        if size is None:
            _check_divides(hidden_size, self.num_attention_heads)
            size = hidden_size // self.num_attention_heads
        self.head_dim = size
        bias_heads = block.get("relative_attention_heads", relative_attention_heads)
        self.relative_attention_heads = (self.num_attention_heads if mpnet else 0) if bias_heads is None else bias_heads
        self.depth_rule = block.get("depth_rule", depth_rule)
        self.rewired = bool(block.get("rewired", rewired))

        self.pad_token_id = kwargs.pop("pad_token_id", 0 if architecture == "bert" else 1)
        self.bos_token_id = kwargs.pop("bos_token_id", None)
        self.eos_token_id = kwargs.pop("eos_token_id", None)
        super().__init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ``ValueError`` when the network it describes contradicts itself or is not one the kernels can run."""
        name = "ElasticBertConfig"
        if getattr(self, "is_decoder", False) or getattr(self, "is_encoder_decoder", False):
            raise ValueError(f"{name}: the checkpoint is a decoder (is_decoder); allowed: encoders")
        if getattr(self, "add_cross_attention", False):
            raise ValueError(f"{name}: the checkpoint has cross-attention (add_cross_attention); allowed: encoders")
        if (kind := getattr(self, "position_embedding_type", None)) not in (None, "absolute"):
            raise ValueError(f"{name}: position_embedding_type is {kind!r}; allowed: 'absolute'")
        if getattr(self, "quantization_config", None) is not None:
            raise ValueError(f"{name}: the checkpoint is quantised; allowed: float weights; use the unquantised one")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"{name}: hidden_act is {self.hidden_act!r}; allowed: {', '.join(map(repr, ACTIVATIONS))}")
        if self.depth_rule not in DEPTH_RULES:
            raise ValueError(f"{name}: depth_rule is {self.depth_rule!r}; allowed: {', '.join(map(repr, DEPTH_RULES))}")
        if (problem := getattr(self, "problem_type", None)) is not None and problem not in PROBLEM_TYPES:
            raise ValueError(
                f"{name}: problem_type is {problem!r}; allowed: None, {', '.join(map(repr, PROBLEM_TYPES))}"
            )
        self._check_numbers(name)
        self._check_sizes(name)

    def _check_numbers(self, name: str) -> None:
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, key)
            if value is None and key == "classifier_dropout":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: {key} is {value!r}; allowed: a number from 0 up to but not including 1")
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0.0 <= eps < math.inf:
            raise ValueError(f"{name}: layer_norm_eps is {eps!r}; allowed: a number, 0 or more")
        if self.type_vocab_size < 0:
            raise ValueError(f"{name}: type_vocab_size is {self.type_vocab_size}; allowed: 0 or more")
        if self.padding_idx >= self.vocab_size:
            raise ValueError(
                f"{name}: the padding token is {self.padding_idx} and vocab_size {self.vocab_size}; allowed: a "
                "pad_token_id of the vocabulary, or None"
            )

    def _check_sizes(self, name: str) -> None:
        if self.num_hidden_layers < 1:
            raise ValueError(f"{name}: num_hidden_layers is {self.num_hidden_layers}; allowed: 1 or more")
        for key in ("layer_heads", "layer_neurons", "layer_index"):
            values = getattr(self, key)
            if len(values) != self.num_hidden_layers:
                raise ValueError(
                    f"{name}: {key} has {len(values)} entries, num_hidden_layers is {self.num_hidden_layers}; "
                    "give one for each layer; to run fewer layers use a sub-network, not another configuration"
                )
            if not all(isinstance(value, Integral) for value in values):
                raise ValueError(f"{name}: {key} is {list(values)}; allowed: whole numbers")
            if min(values) < (0 if key == "layer_index" else 1):
                raise ValueError(f"{name}: {key} is {list(values)}; allowed: 1 or more in each layer")
        for key in ("vocab_size", "hidden_size", "head_dim", "max_position_embeddings"):
            if getattr(self, key) < 1:
                raise ValueError(f"{name}: {key} is {getattr(self, key)}; allowed: 1 or more")
        if self.architecture == "roberta" and self.pad_token_id is None:
            raise ValueError(f"{name}: pad_token_id is None; RoBERTa counts positions from it; give a token id")
        if self.max_sequence_length < 1:
            raise ValueError(
                f"{name}: max_position_embeddings is {self.max_position_embeddings} and positions begin at "
                f"{self.position_offset}; no position is left for a token"
            )
        if self.architecture == "mpnet":
            if self.relative_attention_num_buckets != MPNET_BUCKETS:
                raise ValueError(
                    f"{name}: relative_attention_num_buckets is {self.relative_attention_num_buckets}; "
                    f"allowed: {MPNET_BUCKETS} (what MPNet computes)"
                )
            if self.relative_attention_heads < self.num_attention_heads:
                raise ValueError(
                    f"{name}: relative_attention_heads is {self.relative_attention_heads} for "
                    f"{self.num_attention_heads} heads; allowed: at least as many"
                )

    # transformers looks each name up in a map of other names, which is empty here, and among the settings of single
    # layers, which here are attributes of their own. A forward pass reads dozens of attributes.
    __getattribute__ = object.__getattribute__

    # What the architecture means -------------------------------------------------------------------------------------

    @property
    def padding_idx(self) -> int:
        """Row of the word embeddings that gets no gradient, -1 for none. MPNet's is 1, whatever ``pad_token_id``."""
        if self.architecture == "mpnet":
            return 1
        return -1 if self.pad_token_id is None else self.pad_token_id

    @property
    def position_offset(self) -> int:
        """Position of a sequence's first token: 0 in BERT, the padding token's id plus 1 in RoBERTa and MPNet."""
        return 0 if self.architecture == "bert" else self.padding_idx + 1

    @property
    def max_sequence_length(self) -> int:
        """The longest sequence, in tokens, that has positions."""
        return self.max_position_embeddings - self.position_offset

    @property
    def has_relative_bias(self) -> bool:
        """Whether scores get a relative position bias (MPNet)."""
        return self.architecture == "mpnet"

    @property
    def activation(self) -> Literal["gelu", "gelu_tanh", "relu"]:
        """The FFN's activation, as the ops name it."""
        return ACTIVATIONS[self.hidden_act]

    def shape(self, subnet: Subnet = None) -> SubnetShape:
        """Heads and neurons of every layer (0: skipped) that ``subnet`` means here. Errors: ``subnet_shape``."""
        if isinstance(subnet, (str, SubnetConfig)):
            return _known_shape(subnet, tuple(self.layer_heads), tuple(self.layer_neurons), self.depth_rule)
        return subnet_shape(subnet, self.layer_heads, self.layer_neurons, self.depth_rule)

    def cut(self, shape: SubnetShape) -> ElasticBertConfig:
        """The configuration of the network that ``shape``, one of this network's, makes of it: its kept layers alone.

        ``layer_index`` says where they stood in the first network.
        """
        kept = shape.kept_layers
        values = self.to_dict()
        for name in ("model_type", "transformers_version"):
            values.pop(name, None)
        values |= {
            "num_hidden_layers": len(kept),
            "layer_heads": [shape.heads[layer] for layer in kept],
            "layer_neurons": [shape.neurons[layer] for layer in kept],
            "layer_index": [self.layer_index[layer] for layer in kept],
        }
        return type(self)(**values)

    # Plain configurations --------------------------------------------------------------------------------------------

    @classmethod
    def from_plain(cls, config: PreTrainedConfig | Mapping[str, Any]) -> ElasticBertConfig:
        """The elastic configuration of a plain network.

        ``config``: a ``BertConfig``, ``RobertaConfig``, ``MPNetConfig`` or ``ElasticBertConfig``, or the contents of a
        ``config.json`` of one of them. Raises ``ValueError`` for another model type and for what cannot be run.
        """
        if isinstance(config, cls):
            return cls(**_arguments(config.to_dict()))
        values = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config)
        return cls(**_plain_arguments(values))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, from the contents of a ``config.json`` of any of the four model types."""
        labels = kwargs.pop("num_labels", None)
        if labels is not None and labels != len(config_dict.get("id2label") or ()):
            # Another number of labels than the file's: its names no longer fit, and the base class would keep them.
            config_dict = {key: value for key, value in config_dict.items() if key not in ("id2label", "label2id")}
            config_dict["num_labels"] = labels
        result = super().from_dict(_plain_arguments(config_dict), **kwargs)
        (result[0] if isinstance(result, tuple) else result).check()  # kwargs were set past the constructor
        return result

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> Any:
        """As in transformers; opens plain BERT, RoBERTa and MPNet folders or hub ids as well as elastic ones, and the
        folder of a ``dynabert train`` as the network that it ended with."""
        if not kwargs.get("subfolder"):
            pretrained_model_name_or_path = network_folder(pretrained_model_name_or_path)
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:
            raise OSError(f"from_pretrained: {pretrained_model_name_or_path} has no config.json")
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return cls.from_dict(config_dict, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: the class comes from an installed package, so its source must not be copied beside weights."""

    def plain_obstacle(self) -> str | None:
        """Why transformers' own class cannot hold this network; None when it can."""
        if len(set(self.layer_heads)) > 1 or len(set(self.layer_neurons)) > 1:
            return "its layers differ in size"
        if self.num_attention_heads * self.head_dim != self.hidden_size:
            return f"it has {self.num_attention_heads} heads of {self.head_dim} for a hidden size of {self.hidden_size}"
        if self.has_relative_bias and self.rewired:
            return "its heads are permuted layer by layer, but the relative position bias is shared by all layers"
        return None

    def elastic_block(self) -> dict[str, Any]:
        """The ``elastic`` block of ``config.json``."""
        block: dict[str, Any] = {"format": ELASTIC_FORMAT}
        for key in ELASTIC_KEYS:
            value = getattr(self, key)
            block[key] = list(value) if isinstance(value, tuple) else value
        return block

    def to_plain(self) -> PreTrainedConfig:
        """transformers' own configuration of this network, with the ``elastic`` block as an extra attribute.

        Raises ``ValueError`` where a plain class cannot hold it (:meth:`plain_obstacle`).
        """
        if (obstacle := self.plain_obstacle()) is not None:
            raise ValueError(f"ElasticBertConfig: no plain {self.architecture} can hold this network: {obstacle}")
        values = {key: value for key, value in _arguments(self.to_dict()).items() if key not in ELASTIC_KEYS}
        if self.architecture == "mpnet":
            del values["type_vocab_size"]
            if self.classifier_dropout is None:
                del values["classifier_dropout"]  # not one of MPNetConfig's own
        else:
            del values["relative_attention_num_buckets"]
        values["elastic"] = self.elastic_block()
        return CONFIG_MAPPING[self.architecture](**values)

    def saved_form(self) -> dict[str, Any]:
        """What a ``config.json`` holds: the plain configuration where a plain class can hold the network, with the
        ``elastic`` block; else this configuration with that block and ``model_type`` "elastic_bert"."""
        if self.plain_obstacle() is None:
            return self.to_plain().to_diff_dict()
        values = {key: value for key, value in self.to_diff_dict().items() if key not in ELASTIC_KEYS}
        return {**values, "elastic": self.elastic_block()}


# Servers name the same few sub-networks again and again.
_known_shape = lru_cache(maxsize=1024)(subnet_shape)


def _check_divides(hidden_size: int, heads: int) -> None:
    if heads < 1 or hidden_size % heads:
        raise ValueError(
            f"ElasticBertConfig: hidden_size {hidden_size} is not a multiple of {heads} heads; give head_dim"
        )


def _read_block(elastic: Mapping[str, Any] | None) -> dict[str, Any]:
    if elastic is None:
        return {}
    if not isinstance(elastic, Mapping):
        raise TypeError(f"ElasticBertConfig: the elastic block must be a mapping; got {type(elastic).__name__}")
    if elastic.get("format") != ELASTIC_FORMAT:
        raise ValueError(
            f"ElasticBertConfig: the elastic block has format {elastic.get('format')!r}; this version reads "
            f"{ELASTIC_FORMAT}; use the version that wrote it"
        )
    unknown = sorted(set(elastic) - {*ELASTIC_KEYS, *CHECKPOINT_KEYS, "format"})
    if unknown:
        raise ValueError(f"ElasticBertConfig: unknown entries in the elastic block: {', '.join(unknown)}")
    return {key: value for key, value in elastic.items() if key in ELASTIC_KEYS}


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's dictionary without what says who wrote it and which class to use."""
    return {key: value for key, value in values.items() if key not in _WRITER_KEYS}


def _plain_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a ``config.json`` of a plain or an elastic network."""
    model_type = values.get("model_type")
    if model_type == ElasticBertConfig.model_type:
        return _arguments(values)
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"ElasticBertConfig: model_type is {model_type!r}; "
            f"allowed: {', '.join(map(repr, (*ARCHITECTURES, ElasticBertConfig.model_type)))}"
        )
    # transformers' own class fills in its defaults, which differ between the three.
    plain = CONFIG_MAPPING[model_type](**_arguments(values)).to_dict()
    return {**_arguments(plain), "architecture": model_type}


AutoConfig.register(ElasticBertConfig.model_type, ElasticBertConfig)
