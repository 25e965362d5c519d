"""Every format of every kind of sub-network: which opens where, how closely it matches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dynabert import ElasticBertForSequenceClassification
from dynabert.export import (
    FORMATS,
    ExportReport,
    export_subnet,
    modeling_elastic_bert,
    onnx_graph,
    parity,
    plain,
    remote,
)
from dynabert.export.report import snippet
from dynabert.modeling.encoder import relative_position_buckets
from dynabert.modeling.names import to_plain
from tests.dynabert.exported import KINDS, elsewhere, opened_here, rewired
from tests.dynabert.tiny_networks import TINY, close, padded_batch
from tests.dynabert.tiny_texts import tiny_model, tiny_tokenizer

ARCHITECTURES = ("bert", "roberta", "mpnet")
HEADS: dict[str, dict[str, Any]] = {
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "several labels": {"num_labels": 5, "problem_type": "multi_label_classification"},
    "relu": {"hidden_act": "relu"},
    "tanh gelu": {"hidden_act": "gelu_new"},
}
# Name -> architecture, changes of the configuration, kind of sub-network.
CELLS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{f"{architecture}, {kind}": (architecture, {}, kind) for architecture in ARCHITECTURES for kind in KINDS},
    **{f"bert, {name}": ("bert", changes, "all unequal") for name, changes in HEADS.items()},
    "mpnet, regression": ("mpnet", HEADS["regression"], "depth"),
    "roberta, several labels": ("roberta", HEADS["several labels"], "width"),
}
LENGTHS = [7, 2, 11, 1]


class Cell:
    """A source, its answers at the sub-network, and the exports of it in each format that holds it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.architecture, changes, self.kind = CELLS[name]
        self.model = rewired(self.architecture, **changes)
        self.subnet, self.plain = KINDS[self.kind]
        self.batch = padded_batch(self.plain_like(), LENGTHS)
        with torch.no_grad():
            self.wanted = self.model(**self.batch, subnet=self.subnet).logits
        self.folder = folder / name.replace(", ", "-").replace(" ", "-")
        self.reports: dict[str, ExportReport] = {}
        self.refused: dict[str, str] = {}
        for form in (*FORMATS, "padded"):
            plain = "hf" if form == "padded" else form
            try:
                self.reports[form] = export_subnet(
                    self.model,
                    tiny_tokenizer(self.architecture),
                    self.subnet,
                    self.path(form),
                    format=plain,
                    pad=form == "padded",
                )
            except ValueError as error:
                self.refused[form] = str(error)

    def path(self, form: str) -> Path:
        """Not a Python name, though transformers makes a module of it."""
        return self.folder / f"{form} v0.5-w1"

    def plain_like(self) -> Any:
        """What `padded_batch` reads of a plain model."""
        config = self.model.config

        class Like:
            class config:
                model_type = self.architecture
                pad_token_id = config.padding_idx

        return Like


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "opened_remote", opened_here)
        return {name: Cell(name, folder) for name in CELLS}


@pytest.mark.parametrize("name", CELLS)
def test_which_format_holds_which_subnetwork(cells: dict[str, Cell], name: str) -> None:
    cell = cells[name]
    holds = {"hf": cell.plain, "hf-remote": True, "onnx": True, "elastic": True, "padded": True}
    assert {form: form in cell.reports for form in holds} == holds
    for form, report in cell.reports.items():
        assert report.parity.max_difference <= 1e-4
        assert 5e-5 < report.parity.bound <= 1e-4
        assert report.parity.lengths[0] == cell.model.config.max_sequence_length
        assert report.parity.texts == 4
        assert (report.padded is not None) == (form == "padded" and not cell.plain)
        written = json.loads((cell.path(form) / "export_report.json").read_text())
        assert written == report.to_dict()
        for file, size in report.files.items():
            assert (cell.path(form) / file).stat().st_size == size
        assert {path.name for path in cell.path(form).iterdir()} == {*report.files, "export_report.json"}
    if not cell.plain:
        assert "formats that can: hf-remote, onnx, elastic; or hf with --pad" in cell.refused["hf"]
    assert sorted(path.name for path in cell.folder.iterdir()) == sorted(
        cell.path(form).name for form in cell.reports
    )  # nothing is left beside them


def test_opens_where_this_project_is_not_installed(cells: dict[str, Cell], tmp_path: Path) -> None:
    """hf and padded by transformers' own classes, hf-remote by its own code, in a process that cannot import ours."""
    asked = [
        (str(cell.path(form)), {key: tensor.tolist() for key, tensor in cell.batch.items()})
        for cell in cells.values()
        for form in ("hf", "padded", "hf-remote")
        if form in cell.reports
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    found = elsewhere(
        "import json, pathlib, torch\n"
        "from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer\n"
        "found = []\n"
        "for folder, batch in json.loads(pathlib.Path(sys.argv[1]).read_text()):\n"
        "    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code='remote' in folder)\n"
        "    assert not model.training\n"
        "    AutoTokenizer.from_pretrained(folder, trust_remote_code='remote' in folder)\n"
        "    with torch.no_grad():\n"
        "        batch = {key: torch.tensor(rows) for key, rows in batch.items()}\n"
        "        logits = model(**batch).logits\n"
        "    if 'remote' in folder:\n"
        "        encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "        own = model.base_model(**batch).last_hidden_state\n"
        "        assert torch.equal(encoder(**batch).last_hidden_state, own)\n"
        "    found.append([type(model).__module__, type(model).__name__, logits.tolist()])\n"
        "assert not any(name.startswith('dynabert') and sys.modules[name] for name in sys.modules)\n"
        "print(json.dumps(found))\n",
        tmp_path / "modules",
        str(tmp_path / "asked.json"),
    )
    answers = iter(found)
    for cell in cells.values():
        for form in ("hf", "padded", "hf-remote"):
            if form in cell.reports:
                module, name, logits = next(answers)
                home = "transformers_modules." if form == "hf-remote" else "transformers.models."
                assert module.startswith(home)
                assert name.endswith("ForSequenceClassification")
                close(torch.tensor(logits), cell.wanted, 1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_opens_in_our_own_class(cells: dict[str, Cell], name: str) -> None:
    cell = cells[name]
    for form in ("hf", "hf-remote", "elastic", "padded"):
        if form not in cell.reports:
            continue
        model = ElasticBertForSequenceClassification.from_pretrained(cell.path(form))
        with torch.no_grad():
            close(model(**cell.batch).logits, cell.wanted, 1e-5)
            size = cell.reports[form].padded or cell.reports[form].size
            assert (model.config.layer_heads, model.config.layer_neurons) == (size.heads, size.neurons)
            model(**cell.batch, subnet=f"l{model.config.num_hidden_layers - 1}")
        assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters
        assert model.config.id2label == cell.model.config.id2label
        assert model.config.problem_type == cell.model.config.problem_type


@pytest.mark.parametrize("name", ["bert, all unequal", "roberta, width", "mpnet, all unequal", "mpnet, depth"])
def test_onnx_answers_any_batch(cells: dict[str, Cell], name: str) -> None:
    """One row, many, one token, the longest; padding on either side; what padding holds does not matter."""
    import onnxruntime

    cell = cells[name]
    session = onnxruntime.InferenceSession(cell.path("onnx") / "model.onnx", providers=["CPUExecutionProvider"])
    types = ["token_type_ids"] if cell.architecture == "bert" else []
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", *types]
    assert {one.type for one in session.get_inputs()} == {"tensor(int64)"}
    assert {tuple(one.shape) for one in session.get_inputs()} == {("batch", "sequence")}
    assert session.get_outputs()[0].shape == ["batch", 3]
    longest = cell.model.config.max_sequence_length
    for lengths, side in (([1], "right"), ([longest, 1, 9], "right"), ([5] * 17, "right"), ([3, 12, 6], "left")):
        batch = padded_batch(cell.plain_like(), lengths, side)
        with torch.no_grad():
            wanted = cell.model(**batch, subnet=cell.subnet).logits
        if cell.architecture == "bert":  # in RoBERTa and MPNet the padding id decides positions
            batch["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], 17)
        given = {one: batch[one].numpy() for one in ("input_ids", "attention_mask", *types)}
        close(torch.from_numpy(session.run(["logits"], given)[0]), wanted, 1e-5)


@pytest.mark.parametrize("form", FORMATS)
def test_the_snippet_runs(cells: dict[str, Cell], form: str) -> None:
    report = cells["bert, depth"].reports[form]
    space: dict[str, Any] = {}
    exec(report.load, space)
    assert tuple(space["logits"].shape) == (2, 3)


@pytest.mark.parametrize(("architecture", "given"), [("bert", False), ("roberta", True), ("mpnet", True)])
def test_the_graph_gets_the_inputs_it_has(tmp_path: Path, architecture: str, given: bool) -> None:
    """A tokenizer leaves out the token types that the graph has, or gives those that it lacks."""
    tokenizer = tiny_tokenizer(architecture)
    names = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = [*names, "token_type_ids"] if given else names
    report = export_subnet(tiny_model(architecture), tokenizer, "w0.5", tmp_path / "out", format="onnx")
    space: dict[str, Any] = {}
    exec(report.load, space)
    assert space["logits"].shape == (2, 3)


def test_a_path_with_a_quote(tmp_path: Path) -> None:
    for form in ("elastic", "onnx"):
        report = export_subnet(tiny_model(), tiny_tokenizer(), "d0.5", tmp_path / f'a "good" {form}', format=form)
        exec(report.load, {})


def test_onnx_beyond_one_files_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in a file of their own, which ONNX Runtime finds beside the graph."""
    monkeypatch.setattr(onnx_graph, "PROTOBUF_LIMIT", 0)
    report = export_subnet(rewired("mpnet"), None, "w0.5", tmp_path / "out", format="onnx")
    assert report.files["model.onnx.data"] > 1024
    assert report.parity.max_difference <= 1e-4


def test_hf_holds_nothing_of_ours(cells: dict[str, Cell]) -> None:
    for name in ("bert, depth", "roberta, neurons", "mpnet, full"):
        cell = cells[name]
        config = json.loads((cell.path("hf") / "config.json").read_text())
        assert config["model_type"] == cell.architecture
        assert "elastic" not in config
        assert "auto_map" not in config
        files = {path.name for path in cell.path("hf").iterdir()}
        assert files == {
            "config.json",
            "export_report.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }


def test_configurations_do_not_say_where_the_source_lay(cells: dict[str, Cell]) -> None:
    cell = cells["mpnet, all unequal"]
    for form in ("hf-remote", "onnx", "elastic"):
        assert "_name_or_path" not in json.loads((cell.path(form) / "config.json").read_text())


def test_mpnets_heads_are_put_back_to_their_places(cells: dict[str, Cell]) -> None:
    """The bias is shared by all layers: a rewired MPNet fits a plain class only with its heads in the first order."""
    cell = cells["mpnet, full"]
    found = load_file(cell.path("hf") / "model.safetensors")
    size = cell.model.config.head_dim
    for index, layer in enumerate(cell.model.elastic_encoder.elastic_layers):
        assert layer.head_order.tolist() != [0, 1, 2, 3]
        query = found[f"mpnet.encoder.layer.{index}.attention.attn.q.weight"].unflatten(0, (-1, size))
        for place, first in enumerate(layer.head_order.tolist()):
            assert torch.equal(query[first], layer.qkv_weight[place, 0])


def test_buckets_without_a_logarithm() -> None:
    """The code beside the weights writes the borders out; they are those of the rule."""
    config = modeling_elastic_bert.ElasticBertConfig(
        elastic={
            "format": 1,
            "architecture": "mpnet",
            "head_dim": 2,
            "layer_heads": [1],
            "layer_neurons": [1],
            "relative_attention_heads": 1,
        },
        hidden_size=2,
        vocab_size=3,
    )
    encoder = modeling_elastic_bert.ElasticBertModel(config).encoder
    with torch.no_grad():
        encoder.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None])
        found = encoder.position_bias(300, torch.device("cpu"))[0]
    table = relative_position_buckets(300, 32)
    assert found[0].tolist() == table[299:].tolist()
    assert found[:, 0].tolist() == table[:300].flip(0).tolist()


# Weights in half precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMATS)
def test_half_precision_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str) -> None:
    monkeypatch.setattr(parity, "opened_remote", opened_here)
    model = rewired("mpnet")
    out = tmp_path / "out"
    report = export_subnet(model, None, "d0.5", out, format=form, dtype=dtype)
    assert report.dtype == dtype
    assert report.parity.max_difference <= report.parity.bound <= 1e-4
    assert report.parity.stored_max_difference is not None
    assert report.parity.stored_bound is not None
    assert 1e-4 < report.parity.stored_max_difference <= report.parity.stored_bound
    assert model.dtype == torch.float32
    if form == "onnx":
        import onnx

        kinds = {one.data_type for one in onnx.load(out / "model.onnx").graph.initializer if len(one.dims) == 2}
        assert kinds == {getattr(onnx.TensorProto, dtype.upper())}
    else:
        assert {str(tensor.dtype) for tensor in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
        assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_a_source_in_half_precision_or_in_training_is_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("bert").bfloat16().train()
    report = export_subnet(model, None, "d0.5", tmp_path / "out")
    assert report.parity.max_difference <= 1e-4
    assert (model.dtype, model.training) == (torch.bfloat16, True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


# What is compared -----------------------------------------------------------------------------------------------------


def test_the_inputs_of_the_comparison(architecture: str) -> None:
    model, tokenizer = tiny_model(architecture), tiny_tokenizer(architecture)
    before = tokenizer.backend_tokenizer.to_str()
    found = parity.probe(model, tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before  # what is saved must not depend on what was asked
    longest = model.config.max_sequence_length
    assert found.lengths == (longest, 3, 1, 17, 7)
    texts, random, alone = found.batches
    assert texts["input_ids"].shape[0] == found.texts == 4
    assert random["attention_mask"].sum(1).tolist() == [longest, 3, 1, 17]
    assert alone["input_ids"].shape == (1, 7)
    pad = model.config.padding_idx
    assert not (random["input_ids"][random["attention_mask"] == 1] == pad).any()
    assert all(("token_type_ids" in batch) == (architecture == "bert") for batch in found.batches)
    if architecture == "bert":
        assert set(random["token_type_ids"].flatten().tolist()) == {0, 1}
    assert [batch.keys() for batch in parity.probe(model, None).batches] == [random.keys(), alone.keys()]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (torch.tensor([1.0]), float("inf")),
        (torch.tensor([1.0, float("nan")]), float("inf")),
        (torch.tensor([1.0, 2.5]), 0.5),
    ],
)
def test_difference(found: Tensor, wanted: float) -> None:
    assert parity.difference([found], [torch.tensor([1.0, 2.0])]) == wanted


@pytest.mark.parametrize(
    ("form", "home", "name", "value"),
    [
        ("onnx", onnx_graph, "head_orders", lambda small: None),  # heads at another head's bias
        ("onnx", onnx_graph, "MASKED", 0.0),  # padding is read
        ("hf-remote", remote, "head_orders", lambda small: None),
        ("hf", plain, "to_plain", lambda state, *given: {k: v.abs() for k, v in to_plain(state, *given).items()}),
    ],
)
def test_a_planted_fault_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, home: Any, name: str, value: Any
) -> None:
    """What the comparison is for: an export that opens, and answers otherwise, does not appear."""
    monkeypatch.setattr(parity, "opened_remote", opened_here)
    monkeypatch.setattr(home, name, value)
    with pytest.raises(
        RuntimeError, match=r"answers otherwise than the source: logits differ by .*nothing was exported"
    ):
        export_subnet(rewired("mpnet"), None, "d0.5", tmp_path / "out", format=form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-9), ("bfloat16", 1e-6)])
def test_answers_that_are_small_are_compared_as_closely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bound: float
) -> None:
    """1e-4 is more than all answers of such a head: any network would have passed."""
    monkeypatch.setattr(parity, "opened_remote", opened_here)
    model = rewired("mpnet")
    with torch.no_grad():
        model.classifier.out_proj.weight *= 1e-6
        model.classifier.out_proj.bias.zero_()
    for form in FORMATS:
        found = export_subnet(model, None, "d0.5", tmp_path / form, format=form, dtype=dtype).parity
        assert found.max_difference <= found.bound < 1e-9
        assert found.stored_bound is None or found.stored_bound < bound
        assert found.largest_logit > 100 * found.bound
    monkeypatch.setattr(onnx_graph, "head_orders", lambda small: None)  # heads at another head's bias
    with pytest.raises(RuntimeError, match="answers otherwise than the source"):
        export_subnet(model, None, "d0.5", tmp_path / "wrong", format="onnx", dtype=dtype)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ("w0.5", "every layer has fewer than 4 heads, .* holds as it is: h4,4,4,4-n20,20,20,20$"),
        ("h4,1,0,2-n7,40,0,1", "2 of 3 layers have fewer than 4 heads.* it is: h4,4,0,4-n40,40,0,40$"),
        ("h4,4,4,4-n30,7,40,1", r"different numbers of neurons \(1 to 40\).* is: h4,4,4,4-n40,40,40,40$"),
    ],
)
def test_hf_says_what_holds_it_and_what_it_holds(tmp_path: Path, subnet: str, message: str) -> None:
    model = tiny_model("bert")
    with pytest.raises(ValueError, match=message) as caught:
        export_subnet(model, None, subnet, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    nearest = str(caught.value).rpartition(": ")[2]
    assert export_subnet(model, None, nearest, tmp_path / "out").padded is None


def test_a_network_that_is_already_narrow(tmp_path: Path) -> None:
    small = tiny_model("bert").extract("w0.5")
    with pytest.raises(ValueError, match=r"no faster than the full width\)$"):  # hf holds nothing near it
        export_subnet(small, None, None, tmp_path / "out")
    assert export_subnet(small, None, None, tmp_path / "out", pad=True).padded is not None


def test_a_head_size_that_no_plain_class_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "opened_remote", opened_here)
    model = ElasticBertForSequenceClassification(
        type(tiny_model().config)(**{**TINY, "head_dim": 5, "num_attention_heads": 4})
    ).eval()
    with pytest.raises(ValueError, match="no plain bert has heads of 5 at a hidden size of 24"):
        export_subnet(model, None, None, tmp_path / "hf", pad=True)
    for form in ("hf-remote", "onnx", "elastic"):
        assert export_subnet(model, None, "w0.5", tmp_path / form, format=form).parity.max_difference <= 1e-4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": "pt"}, ValueError, "format is 'pt'; allowed: hf, hf-remote, onnx, elastic"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'; allowed: float32, bfloat16, float16"),
        ({"dtype": torch.float64}, ValueError, "dtype is torch.float64; allowed"),
        ({"format": "onnx", "pad": True}, ValueError, "pad belongs to the format hf"),
        ({"subnet": "w0.3"}, ValueError, "width_mult 0.3 is 1.2 of 4 heads"),
        ({"subnet": "half"}, ValueError, "unknown sub-network 'half'"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "must be an ElasticBertForSequenceClassification; got Linear"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    values: dict[str, Any] = {"model": tiny_model(), "tokenizer": None, "subnet": None, "output_dir": tmp_path / "out"}
    with pytest.raises(error, match=message):
        export_subnet(**(values | changes))
    assert list(tmp_path.iterdir()) == []


def test_packed_and_int8_models_are_refused(tmp_path: Path) -> None:
    for model in (tiny_model().quantise_weights(), tiny_model().pack_weights()):
        if model.has_packed_weights:  # packing needs AVX2
            with pytest.raises(ValueError, match="packed or in int8, for inference only; open the checkpoint anew"):
                export_subnet(model, None, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_finite(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.classifier.out_proj.bias[0] = float("nan")
    with pytest.raises(ValueError, match="the source's own logits are not finite"):
        export_subnet(model, None, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxruntime, .* pip install 'dynabert-kernels\[onnx\]'"):
        export_subnet(tiny_model(), None, None, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_snippet_of_a_remote_export_asks_nothing() -> None:
    """The tokenizer is looked up by the model's type: without trust transformers alone would ask at the terminal."""
    text = snippet("hf-remote", Path("small"), True)
    assert text.count("trust_remote_code=True") == text.count("from_pretrained(") == 2
    assert "trust_remote_code" not in snippet("hf", Path("small"), True)
