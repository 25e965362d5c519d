"""Parameters and arithmetic of a sub-network, counted from its shape: no measurement, no model needed.

A multiplication and an addition count as two operations. What is counted: the matrix products of every kept layer, both
products of attention, pooler and classifier. Softmax, LayerNorm, activation and the embedding look-up are left out:
together below one per cent at 128 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig, Subnet


class SubnetCost(NamedTuple):
    """What one sub-network holds and does.

    ``parameters``: weights it uses, embeddings included. ``encoder_parameters``: those of its layers alone.
    ``gflop``: 10^9 operations for one sequence.
    """

    parameters: int
    encoder_parameters: int
    gflop: float


def subnet_cost(config: ElasticBertConfig, subnet: Subnet = None, *, seq_length: int = 128) -> SubnetCost:
    """Parameters used and operations done for one sequence of ``seq_length`` tokens.

    With ``k`` heads of size D and ``f`` neurons in a layer of hidden size C: ``4 k D C + 3 k D + C`` parameters in
    attention, ``2 f C + f + C`` in the FFN, ``4 C`` in the two LayerNorms; ``2 S (4 k D C + 2 f C) + 4 S^2 k D``
    operations. A skipped layer costs nothing.

    Args:
        config: the network's configuration.
        subnet: a `SubnetConfig`, its text form, a `SubnetShape`, or None for the whole network.
        seq_length: S, tokens in the sequence.

    Raises:
        ValueError: a sub-network that does not fit; ``seq_length`` outside 1 to the model's positions.
    """
    if not 1 <= seq_length <= config.max_sequence_length:
        raise ValueError(f"subnet_cost: seq_length is {seq_length}; allowed: 1 to {config.max_sequence_length}")
    shape = config.shape(subnet)
    width, size = config.hidden_size, config.head_dim
    encoder = 0
    operations = 0
    for heads, neurons in zip(shape.heads, shape.neurons, strict=True):
        if heads == 0:
            continue
        inner = heads * size
        encoder += 4 * inner * width + 3 * inner + width + 2 * neurons * width + neurons + width + 4 * width
        operations += 2 * seq_length * (4 * inner * width + 2 * neurons * width) + 4 * seq_length**2 * inner
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2  # 2: the LayerNorm
    outputs = config.num_labels or 0
    # BERT's pooler and the dense layer of the RoBERTa and MPNet heads have the same size.
    head = width * width + width + outputs * (width + 1)
    bias_table = config.relative_attention_num_buckets * config.relative_attention_heads
    operations += 2 * (width * width + outputs * width)
    return SubnetCost(encoder + tables * width + head + bias_table, encoder, operations / 1e9)
