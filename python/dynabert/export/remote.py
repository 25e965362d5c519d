"""The form with its own code beside it: an elastic checkpoint that opens where dynabert is not installed."""

from __future__ import annotations

import json
from pathlib import Path

from dynabert.configuration.elastic import ELASTIC_KEYS, ElasticBertConfig
from dynabert.export.kinds import Exported
from dynabert.modeling import ElasticBertForSequenceClassification, checkpoint, files
from dynabert.modeling.names import to_plain

CODE = Path(__file__).with_name("modeling_elastic_bert.py")
AUTO_MAP = {
    "AutoConfig": f"{CODE.stem}.ElasticBertConfig",
    "AutoModel": f"{CODE.stem}.ElasticBertModel",
    "AutoModelForSequenceClassification": f"{CODE.stem}.ElasticBertForSequenceClassification",
}


def head_orders(small: Exported) -> list[list[int]] | None:
    """The place of each layer's heads in MPNet's bias table; None where they are the leading ones, or without one."""
    if not small.config.has_relative_bias:
        return None
    orders = [layer.head_order.tolist() for layer in small.elastic_encoder.elastic_layers]
    return None if all(order == list(range(len(order))) for order in orders) else orders


def elastic_values(small: Exported) -> dict[str, object]:
    """The whole configuration, defaults and all (another class has others), with the block that the code reads."""
    left_out = (*ELASTIC_KEYS, "_name_or_path")  # where the source lay is the report's to say
    values = {key: value for key, value in small.config.to_dict().items() if key not in left_out}
    block = small.config.elastic_block()
    orders = head_orders(small)
    values["elastic"] = block if orders is None else {**block, "head_orders": orders}
    return values


def write(small: ElasticBertForSequenceClassification, folder: Path) -> None:
    """Writes configuration, weights under their plain names, the code, and the orders that our own class reads."""
    content = elastic_values(small)
    content |= {
        "model_type": ElasticBertConfig.model_type,
        "architectures": [type(small).__name__],
        "auto_map": AUTO_MAP,
        "dtype": str(small.dtype).removeprefix("torch."),
    }
    state = small.state_dict()
    files.write_weights(folder, to_plain(state, small.config, small.parts), "50GB")
    checkpoint.save_orders(folder, small.config, small.parts, state, small.scores)
    (folder / CODE.name).write_text(CODE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
