"""Which sub-networks are timed: those the model is fitted to, and random ones that it has not seen."""

from __future__ import annotations

import random

from dynabert.profile.additive_model import head_nodes, neuron_nodes
from dynabert.profile.encoder_shape import EncoderShape
from dynabert_kernels import SubnetShape


def whole_network(encoder: EncoderShape) -> SubnetShape:
    """All of it."""
    return SubnetShape(encoder.layer_heads, encoder.layer_neurons)


def anchor(encoder: EncoderShape) -> SubnetShape:
    """The sub-network timed in every round: about half the heads and neurons in all layers."""
    return SubnetShape(
        tuple(max(1, heads // 2) for heads in encoder.layer_heads),
        tuple(max(1, neurons // 2) for neurons in encoder.layer_neurons),
    )


def fitting_networks(encoder: EncoderShape, count: int, step: int, chance: random.Random) -> list[SubnetShape]:
    """``count`` different sub-networks that show each part of the sum by itself.

    The corners first (whole, narrow, shallow, only heads, only neurons), then networks whose layers lie on the nodes
    of ``f`` and ``g``, each node about equally often, or have any number of panels; some uniform, most with a width of
    their own in each layer.
    """
    layers = encoder.num_layers
    half = anchor(encoder)
    narrow = (1,) * layers
    panel = tuple(min(step, neurons) for neurons in encoder.layer_neurons)
    last = layers - 1
    found = [
        whole_network(encoder),
        SubnetShape(narrow, panel),
        SubnetShape(*_only((last,), encoder.layer_heads, encoder.layer_neurons)),
        SubnetShape(*_only((last,), narrow, panel)),
        SubnetShape(encoder.layer_heads, panel),
        SubnetShape(narrow, encoder.layer_neurons),
        half,
        SubnetShape(*_only(tuple(range(layers // 2, layers)), half.heads, half.neurons)),
    ]
    heads, neurons = head_nodes(encoder.max_heads), neuron_nodes(encoder.max_neurons, step)
    head_deck: list[int] = []
    neuron_deck: list[int] = []
    neurons_whole = neurons[-1]
    # Panels between the nodes too: how full the last wave is does not show at the nodes alone.
    neurons = (*neurons, *(chance.randint(1, neurons_whole // step) * step for _ in neurons))

    def drawn(deck: list[int], nodes: tuple[int, ...]) -> int:
        if not deck:
            deck += chance.sample(nodes, len(nodes))
        return deck.pop()

    tries = 0
    while len(dict.fromkeys(found)) < count and tries < 20 * count:
        tries += 1
        kept = chance.sample(range(layers), chance.randint(max(1, layers // 2), layers))
        if tries % 4 == 0:
            chosen = [(drawn(head_deck, heads), drawn(neuron_deck, neurons))] * layers
        else:
            # Every second one has ceilings of its own: else all their sums would lie near the middle.
            heads_most, neurons_most = encoder.max_heads, neurons_whole
            if tries % 2:
                heads_most, neurons_most = chance.choice(heads), chance.choice(neurons)
            chosen = [
                (min(drawn(head_deck, heads), heads_most), min(drawn(neuron_deck, neurons), neurons_most))
                for _ in range(layers)
            ]
        found.append(_fitting(encoder, kept, chosen))
    return list(dict.fromkeys(found))[:count]


def random_networks(
    encoder: EncoderShape, count: int, chance: random.Random, unlike: set[SubnetShape]
) -> tuple[list[SubnetShape], int]:
    """``count`` random sub-networks and how many of them, the first ones, are uniform: half.

    Uniform: any number of heads with the same share of the neurons, in any number of layers. Else: each layer kept by
    chance, with any heads and any neurons. None of them is in ``unlike``; fewer where a network has no more.
    """
    layers = encoder.num_layers
    seen = set(unlike)

    def draw(alike: bool) -> SubnetShape:
        kept = chance.sample(range(layers), chance.randint(1, layers))
        if alike:
            width = chance.randint(1, encoder.max_heads)
            chosen = [(width, max(1, width * encoder.max_neurons // encoder.max_heads))] * layers
        else:
            most = [max(1, round(chance.uniform(0.1, 1.0) * full)) for full in (encoder.max_heads, encoder.max_neurons)]
            chosen = [(chance.randint(1, most[0]), chance.randint(1, most[1])) for _ in range(layers)]
        return _fitting(encoder, kept, chosen)

    found: list[SubnetShape] = []
    uniform = 0
    for alike, target in ((True, count // 2), (False, count)):
        for _ in range(50 * count):  # a tiny network has few uniform ones, and the rest then differ layer by layer
            if len(found) >= target:
                break
            shape = draw(alike)
            if shape not in seen:
                seen.add(shape)
                found.append(shape)
        uniform = len(found) if alike else uniform
    return found, uniform


def _fitting(encoder: EncoderShape, kept: list[int], chosen: list[tuple[int, int]]) -> SubnetShape:
    heads = tuple(min(pair[0], own) for pair, own in zip(chosen, encoder.layer_heads, strict=True))
    neurons = tuple(min(pair[1], own) for pair, own in zip(chosen, encoder.layer_neurons, strict=True))
    return SubnetShape(*_only(tuple(kept), heads, neurons))


def _only(
    kept: tuple[int, ...], heads: tuple[int, ...], neurons: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        tuple(count if layer in kept else 0 for layer, count in enumerate(heads)),
        tuple(count if layer in kept else 0 for layer, count in enumerate(neurons)),
    )
