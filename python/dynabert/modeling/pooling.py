"""From token states to one vector a text, and how a checkpoint says which way: sentence-transformers' files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert.modeling import files

POOLING_MODES = ("mean", "cls")
MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
_POOLING_FOLDER, _NORMALIZE_FOLDER = "1_Pooling", "2_Normalize"
_PACKAGE = "sentence_transformers.models"
_NAMES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made of its tokens' last states.

    Attributes:
        mode: ``"mean"``: of all tokens, special ones included. ``"cls"``: the first token's.
        normalize: whether it is divided by its length, so that an inner product of two is their cosine.
        max_seq_length: most tokens of a text that the network was made for, or None where nobody said.
    """

    mode: str = "mean"
    normalize: bool = True
    max_seq_length: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in POOLING_MODES:
            raise ValueError(f"Pooling: mode is {self.mode!r}; allowed: {', '.join(map(repr, POOLING_MODES))}")
        if not isinstance(self.normalize, bool):
            raise TypeError(f"Pooling: normalize must be True or False; got {self.normalize!r}")
        length = self.max_seq_length
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ValueError(f"Pooling: max_seq_length is {length!r}; allowed: None, or a whole number from 1")

    def __call__(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """(B, C), differentiable, in the order in which the sequences are packed.

        ``x``: (T, C), last states of packed tokens; rows past the last border count for nothing, whatever they hold.
        ``cu_seqlens``: (B + 1,) int32, the borders. float32, or float64 for float64 states. A sequence without a token
        has a vector of zeros.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        counts = cu_seqlens.diff()[:, None]
        if self.mode == "cls":
            # An empty sequence begins at another's row, or past the last.
            first = wide.index_select(0, cu_seqlens[:-1].clamp(max=x.shape[0] - 1))
            found = torch.where(counts > 0, first, 0.0)
        else:
            found = _sums(wide, cu_seqlens) / counts.clamp(min=1)
        return F.normalize(found, dim=1) if self.normalize else found

    @classmethod
    def of_checkpoint(cls, source: str, hub: Mapping[str, Any]) -> Pooling | None:
        """What a folder or hub id of sentence-transformers says; None where it is not one.

        Raises ``ValueError`` for a file that is broken, and for what cannot be computed here: another way of pooling,
        or modules beside the network, the pooling and the division by the length (a dense layer).
        """
        modules = files.find(source, MODULES_FILE, hub)
        if modules is None:
            return None
        mode, normalize = None, False
        for module in _read(modules, list):
            kind = str(module.get("type", "")).rpartition(".")[2]
            if kind == "Pooling":
                mode = _mode(source, str(module.get("path", _POOLING_FOLDER)), hub)
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise ValueError(
                    f"from_pretrained: {modules} has a module {module.get('type')!r}; allowed: Transformer, Pooling "
                    "and Normalize of sentence-transformers; take a checkpoint without it"
                )
        if mode is None:
            raise ValueError(f"from_pretrained: {modules} names no Pooling; allowed: one; fetch it again")
        length = files.find(source, LENGTH_FILE, hub)
        return cls(mode, normalize, None if length is None else _read(length, dict).get("max_seq_length"))

    def save(self, folder: Path, hidden_size: int) -> None:
        """Writes the files that sentence-transformers opens a folder by, into an existing folder with the network."""
        kinds = [("", "Transformer"), (_POOLING_FOLDER, "Pooling")]
        if self.normalize:
            kinds.append((_NORMALIZE_FOLDER, "Normalize"))
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": f"{_PACKAGE}.{kind}"}
            for index, (path, kind) in enumerate(kinds)
        ]
        pooling = {"word_embedding_dimension": hidden_size} | {name: self.mode == mode for mode, name in _NAMES.items()}
        for path, kind in kinds:
            if path:
                (folder / path).mkdir(exist_ok=True)
            if kind == "Pooling":
                _write(folder / path / "config.json", pooling)
        _write(folder / MODULES_FILE, modules)
        if self.max_seq_length is None:
            (folder / LENGTH_FILE).unlink(missing_ok=True)  # of an earlier save
        else:
            _write(folder / LENGTH_FILE, {"max_seq_length": self.max_seq_length, "do_lower_case": False})


def _sums(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(B, C): each sequence's rows of ``x`` (T, C), added."""
    count = cu_seqlens.shape[0] - 1
    if x.device.type != "cpu":
        # Each sum is one thread's, so the same sequence gives the same bits; adding by index would not.
        return torch.segment_reduce(x, "sum", offsets=cu_seqlens, axis=0, unsafe=True)
    places = torch.arange(x.shape[0], dtype=cu_seqlens.dtype, device=x.device)
    owners = torch.searchsorted(cu_seqlens, places, right=True) - 1  # ``count`` for rows past the last border
    return x.new_zeros(count + 1, x.shape[1]).index_add(0, owners, x)[:count]


def _mode(source: str, path: str, hub: Mapping[str, Any]) -> str:
    found = files.find(source, f"{path}/config.json", hub)
    if found is None:
        raise ValueError(f"from_pretrained: {source} has no {path}/config.json, which {MODULES_FILE} names")
    content = _read(found, dict)
    named = content.get("pooling_mode")  # newer files say it so
    asked = [named] if isinstance(named, str) else named if isinstance(named, list) else None
    if asked is None:
        asked = [name for name, on in content.items() if name.startswith("pooling_mode_") and on]
        known = {name: mode for mode, name in _NAMES.items()}
        asked = [known.get(name, name) for name in asked]
    if len(asked) != 1 or asked[0] not in POOLING_MODES:
        raise ValueError(
            f"from_pretrained: {found} pools by {', '.join(map(str, asked)) or 'nothing'}; allowed: one of "
            f"{', '.join(POOLING_MODES)}"
        )
    return str(asked[0])


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} is damaged ({error}); fetch it again") from error
    rows = content if kind is list else [content]
    if not isinstance(content, kind) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"from_pretrained: {path} is not what sentence-transformers writes there; fetch it again")
    return content


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
