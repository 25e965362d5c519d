"""An independent, slow computation of a (sub-)network from a plain Hugging Face state dict: text by text, head by head.

Written from the papers, in loops over layers, heads and tokens, with no code of the project. A sub-network is given by
lists of head and neuron numbers of the *plain* network, so it also says what rewiring must give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
}
NAMES["roberta"] = NAMES["bert"]


@dataclass
class Slow:
    """A plain network: its state dict (names with the prefix) and configuration."""

    weights: dict[str, Tensor]
    config: object
    architecture: str

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        types: Sequence[int] | None = None,
        heads: Sequence[Sequence[int]] | None = None,
        neurons: Sequence[Sequence[int]] | None = None,
        head_mask: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """States (embedding output, then one per kept layer; each (tokens, C)) and logits of one text.

        ``heads[l]``, ``neurons[l]``: which ones run in layer l; both empty: the layer is skipped; None: all.
        ``head_mask``: (L, H), multiplies each head's attention probabilities.
        """
        config, w = self.config, self.weights
        p = f"{self.architecture}."
        size = config.hidden_size // config.num_attention_heads
        count = len(ids)
        rows = []
        for i in range(count):
            row = w[f"{p}embeddings.word_embeddings.weight"][ids[i]]
            row = row + w[f"{p}embeddings.position_embeddings.weight"][positions[i]]
            if self.architecture != "mpnet":
                row = row + w[f"{p}embeddings.token_type_embeddings.weight"][0 if types is None else types[i]]
            rows.append(self.norm(row, f"{p}embeddings.LayerNorm"))
        x = torch.stack(rows)
        states = [x]
        names = NAMES[self.architecture]
        for layer in range(config.num_hidden_layers):
            at = f"{p}encoder.layer.{layer}."
            used = range(config.num_attention_heads) if heads is None else heads[layer]
            active = range(config.intermediate_size) if neurons is None else neurons[layer]
            if len(used) == 0 and len(active) == 0:
                continue
            total = w[f"{at}{names[3]}.bias"].expand(count, -1)
            for head in used:
                part = slice(head * size, (head + 1) * size)
                q, k, v = (x @ w[f"{at}{name}.weight"][part].T + w[f"{at}{name}.bias"][part] for name in names[:3])
                scores = torch.empty(count, count, dtype=x.dtype)
                for i in range(count):
                    scores[i] = (k @ q[i]) / math.sqrt(size)
                if self.architecture == "mpnet":
                    scores = scores + self.relative_bias(count, head)
                probabilities = torch.softmax(scores, dim=1)
                if head_mask is not None:
                    probabilities = probabilities * head_mask[layer, head]
                total = total + (probabilities @ v) @ w[f"{at}{names[3]}.weight"][:, part].T
            norm = "attention.LayerNorm" if self.architecture == "mpnet" else "attention.output.LayerNorm"
            x = torch.stack([self.norm(row, at + norm) for row in x + total])
            index = torch.tensor(list(active), dtype=torch.long)
            inner = x @ w[f"{at}intermediate.dense.weight"][index].T + w[f"{at}intermediate.dense.bias"][index]
            inner = self.activation(inner)
            out = inner @ w[f"{at}output.dense.weight"][:, index].T + w[f"{at}output.dense.bias"]
            x = torch.stack([self.norm(row, f"{at}output.LayerNorm") for row in x + out])
            states.append(x)
        return states, self.classify(x[0])

    def classify(self, first: Tensor) -> Tensor:
        """Logits from the first token's state."""
        w = self.weights
        if self.architecture == "bert":
            pooled = torch.tanh(w["bert.pooler.dense.weight"] @ first + w["bert.pooler.dense.bias"])
            return w["classifier.weight"] @ pooled + w["classifier.bias"]
        pooled = torch.tanh(w["classifier.dense.weight"] @ first + w["classifier.dense.bias"])
        return w["classifier.out_proj.weight"] @ pooled + w["classifier.out_proj.bias"]

    def norm(self, row: Tensor, name: str) -> Tensor:
        """LayerNorm of one row."""
        centred = row - row.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + self.config.layer_norm_eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def activation(self, x: Tensor) -> Tensor:
        """The activation, from its formula."""
        kind = self.config.hidden_act
        if kind == "relu":
            return torch.where(x > 0, x, torch.zeros_like(x))
        if kind in ("gelu_new", "gelu_pytorch_tanh"):
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def relative_bias(self, count: int, head: int) -> Tensor:
        """MPNet's bias: buckets of the distance to the key, 16 behind and 16 ahead, 8 exact and 8 logarithmic each."""
        table = self.weights["mpnet.encoder.relative_attention_bias.weight"]
        rows = []
        for i in range(count):
            row = []
            for j in range(count):
                steps = abs(j - i)
                bucket = steps
                if steps >= 8:
                    bucket = min(15, 8 + int(math.log(steps / 8) / math.log(128 / 8) * 8 + 1e-9))
                row.append(table[bucket + (16 if j > i else 0), head])
            rows.append(torch.stack(row))
        return torch.stack(rows)
