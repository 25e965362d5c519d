"""Opens an export as somebody without this project would, and answers a batch: a script for a process of its own.

    python -P open_remote.py FOLDER INPUTS OUTPUTS

INPUTS: tensors ``0.input_ids``, ``0.attention_mask``, ... of each batch. OUTPUTS: ``0``, ... logits in float32, and
``0.stored``, ... in the dtype of the file. Prints one line of JSON: the class, its module, the loading report, and the
tokens of the texts that standard input holds as a JSON list.
"""

from __future__ import annotations

import json
import sys
from typing import Any

# Before anything else: an import of the project fails here as if it were not installed.
sys.modules["dynabert"] = None  # type: ignore[assignment]
sys.modules["dynabert_kernels"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402


def main(folder: str, inputs: str, outputs: str) -> None:
    """Does what the module says."""
    batches: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(inputs).items():
        number, _, key = name.partition(".")
        batches.setdefault(number, {})[key] = tensor
    found: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for dtype, ending in ((torch.float32, ""), ("auto", ".stored")):
        opened: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=True, dtype=dtype, output_loading_info=True
        )
        model, info = opened
        model.eval()
        with torch.no_grad():
            for number, batch in batches.items():
                found[number + ending] = model(**batch).logits.float().contiguous()
        said = {
            "class": type(model).__name__,
            "module": type(model).__module__,
            "faults": sorted({*map(str, info["missing_keys"]), *map(str, info["unexpected_keys"])}),
        }
    save_file(found, outputs)
    texts = json.loads(sys.stdin.read() or "[]")
    if texts:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        said["ids"] = [tokenizer(text)["input_ids"] for text in texts]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
