"""An encoder of your own from the ops, without any model: embeddings, attention and FFN at three widths in one batch.

    python examples/own_encoder_ops.py

Shows: weights as plain parameters; a plan with a width for each sequence, one of them skipping a layer; that a batch of
mixed widths gives what each width gives alone; a gradient that is zero where no sequence uses a weight; and what
inference adds, packed weights and one native call. Random weights, a few seconds on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dynabert_kernels as dk

VOCABULARY, POSITIONS, C, H, D, F, L = 1000, 64, 128, 4, 32, 512, 3


class Layer(nn.Module):
    """One layer's weights. Query, key and value lie head by head, (H, 3, D, C), so that k heads are one block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_weight = nn.Parameter(torch.randn(H, 3, D, C) * 0.05)
        self.qkv_bias = nn.Parameter(torch.zeros(H, 3, D))
        self.attention = nn.Linear(H * D, C)
        self.attention_norm = nn.LayerNorm(C)
        self.ffn_in = nn.Linear(C, F)
        self.ffn_out = nn.Linear(F, C)
        self.ffn_norm = nn.LayerNorm(C)

    def weights(self) -> dk.LayerWeights:
        """The same parameters as the ops name them; nothing is copied."""
        norm = self.attention_norm
        return dk.LayerWeights(
            self.qkv_weight,
            self.qkv_bias,
            self.attention.weight,
            self.attention.bias,
            norm.weight,
            norm.bias,
            self.ffn_in.weight,
            self.ffn_in.bias,
            self.ffn_out.weight,
            self.ffn_out.bias,
            self.ffn_norm.weight,
            self.ffn_norm.bias,
        )


class Encoder(nn.Module):
    """Embeddings and layers; the plan says how much of them each sequence uses."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Parameter(torch.randn(VOCABULARY, C))
        self.position = nn.Parameter(torch.randn(POSITIONS, C))
        self.norm = nn.LayerNorm(C)
        self.layers = nn.ModuleList(Layer() for _ in range(L))

    def embed(self, batch: dk.PackedBatch) -> Tensor:
        """(T, C)"""
        return dk.embed_layer_norm(
            batch.input_ids, batch.position_ids, None, self.word, self.position, None, self.norm.weight, self.norm.bias
        )

    def forward(self, batch: dk.PackedBatch, plan: dk.Plan) -> Tensor:
        """(T, C): with gradients, op by op."""
        x = self.embed(batch)
        for layer, part in zip(self.layers, plan.layers, strict=True):
            w = layer.weights()  # type: ignore[operator]
            x = dk.elastic_attention(x, *w[:6], batch.cu_seqlens, part, max_seqlen=plan.max_seqlen)
            x = dk.elastic_ffn(x, *w[6:], part)
        return x


def main() -> None:
    torch.manual_seed(0)
    encoder = Encoder()
    # Three sub-networks, widest first: a group is a run of whole sequences that share one. 0 and 0: layer skipped.
    shapes = [
        dk.SubnetShape(heads=(4, 2, 2), neurons=(512, 256, 256)),
        dk.SubnetShape(heads=(2, 2, 2), neurons=(256, 256, 256)),
        dk.SubnetShape(heads=(1, 0, 1), neurons=(128, 0, 128)),
    ]
    lengths = [[17, 5], [32], [9, 3, 20]]
    sequences = [torch.randint(1, VOCABULARY, (n,)).tolist() for group in lengths for n in group]
    batch = dk.PackedBatch.from_lists(sequences)
    plan = dk.Plan.build(shapes, lengths)
    print(f"{batch.num_sequences} sequences, {batch.num_rows} tokens, no padding; group borders {plan.rows.tolist()}")

    mixed = encoder(batch, plan)

    # Each group alone, at one width, is the same computation.
    start = 0
    for shape, group in zip(shapes, lengths, strict=True):
        alone = dk.PackedBatch.from_lists(sequences[: len(group)])
        sequences = sequences[len(group) :]
        rows = mixed[start : start + alone.num_rows]
        difference = (encoder(alone, dk.Plan.uniform(shape, group)) - rows).abs().max().item()
        print(f"heads {shape.heads}, neurons {shape.neurons}: alone and in the batch differ by {difference:.1e}")
        assert difference < 1e-5
        start += alone.num_rows

    # One backward pass for all widths. In the second layer nobody uses more than 2 heads and 256 neurons.
    mixed.square().sum().backward()
    second = encoder.layers[1]
    assert second.qkv_weight.grad[:2].abs().max() > 0
    assert second.qkv_weight.grad[2:].abs().max() == 0
    assert second.ffn_in.weight.grad[256:].abs().max() == 0
    print("the second layer's gradient is zero past 2 heads and 256 neurons, and not before")

    # Inference: all layers in one native call, and on a CPU the matrices packed once for every width.
    layers: list[dk.LayerWeights] | list[dk.PackedLayerWeights] = [layer.weights() for layer in encoder.layers]
    if dk.packed_panel(torch.float32):
        layers = [dk.pack_layer(layer) for layer in layers]  # type: ignore[arg-type]
    with torch.inference_mode():
        fast = dk.elastic_encoder(encoder.embed(batch), layers, batch.cu_seqlens, plan)
    print(f"one call, packed weights: within {(fast - mixed).abs().max().item():.1e} of the ops")
    print(dk.show_config())


if __name__ == "__main__":
    main()
