"""Sentence embedders exported: what opens each format, how a vector is made there, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynabert import ElasticBertForSentenceEmbedding, EmbeddingEngine, Importance, Pooling, rewire
from dynabert.cli import main
from dynabert.export import export_subnet, parity
from tests.dynabert.exported import KINDS, elsewhere
from tests.dynabert.tiny_networks import close
from tests.dynabert.tiny_texts import some_texts, tiny_embedder, tiny_embedder_folder, tiny_model, tiny_tokenizer

POOLINGS = {
    "mean": Pooling(max_seq_length=20),
    "cls": Pooling("cls"),
    "as long as it is": Pooling(normalize=False),
}
PLAIN = "depth and neurons"


def rewired(architecture: str, pooling: Pooling | None = None) -> ElasticBertForSentenceEmbedding:
    """A tiny one whose heads and neurons stand elsewhere in every layer."""
    model = tiny_embedder(architecture, pooling)
    config = model.config
    scores = (torch.rand(config.num_hidden_layers, n) for n in (config.num_attention_heads, config.intermediate_size))
    return rewire(model, Importance(*scores))


def batch(architecture: str) -> dict[str, Tensor]:
    """Padded texts, one of them a single word."""
    reader = tiny_tokenizer(architecture)
    return dict(reader([*some_texts(5), "good"], padding=True, truncation=False, return_tensors="pt"))


def vectors(model: Any, inputs: dict[str, Tensor], subnet: str | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs, subnet=subnet).pooler_output
    return found


# By what the folder says alone, in plain PyTorch.
OPEN_PLAIN = """
import json
from pathlib import Path
import torch
from transformers import AutoModel, AutoTokenizer
folder = Path(sys.argv[1])
model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
assert all("pooler" in name for name in info["missing_keys"]) and not info["unexpected_keys"], info
batch = AutoTokenizer.from_pretrained(folder)(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
kinds = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
said = json.loads((folder / "1_Pooling" / "config.json").read_text())
with torch.no_grad():
    x = model.eval()(**batch).last_hidden_state
mask = batch["attention_mask"][..., None]
found = (x * mask).sum(1) / mask.sum(1) if said["pooling_mode_mean_tokens"] else x[:, 0]
if "Normalize" in kinds:
    found = found / found.norm(dim=1, keepdim=True)
print(json.dumps([type(model).__name__, found.tolist()]))
"""


@pytest.mark.parametrize(
    ("architecture", "name"), [("bert", "mean"), ("roberta", "as long as it is"), ("mpnet", "cls")]
)
def test_opens_where_this_project_is_not_installed(architecture: str, name: str, tmp_path: Path) -> None:
    model, subnet = rewired(architecture, POOLINGS[name]), KINDS[PLAIN][0]
    report = export_subnet(model, tiny_tokenizer(architecture), subnet, tmp_path / "out")
    assert report.answers == "vectors"
    assert report.parity.max_difference <= report.parity.bound < 1e-4
    assert "1_Pooling/config.json" in report.files
    assert {"modules.json", "tokenizer.json", "model.safetensors", "export_report.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert not (tmp_path / "out" / "elastic.safetensors").exists()
    texts = [*some_texts(5), "good"]
    kind, found = elsewhere(OPEN_PLAIN, tmp_path / "cache", str(tmp_path / "out"), json.dumps(texts))
    assert kind == {"bert": "BertModel", "roberta": "RobertaModel", "mpnet": "MPNetModel"}[architecture]
    wanted = vectors(model, batch(architecture), subnet)
    close(torch.tensor(found), wanted, 1e-5)
    assert EmbeddingEngine.from_pretrained(tmp_path / "out").model.pooling == model.pooling


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("form", ["onnx", "elastic"])
@pytest.mark.parametrize("kind", ["all unequal", "depth"])
def test_any_subnetwork_in_the_other_formats(
    architecture: str, form: str, kind: str, name: str, tmp_path: Path
) -> None:
    model, subnet = rewired(architecture, POOLINGS[name]), KINDS[kind][0]
    report = export_subnet(model, tiny_tokenizer(architecture), subnet, tmp_path / "out", format=form)
    assert report.parity.max_difference <= report.parity.bound
    assert "1_Pooling/config.json" in report.files
    inputs = batch(architecture)
    wanted = vectors(model, inputs, subnet)
    if form == "elastic":
        small = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path / "out")
        assert small.pooling == model.pooling
        close(vectors(small, inputs), wanted, 1e-5)
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["sentence_embedding"]
    assert session.get_outputs()[0].shape == ["batch", model.config.hidden_size]
    given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
    (found,) = session.run(None, given)
    close(torch.from_numpy(found), wanted, 1e-5)
    given["attention_mask"][0] = 0  # a row without a token
    assert bool(torch.isfinite(torch.from_numpy(session.run(None, given)[0])).all())


def test_padding_with_zeros(architecture: str, tmp_path: Path) -> None:
    model = rewired(architecture)
    report = export_subnet(model, None, "w0.5-d0.5", tmp_path / "out", pad=True)
    assert report.padded is not None
    small = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path / "out")
    close(vectors(small, batch(architecture)), vectors(model, batch(architecture), "w0.5-d0.5"), 1e-5)


@pytest.mark.parametrize("form", ["hf", "onnx", "elastic"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path: Path, form: str, dtype: str) -> None:
    report = export_subnet(rewired("bert"), tiny_tokenizer(), "d0.5", tmp_path / "out", format=form, dtype=dtype)
    assert report.parity.stored_max_difference is not None
    assert report.parity.stored_max_difference > report.parity.max_difference


@pytest.mark.parametrize("form", ["hf", "onnx", "elastic"])
def test_another_way_of_pooling_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """What is written says or does something else than the source."""
    extract = ElasticBertForSentenceEmbedding.extract

    def planted(self: ElasticBertForSentenceEmbedding, subnet: Any) -> ElasticBertForSentenceEmbedding:
        small = extract(self, subnet)
        small.pooling = Pooling("cls")
        return small

    monkeypatch.setattr(ElasticBertForSentenceEmbedding, "extract", planted)
    with pytest.raises(RuntimeError, match="answers otherwise than the source: vectors differ by"):
        export_subnet(tiny_embedder(), None, None, tmp_path / "out", format=form)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_says_nothing_of_pooling_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooling, "save", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"the export has no modules.json; nothing was exported"):
        export_subnet(tiny_embedder(), None, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    model = tiny_embedder()
    with pytest.raises(ValueError, match=r"format hf-remote is for classifiers, .*; allowed: hf, onnx, elastic"):
        export_subnet(model, None, None, tmp_path / "out", format="hf-remote")
    with pytest.raises(ValueError, match=r"every layer has fewer than 4 heads.*; formats that can: onnx, elastic; or"):
        export_subnet(model, None, "w0.5", tmp_path / "out")
    with pytest.raises(ValueError, match=r"formats that can: hf-remote, onnx, elastic; or"):
        export_subnet(tiny_model(), None, "w0.5", tmp_path / "out")
    with pytest.raises(TypeError, match=r"model must be an ElasticBertForSequenceClassification; got Linear"):
        export_subnet(torch.nn.Linear(2, 2), None, None, tmp_path / "out")  # type: ignore[arg-type]
    model.embeddings.norm.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the source's own vectors are not finite"):
        export_subnet(model, None, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_overwriting(tmp_path: Path) -> None:
    """The folders of sentence-transformers are a model's, unless something else lies in them."""
    out = tmp_path / "out"
    export_subnet(tiny_embedder(), tiny_tokenizer(), None, out, format="elastic")
    (out / "config_sentence_transformers.json").write_text("{}")
    export_subnet(tiny_embedder(pooling=Pooling(normalize=False)), None, "d0.5", out, format="elastic", overwrite=True)
    assert not (out / "2_Normalize").exists()
    assert not (out / "config_sentence_transformers.json").exists()
    (out / "1_Pooling" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds folders, which overwriting would lose: 1_Pooling"):
        export_subnet(tiny_embedder(), None, None, out, overwrite=True)
    assert (out / "1_Pooling" / "notes.txt").read_text() == "mine"


def test_inputs_of_the_comparison_tell_subnetworks_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is far below what another sub-network's vectors differ by."""
    model = tiny_embedder()
    report = export_subnet(model, None, "d0.75", tmp_path / "out", format="elastic")
    inputs = parity.probe(model, None).batches
    other = parity.difference(
        parity.answers(model, inputs, subnet="d0.75"), parity.answers(model, inputs, subnet="w0.75-d0.75")
    )
    assert other > 1000 * report.parity.bound


@pytest.mark.parametrize("form", ["hf", "onnx", "elastic"])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    folder, out = tiny_embedder_folder(tmp_path / "model"), tmp_path / "out"
    argv = ["export", "--model_name_or_path", str(folder), "--subnet", "d0.5", "--output_dir", str(out)]
    assert main([*argv, "--format", form]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "largest difference of a number of a vector" in told.out
    report = json.loads((out / "export_report.json").read_text())
    assert (report["answers"], report["tokenizer"], report["parity"]["texts"]) == ("vectors", True, 4)
    assert told.out.endswith(report["load"])
    if form == "hf":  # sentence-transformers need not be here
        assert f'SentenceTransformer("{out.as_posix()}")' in report["load"]
    else:
        namespace: dict[str, Any] = {}
        exec(report["load"], namespace)
        wanted = EmbeddingEngine.from_pretrained(folder).embed(["a text", "another, longer text"], "d0.5")
        close(torch.as_tensor(namespace["vectors"]), torch.as_tensor(wanted), 1e-5)
    assert main([*argv, "--overwrite", "--format", "hf-remote"]) == 1
    assert "is for classifiers, and the model is a sentence embedder" in capsys.readouterr().err
    if form != "onnx":
        code = main(["embed", "--model_name_or_path", str(out), "good film", "bad plot"])
        assert code == 0


@pytest.mark.parametrize("form", ["hf", "onnx", "elastic"])
def test_the_snippet_without_a_tokenizer(tmp_path: Path, form: str) -> None:
    report = export_subnet(tiny_embedder(), None, None, tmp_path / "out", format=form)
    exec(report.load, {})
