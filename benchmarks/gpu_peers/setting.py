"""What all works of a run share: the device, the dtype, the sizes, and networks and batches drawn by the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.cpu_peers.peers import Ids
from benchmarks.problems import SHAPES, ModelShape
from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification
from dynabert_kernels.testing.timing import Clock

Model = ElasticBertForSequenceClassification
WIDTHS = (1.0, 0.75, 0.5, 0.25)
SPREAD = 0.04  # deviation of the random weights: large enough that heads and widths show in the answers
BUCKET = 64  # padded contenders run at multiples of so many tokens

# Layers and the shape of one, as in the op benchmarks.
NETWORKS: dict[str, tuple[int, ModelShape]] = {
    "base": (12, SHAPES["bert-base"]),
    "large": (24, SHAPES["bert-large"]),
}
TINY: dict[str, tuple[int, ModelShape]] = {
    "base": (2, ModelShape("tiny-base", hidden=48, heads=4, head_size=12, neurons=96)),
    "large": (3, ModelShape("tiny-large", hidden=64, heads=4, head_size=16, neurons=128)),
}


def subnet(width: float) -> str:
    """The text form of all layers at a width."""
    return f"w{width:g}-d1"


@dataclass
class Setting:
    """One run. ``rehearse``: tiny networks and a few tokens, compilers that only trace, no captured graphs."""

    device: torch.device
    dtype: torch.dtype
    clock: Clock
    rounds: int = 20
    seed: int = 42
    rehearse: bool = False
    cache_bytes: int = 0
    _models: dict[tuple[str, int], Model] = field(default_factory=dict)

    @property
    def networks(self) -> dict[str, tuple[int, ModelShape]]:
        """Layers and shape of each network, by name."""
        return TINY if self.rehearse else NETWORKS

    def shape(self, network: str) -> ModelShape:
        """The shape of one layer of a network."""
        return self.networks[network][1]

    def model(self, network: str, seed: int | None = None) -> Model:
        """An elastic network with random weights, in the run's dtype on its device, in eval mode; made once."""
        key = (network, self.seed if seed is None else seed)
        if key not in self._models:
            layers, shape = self.networks[network]
            self._models[key] = random_model(layers, shape, key[1], self.device, self.dtype)
        return self._models[key]

    def batch(self, count: int, length: int) -> Ids:
        """``count`` texts of ``length`` random ids; a rehearsal's are few and short."""
        if self.rehearse:
            count, length = min(count, 8), min(length, 7)
        return random_ids([length] * count, self.vocabulary, self.seed)

    def ragged(self, count: int, mean: int, longest: int) -> Ids:
        """``count`` texts with lengths like a task's, see `ragged_lengths`."""
        if self.rehearse:
            count, mean, longest = 6, 6, 12
        return random_ids(ragged_lengths(count, mean, longest, self.seed), self.vocabulary, self.seed)

    @property
    def vocabulary(self) -> int:
        """Number of word ids."""
        return 101 if self.rehearse else 30522


def random_model(layers: int, shape: ModelShape, seed: int, device: torch.device, dtype: torch.dtype) -> Model:
    """Weights of deviation `SPREAD`, and a head whose logits are large beside what rounding does to them."""
    from transformers import BertConfig

    tiny = shape.name.startswith("tiny")
    config = BertConfig(
        vocab_size=101 if tiny else 30522,
        hidden_size=shape.hidden,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.neurons,
        max_position_embeddings=64 if tiny else 512,
        initializer_range=SPREAD * (768 / shape.hidden) ** 0.5,
    )
    config.num_labels = 3
    torch.manual_seed(seed)
    model = Model(ElasticBertConfig.from_plain(config))
    with torch.no_grad():
        model.classifier.out_proj.weight.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
    nn.Module.to(model, device=device, dtype=dtype)
    model.train(False)
    return model


def random_ids(lengths: Sequence[int], vocabulary: int, seed: int) -> Ids:
    """Texts of these lengths with random ids, none of them a padding id."""
    drawn = random.Random(seed)
    return [[drawn.randrange(1, vocabulary) for _ in range(length)] for length in lengths]


def ragged_lengths(count: int, mean: int, longest: int, seed: int) -> list[int]:
    """Lengths from 1 to ``longest`` with this mean: log-normal, cut at ``longest``, which one of them has.

    They are drawn, not a data set's. Raises ``ValueError`` where no such lengths exist.
    """
    if count < 1 or not 1 <= mean <= longest or count * mean < longest + count - 1:
        raise ValueError(
            f"ragged_lengths: {count} texts of {mean} tokens on average, the longest of {longest}; allowed: a mean "
            "from 1 to the longest, and enough texts for it"
        )
    drawn = random.Random(seed)
    raw = [drawn.lognormvariate(0.0, 0.45) for _ in range(count)]
    low, high = 0.0, float(longest * 100)
    for _ in range(60):
        middle = (low + high) / 2
        lengths = [max(1, min(longest, round(middle * value))) for value in raw]
        low, high = (middle, high) if sum(lengths) < count * mean else (low, middle)
    lengths[raw.index(max(raw))] = longest
    place = 0
    while sum(lengths) != count * mean:  # rounding, and the one that was made the longest
        step = 1 if sum(lengths) < count * mean else -1
        if 1 <= lengths[place % count] + step <= longest and place % count != raw.index(max(raw)):
            lengths[place % count] += step
        place += 1
    return lengths


def padded(setting: Setting, ids: Ids) -> tuple[Tensor, Tensor | None]:
    """(B, S) ids and mask on the device; S is the longest text, rounded up to `BUCKET` where lengths differ.

    No mask where all texts are equally long: a careful user leaves it out, since it costs the fast attention.
    """
    longest = max(map(len, ids))
    if min(map(len, ids)) == longest:
        return torch.tensor([list(text) for text in ids], device=setting.device), None
    bucket = 4 if setting.rehearse else BUCKET
    width = -(-longest // bucket) * bucket
    rows = torch.tensor([[*text, *[0] * (width - len(text))] for text in ids], device=setting.device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in ids], device=setting.device)
    return rows, mask


def in_float32(model: Model) -> Model:
    """A copy in float32 with the same, already rounded, weights."""
    state = {name: t.float() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    with torch.device("meta"):
        copy = type(model)(model.config)
    copy.load_state_dict(state, strict=True, assign=True)
    nn.Module.to(copy, device=model.device)
    copy.train(False)
    return copy


def encoder_operations(setting: Setting, network: str, ids: Ids, widths: Sequence[float]) -> int:
    """Operations of the layers' products, 2 for a multiply-add; ``widths``: one for each text."""
    layers, shape = setting.networks[network]
    total = 0
    for text, width in zip(ids, widths, strict=True):
        inner, neurons = round(shape.heads * width) * shape.head_size, round(shape.neurons * width)
        total += 2 * len(text) * shape.hidden * (4 * inner + 2 * neurons) + 4 * len(text) ** 2 * inner
    return layers * total
