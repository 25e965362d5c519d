"""What the elastic models share: loading, saving, sub-networks, packing, cutting out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedConfig, PreTrainedModel

import dynabert_kernels as dk
from dynabert.configuration import Subnet
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.configuration.run_folder import checked_source, network_folder
from dynabert.modeling import checkpoint
from dynabert.modeling.encoder import PACKING, ElasticLayer
from dynabert.modeling.hub import push_folder
from dynabert.modeling.inputs import packed_positions, shapes_for
from dynabert.modeling.loading_options import check_attention, take_options
from dynabert.modeling.names import Parts, encoder_prefix
from dynabert_kernels import PackedBatch, Plan, SubnetShape, group_by_shape

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedTokenizerBase

    from dynabert.modeling.model import ElasticBertModel

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ElasticBertPreTrainedModel(PreTrainedModel):
    """What both elastic models share: loading, saving, sub-networks, packing, extraction.

    ``scores``: the importance that the network was rewired by, (L, H) and (L, F) on the CPU, or None. Saved with it.
    """

    config_class = ElasticBertConfig
    config: ElasticBertConfig
    base_model_prefix = "encoder"
    scores: tuple[Tensor, Tensor] | None
    _expected_unused: ClassVar[str | None] = None  # names of a checkpoint's tensors that this kind never uses

    def __init__(self, config: PreTrainedConfig) -> None:
        if not isinstance(config, ElasticBertConfig):
            if not isinstance(config, PreTrainedConfig):
                raise TypeError(f"{type(self).__name__}: config must be a configuration; got {type(config).__name__}")
            config = ElasticBertConfig.from_plain(config)
        super().__init__(config)
        self.scores = None

    @property
    def parts(self) -> Parts:
        """Which parts the model has besides the encoder."""
        raise NotImplementedError

    @property
    def elastic_encoder(self) -> ElasticBertModel:
        """The encoder: the model itself, or the one inside the classifier."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights lie. transformers walks through all modules for this, at every call."""
        return self.elastic_encoder.embeddings.word_embeddings.weight.device

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ElasticLayer):
            module.reset(std)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Asked first: otherwise the embeddings would have moved when a layer refuses.
        for module in self.modules():
            if isinstance(module, ElasticLayer):
                module.check_movable()
        return super()._apply(fn, recurse)

    def _check_loadable(self) -> None:
        for layer in self.elastic_encoder.elastic_layers:
            layer.check_loadable()

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        # Asked first here too: whoever loads a model as a part of another does not come by load_state_dict.
        self._check_loadable()
        super()._load_from_state_dict(*given, **named)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.elastic_encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.elastic_encoder.embeddings.word_embeddings = value  # type: ignore[assignment]

    # Sub-networks ----------------------------------------------------------------------------------------------------

    def shape(self, subnet: Subnet = None) -> SubnetShape:
        """Heads and neurons of every layer (0: skipped) that ``subnet`` means in this model.

        ``subnet``: a ``SubnetConfig``, its text form, a ``SubnetShape`` or None. Reads ``config.depth_rule``. Raises
        ``ValueError`` when it does not fit the model, ``TypeError`` for another type.
        """
        return self.config.shape(subnet)

    def pack_weights(self) -> Self:
        """Brings the layers' matrices into the order in which products on a CPU read them, once for every sub-network.

        The packed matrices take the place and the memory of the plain ones. The answers stay the same and come faster,
        the more so the fewer the tokens. Afterwards the model serves inference only: it cannot be trained, saved,
        rewired or moved, and the batches that want gradients or the states of each layer are refused. Where weights are
        not packed (`dynabert_kernels.packed_panel` is 0: no AVX2, another dtype than float32 and bfloat16) nothing is
        changed. A layer's other weights may still change in place; a parameter put in their place is not seen. Other
        threads may use the model meanwhile: they wait where they meet it half packed. Returns the model.

        Raises ``ValueError`` for a model that is not on the CPU, or whose layers are not all of its dtype;
        ``RuntimeError`` in training mode and for parametrised layers. The model is then as it was.
        """
        if self.device.type != "cpu":
            raise ValueError(f"pack_weights: the model is on {self.device}; allowed: the CPU; elsewhere leave it out")
        if self.training:
            raise RuntimeError("pack_weights: the model is in training mode; packed weights do not train; call eval()")
        self._check_own_weights("pack_weights")
        with PACKING:
            if dk.packed_panel(self.dtype) and not self.has_packed_weights:
                layers = self.elastic_encoder.elastic_layers
                for layer in layers:  # all of them first: no layer is packed where another cannot be
                    layer.check_replaceable("pack_weights", self.dtype)
                for layer in reversed(layers):  # as served_weights() counts on
                    layer.pack_weights()
        return self

    def _check_own_weights(self, op: str) -> None:
        """Raises ``RuntimeError`` where a layer computes a weight: it cannot be taken out."""
        for index, layer in enumerate(self.elastic_encoder.elastic_layers):
            if is_parametrized(layer):
                names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
                raise RuntimeError(
                    f"{op}: layer {index} has parametrised weights ({names}); call "
                    "torch.nn.utils.parametrize.remove_parametrizations on them first"
                )

    def quantise_weights(self, dtype: torch.dtype = torch.bfloat16) -> Self:
        """Turns the layers' matrices into int8, once for every sub-network, for inference on a CPU.

        The int8 matrices (`dynabert_kernels.quantise_layer`) take the place of the plain ones, layer by layer, at a
        quarter of float32's bytes. Everything else, embeddings, biases, LayerNorms, pooler and head, is converted to
        ``dtype``, bfloat16 or float32, in which attention and residuals are then computed. Quantise from float32: a
        network already rounded to bfloat16 is rounded twice. Afterwards the model serves inference only, as after
        :meth:`pack_weights`. Returns the model.

        Raises ``ValueError`` for a model that is not on the CPU, another ``dtype``, or weights that are packed or not
        finite; ``RuntimeError`` in training mode and for parametrised layers. The model is then as it was.
        """
        if self.device.type != "cpu":
            raise ValueError(f"quantise_weights: the model is on {self.device}; allowed: the CPU; load it there")
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"quantise_weights: dtype is {dtype}; allowed: torch.bfloat16, torch.float32")
        if self.training:
            raise RuntimeError("quantise_weights: the model is in training mode; int8 does not train; call eval()")
        if self.has_packed_weights:
            raise ValueError(
                "quantise_weights: the weights are packed or in int8 already; load the checkpoint anew with "
                "pack_weights=False"
            )
        self._check_own_weights("quantise_weights")
        layers = self.elastic_encoder.elastic_layers
        for layer in layers:  # all of them first: no layer is quantised where another cannot be
            layer.check_replaceable("quantise_weights")
        for layer in layers:
            layer.quantise_weights(dtype)
        within = {id(part) for layer in layers for part in layer.modules()}
        for part in self.modules():
            if id(part) not in within and next(part.children(), None) is None:
                part.to(dtype)
        return self

    @property
    def has_packed_weights(self) -> bool:
        """Whether :meth:`pack_weights` or :meth:`quantise_weights` has changed this model."""
        return any(layer.packed for layer in self.elastic_encoder.elastic_layers)

    @property
    def has_int8_weights(self) -> bool:
        """Whether :meth:`quantise_weights` has changed this model."""
        return any(layer.int8 is not None for layer in self.elastic_encoder.elastic_layers)

    def pack(
        self,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        *,
        subnet: Subnet | Sequence[Subnet] = None,
        row_bucket: int = 1,
        device: torch.device | str | None = None,
    ) -> tuple[PackedBatch, Plan]:
        """Batch and plan for the second door, from lists of token ids without padding.

        ``subnet``: one for all, or a list with one for each sequence; sequences are then packed widest first and
        ``batch.order`` says where they came from. ``row_bucket``: token counts are rounded up to a multiple of it.
        ``device``: where their tensors go; by default the model's.
        Raises ``ValueError`` for an empty batch or sequence, one that is too long, an id outside the vocabulary, or a
        sub-network that does not fit.
        """
        where = self.device if device is None else device
        shapes = shapes_for(self.config, subnet, len(input_ids))
        longest = self.config.max_sequence_length
        for index, sequence in enumerate(input_ids):
            if len(sequence) > longest:
                raise ValueError(
                    f"sequence {index} of {len(sequence)} tokens is longer than the {longest} positions of this model; "
                    "truncate it"
                )
            if len(sequence) and (min(sequence) < 0 or max(sequence) >= self.config.vocab_size):
                raise ValueError(
                    f"sequence {index} holds an id outside the vocabulary; allowed: 0 to {self.config.vocab_size - 1}"
                )
        order, groups, sizes = group_by_shape(shapes)
        batch = PackedBatch.from_lists(
            input_ids,
            token_type_ids=token_type_ids,
            position_offset=self.config.position_offset,
            order=None if order == list(range(len(order))) else order,
            row_bucket=row_bucket,
            pad_id=max(self.config.padding_idx, 0),
            device=where,
        )
        if self.config.architecture != "bert" and any(self.config.padding_idx in sequence for sequence in input_ids):
            # A padding id inside a text does not count as a position there; rare enough to redo the positions for.
            positions = packed_positions(self.config, [input_ids[index] for index in order], batch.num_rows)
            batch = replace(batch, position_ids=positions.to(batch.device))
        lengths, start = [], 0
        for size in sizes:
            lengths.append([len(input_ids[index]) for index in order[start : start + size]])
            start += size
        return batch, Plan.build(groups, lengths, row_bucket=row_bucket, device=where)

    def extract(self, subnet: Subnet) -> Self:
        """A smaller model of its own: copies of the leading parts of the kept layers that ``subnet`` uses.

        It computes what this one computes at ``subnet``. Same dtype, device and training mode; errors as in
        :meth:`shape`.
        """
        shape = self.shape(subnet)
        kept = shape.kept_layers
        config = self.config.cut(shape)
        with torch.device("meta"):
            small = type(self)(config)
        state = self.state_dict()
        prefix = encoder_prefix(self.parts) + "layers."
        cut: dict[str, Tensor] = {}
        for name, tensor in small.state_dict().items():
            source = name
            if name.startswith(prefix):
                place, _, rest = name.removeprefix(prefix).partition(".")
                source = f"{prefix}{kept[int(place)]}.{rest}"
            # Every active part is a leading block, so the smaller tensor's shape says where to cut.
            cut[name] = state[source][tuple(slice(size) for size in tensor.shape)].clone()
        small.load_state_dict(cut, strict=True, assign=True)
        nn.Module.to(small, self.device)
        if self.scores is not None:
            heads, neurons = self.scores
            rows = torch.tensor(kept)
            small.scores = (
                heads[rows][:, : config.num_attention_heads].clone(),
                neurons[rows][:, : config.intermediate_size].clone(),
            )
        return small.train(self.training)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = torch.float32,
        device: torch.device | str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Opens a checkpoint: plain BERT, RoBERTa or MPNet (any file kind, with or without prefix) or an elastic one.

        ``pretrained_model_name_or_path``: a folder or a hub id, or the folder of a ``dynabert train``, which opens as
        the network that it ended with; ``cache_dir``, ``revision``, ``token``, ``subfolder``, ``local_files_only``,
        ``force_download``, ``proxies`` as in transformers.
        ``dtype``: the weights' type, a ``torch.dtype`` or its name; ``"auto"``: the configuration's, else the file's.
        By default float32, unlike in transformers, so that a network stored in half precision is not trained in it.
        ``device``: where the model goes; the CPU by default. ``use_safetensors``: True or False refuses the other kind.
        transformers' ``torch_dtype`` and ``device_map`` are taken as other names of these two; a map of several devices
        and an ``attn_implementation`` are refused.
        ``ignore_mismatched_sizes``: a classification head of another size is replaced by a fresh one.
        Other arguments change the configuration (``num_labels=3``, ``depth_rule="reference"``).

        A classification head or pooler that the checkpoint lacks is drawn from torch's default generator
        (``torch.manual_seed``) and named in a warning. The model is in eval mode.

        Raises ``OSError`` when there is no such checkpoint, ``ValueError`` when a file is broken, a tensor is missing,
        unknown or of another shape than the configuration says, or the network is of a kind that cannot be run;
        ``TypeError`` for an unknown argument, and for what is neither a folder nor a hub id.
        """
        source = checked_source(pretrained_model_name_or_path)
        if not kwargs.get("subfolder"):
            source = network_folder(source)
        checkpoint.check_source(source)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        dtype, device = take_options(kwargs, config, dtype, device)
        output_loading_info = kwargs.pop("output_loading_info", False)
        if config is None:
            try:
                elastic, unknown = ElasticBertConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **kwargs)
            except StrictDataclassError as error:
                raise ValueError(
                    f"from_pretrained: the config.json of {source} does not hold: {error}; mend it or fetch it again"
                ) from error
            if unknown:
                raise TypeError(f"from_pretrained: unknown arguments: {', '.join(sorted(unknown))}")
        elif kwargs:
            raise TypeError(f"from_pretrained: config given, so not also: {', '.join(sorted(kwargs))}")
        else:
            elastic = ElasticBertConfig.from_plain(config)
        with torch.device("meta"):
            model = cls(elastic)
        loaded = checkpoint.load(
            source,
            elastic,
            model.parts,
            dtype=_dtype(dtype, elastic),
            hub=hub,
            use_safetensors=use_safetensors,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            model_name=cls.__name__,
            expected_unused=cls._expected_unused,
        )
        nn.Module.load_state_dict(model, loaded.state, strict=True, assign=True)
        model.scores = loaded.scores
        elastic.dtype = model.dtype
        elastic.name_or_path = source
        model.name_or_path = source
        if device is not None:
            nn.Module.to(model, device)
        model.eval()
        if output_loading_info:
            info = {"missing_keys": loaded.fresh, "unexpected_keys": loaded.ignored, "mismatched_keys": []}
            return model, info  # type: ignore[return-value]
        return model

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in ``nn.Module``; takes a state dict of this class, or a plain one (what :meth:`save_pretrained` wrote).

        A plain one says nothing of the order of heads and neurons: the model's own is kept, which is right for a
        checkpoint of this very model (how transformers' ``Trainer`` resumes) and for a network never rewired.

        Raises ``RuntimeError`` for a model whose weights are packed or in int8, before anything is copied.
        """
        self._check_loadable()
        state = checkpoint.state_from_plain(state_dict, self.config, self.parts)
        if state.keys() != state_dict.keys():
            own = self.state_dict()
            state |= {name: own[name] for name in own if name.endswith("_order") and name not in state}
        return super().load_state_dict(state, strict=strict, assign=assign)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "50GB",
        *,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Writes a folder that :meth:`from_pretrained` opens, under plain Hugging Face names.

        ``model_type`` stays bert, roberta or mpnet while transformers' own class can hold the network; it then opens
        the folder and computes the same. A network with fewer heads, with layers of different sizes, or an MPNet with
        permuted heads is saved as ``elastic_bert``. Orders and importance scores lie in ``elastic.safetensors``.
        ``state_dict``: this model's state dict, where a trainer has gathered it; ``is_main_process``: False writes
        nothing. What else lies in the folder, such as a README.md, stays as it is.
        ``push_to_hub``: True uploads as well, to ``repo_id`` (by default the folder's name), with the other arguments
        of :meth:`push_to_hub`. ``safe_serialization``: only True.

        Raises ``ValueError`` for a file in the folder's place and for another kind of weight file, ``TypeError`` for an
        unknown argument.
        """
        if not safe_serialization:
            raise ValueError("save_pretrained: safe_serialization is False; weights are written as safetensors only")
        if kwargs and not push_to_hub:
            raise TypeError(f"save_pretrained: unknown arguments: {', '.join(sorted(kwargs))}")
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"save_pretrained: {folder} is a file; give a folder")
        checkpoint.save(
            folder,
            self.config,
            self.parts,
            self.state_dict() if state_dict is None else state_dict,
            self.scores,
            class_name=type(self).__name__,
            dtype=self.dtype,
            max_shard_size=max_shard_size,
        )
        self._write_beside(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), max_shard_size=max_shard_size, **kwargs)

    def _write_beside(self, folder: Path) -> None:
        """Writes what a model of this kind has beside its network; nothing here."""

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        card: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] | None = None,
    ) -> CommitInfo:
        """Uploads what :meth:`save_pretrained` writes, a model card, and the tokenizer if given, in one commit.

        ``card``: the text of README.md (`dynabert.model_card.model_card`, or what lies beside a trained checkpoint).
        None: the repository's own where it has one, to which only ``tags`` are added; else a fresh one of this network,
        which holds no measured number. The other arguments as in transformers; ``revision`` is made where there is no
        such branch. Nothing but the folder is uploaded, and nothing is left on disk.

        Raises ``ValueError`` where there is no token, before anything is written or sent; what the hub answers is
        huggingface_hub's own error.
        """
        return push_folder(
            self,
            repo_id,
            tokenizer=tokenizer,
            card=card,
            tags=tags,
            private=private,
            token=token,
            revision=revision,
            max_shard_size=max_shard_size,
            commit={
                "commit_message": commit_message or f"Upload {type(self).__name__}",
                "commit_description": commit_description,
                "create_pr": create_pr,
            },
        )

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Takes None and ``"eager"``, which change nothing; another is refused (``ValueError``)."""
        check_attention("set_attn_implementation", attn_implementation)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: the class comes from an installed package, so its source must not be copied beside weights."""


def _dtype(dtype: torch.dtype | str | None, config: ElasticBertConfig) -> torch.dtype | None:
    """The type to load in; None for the file's."""
    if dtype is None or dtype == "auto":
        dtype = getattr(config, "dtype", None)
        if dtype is None:
            return None
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"from_pretrained: dtype is {dtype!r}; allowed: 'auto', a floating point torch.dtype or its name"
        )
    return dtype
