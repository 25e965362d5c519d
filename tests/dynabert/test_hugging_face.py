"""Elastic networks where transformers' own tools hold them: Auto classes, arguments, pipelines, the hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    pipeline,
)
from transformers.pipelines import TextClassificationPipeline

from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification, ElasticBertModel
from dynabert.cost import subnet_cost
from dynabert.modeling.checkpoint import AUTO_CODE, AUTO_FILE
from tests.dynabert.test_checkpoints import run_elsewhere
from tests.dynabert.tiny_texts import WORDS, some_texts, tiny_folder, tiny_model, tiny_tokenizer

SUBNET = "w0.5-d0.75"
TEXTS = some_texts(5, longest=3)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An elastic network that transformers' own class can hold."""
    return tiny_folder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def narrow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that it cannot hold."""
    folder = tmp_path_factory.mktemp("narrow")
    tiny_model(num_labels=2).extract("w0.5").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def probabilities(model: Any, texts: list[str], subnet: str | None = None) -> torch.Tensor:
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt"), subnet=subnet).logits[0] for text in texts]
    return torch.stack(rows).softmax(dim=-1)


# Auto classes ---------------------------------------------------------------------------------------------------------


def test_auto_classes_of_both_forms(plain_folder: Path, narrow_folder: Path) -> None:
    """What a plain class can hold stays plain, whole and without sub-networks; the rest is ours."""
    for name, auto in (("", AutoModel), ("ForSequenceClassification", AutoModelForSequenceClassification)):
        for trusted in (None, True):
            model = auto.from_pretrained(plain_folder, trust_remote_code=trusted)
            assert type(model) is {"": BertModel}.get(name, BertForSequenceClassification)
            model = auto.from_pretrained(narrow_folder, trust_remote_code=trusted)
            assert type(model).__name__ == f"ElasticBert{name or 'Model'}"
            assert type(auto.from_config(model.config)) is type(model)
    assert type(AutoConfig.from_pretrained(plain_folder)).__name__ == "BertConfig"
    assert isinstance(AutoConfig.from_pretrained(narrow_folder), ElasticBertConfig)
    assert ElasticBertForSequenceClassification.from_pretrained(plain_folder).shape(SUBNET).kept_layers == (0, 1, 3)


def test_where_dynabert_was_never_imported(narrow_folder: Path, plain_folder: Path, tmp_path: Path) -> None:
    """All Auto classes, the tokenizer and the pipeline, by `auto_map`; the sub-network goes along."""
    model = ElasticBertForSequenceClassification.from_pretrained(narrow_folder)
    names, whole, half, plain = run_elsewhere(
        "import json, sys\n"
        "from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline\n"
        f"narrow, plain = {str(narrow_folder)!r}, {str(plain_folder)!r}\n"
        "first = pipeline('text-classification', plain)('good film')\n"
        "assert 'dynabert' not in sys.modules\n"
        "config = AutoConfig.from_pretrained(narrow, trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(narrow, trust_remote_code=True)\n"
        "model = AutoModel.from_pretrained(narrow, trust_remote_code=True)\n"
        "names = [type(config).__name__, type(tokenizer).__name__, type(model).__name__]\n"
        "found = pipeline('text-classification', narrow, trust_remote_code=True)\n"
        "whole, half = found(['good film'], top_k=None), found(['good film'], top_k=None, subnet='w0.5')\n"
        "print(json.dumps([names, whole, half, first]))\n",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert names[0] == "ElasticBertConfig"
    assert names[2] == "ElasticBertModel"
    for found, subnet in ((whole, None), (half, "w0.5")):
        scores = {row["label"]: row["score"] for row in found[0]}
        wanted = probabilities(model, ["good film"], subnet)[0]
        assert [scores[label] for label in model.config.id2label.values()] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert whole != half
    assert plain[0]["label"].startswith("LABEL_")


def test_without_the_package_its_name_is_told(narrow_folder: Path, tmp_path: Path) -> None:
    """Not `pip install dynabert`, which is what transformers makes of an import it cannot find."""
    (told,) = run_elsewhere(
        "import json, sys\n"
        "from transformers import AutoModel\n"
        "sys.modules['dynabert'] = None\n"
        "try:\n"
        f"    AutoModel.from_pretrained({str(narrow_folder)!r}, trust_remote_code=True)\n"
        "except ImportError as error:\n"
        "    print(json.dumps([str(error)]))\n",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert "install dynabert-kernels" in told
    assert "pip install dynabert`" not in told
    assert compile(AUTO_CODE, AUTO_FILE, "exec")


def test_a_tokenizer_of_transformers_beside_an_elastic_network(tmp_path: Path) -> None:
    tiny_model(num_labels=2).extract("w0.5").save_pretrained(tmp_path)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("good film")["input_ids"] == [2, vocabulary["good"], vocabulary["film"], 3]
    assert len(pipeline("text-classification", str(tmp_path))(TEXTS)) == len(TEXTS)


# Arguments of from_pretrained -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16", "torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"device_map": "auto"}, torch.float32),
        ({"device_map": "cpu"}, torch.float32),
        ({"device_map": {"": "cpu"}}, torch.float32),
        ({"device_map": torch.device("cpu")}, torch.float32),
        ({"attn_implementation": "eager", "low_cpu_mem_usage": True}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
    ],
)
def test_what_transformers_calls_them(narrow_folder: Path, given: dict[str, Any], dtype: torch.dtype) -> None:
    for opened in (ElasticBertForSequenceClassification, AutoModelForSequenceClassification):
        model = opened.from_pretrained(narrow_folder, **given)
        assert isinstance(model, ElasticBertForSequenceClassification)
        assert model.dtype == dtype
        if not torch.accelerator.is_available():
            assert model.device.type == "cpu"


@pytest.mark.parametrize(
    ("given", "error", "wrong"),
    [
        ({"attn_implementation": "sdpa"}, ValueError, "attn_implementation is 'sdpa'; allowed: None or 'eager'"),
        ({"attn_implementation": "flash_attention_2"}, ValueError, "this package's own kernels: leave it out"),
        ({"device_map": {"encoder": "cpu", "classifier": "cuda:0"}}, ValueError, "device_map names cpu, cuda:0; allo"),
        ({"device_map": {}}, ValueError, "device_map names no device"),
        ({"device_map": "everywhere"}, ValueError, "device_map is 'everywhere'; allowed: 'auto', one device"),
        ({"device_map": "cpu", "device": "cpu"}, TypeError, "device is cpu and device_map 'cpu'; give one"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, TypeError, "dtype is .*float16 and torch_dtype.*give dtype"),
    ],
)
def test_what_cannot_be_taken(narrow_folder: Path, given: dict[str, Any], error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match=wrong):
        ElasticBertForSequenceClassification.from_pretrained(narrow_folder, **given)
    if set(given) == {"attn_implementation"}:
        with pytest.raises(error, match=wrong):
            AutoModelForSequenceClassification.from_pretrained(narrow_folder, **given)
        with pytest.raises(error, match="set_attn_implementation: attn_implementation is"):
            tiny_model().set_attn_implementation(given["attn_implementation"])


def test_the_configuration_of_a_plain_model_says_nothing_of_attention(plain_folder: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(plain_folder, attn_implementation="sdpa")
    ElasticBertForSequenceClassification.from_pretrained(plain_folder, config=plain.config)
    tiny_model().set_attn_implementation("eager")


def test_parameters_are_what_the_cost_says(architecture: str) -> None:
    model = tiny_model(architecture)
    assert model.num_parameters() == subnet_cost(model.config, seq_length=8).parameters
    model.elastic_encoder.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == sum(p.numel() for p in model.classifier.parameters())
    assert model.get_memory_footprint(return_buffers=False) == 4 * model.num_parameters()


def test_more_and_fewer_words(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    words = model.config.vocab_size
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    model.resize_token_embeddings(words + 3)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
    assert torch.isfinite(model(input_ids=torch.tensor([[5, words + 2]]), subnet="w0.5").logits).all()
    model.save_pretrained(tmp_path)
    again = ElasticBertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.vocab_size == words + 3
    assert torch.equal(
        again(input_ids=torch.tensor([[words + 1, 6]])).logits, model(input_ids=torch.tensor([[words + 1, 6]])).logits
    )
    again.resize_token_embeddings(40)
    assert again.extract("w0.5").config.vocab_size == 40
    with pytest.raises(ValueError, match="input_ids"):
        again(input_ids=torch.tensor([[40]]))


# Pipelines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnet", [None, SUBNET])
def test_pipeline(subnet: str | None) -> None:
    model = tiny_model()
    classify = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer())
    wanted = probabilities(model, TEXTS, subnet)
    asked = {} if subnet is None else {"subnet": subnet}
    for batch_size in (1, 4):
        found = classify(TEXTS, batch_size=batch_size, top_k=None, **asked)
        for rows, scores in zip(found, wanted, strict=True):
            own = {row["label"]: row["score"] for row in rows}
            assert [own[label] for label in model.config.id2label.values()] == pytest.approx(scores.tolist(), abs=1e-5)
    one = classify(TEXTS[0], **asked)
    assert one == [{"label": model.config.id2label[int(wanted[0].argmax())], "score": one[0]["score"]}]
    assert one[0]["score"] == pytest.approx(float(wanted[0].max()), abs=1e-5)
    assert classify({"text": TEXTS[0], "text_pair": TEXTS[1]}, **asked)["score"] > 0.0


def test_pipeline_of_one_subnetwork_and_of_several_calls() -> None:
    """Given where it is made it holds for the calls that name none; no call leaves anything behind."""
    model = tiny_model()
    fixed = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer(), subnet=SUBNET)
    free = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer())
    assert fixed(TEXTS) == free(TEXTS, subnet=SUBNET)
    assert fixed(TEXTS, subnet="w0.25") == free(TEXTS, subnet="w0.25")
    assert fixed(TEXTS) != free(TEXTS)
    assert [row["score"] for row in free(TEXTS)] == pytest.approx(
        probabilities(model, TEXTS).max(dim=1).values.tolist(), abs=1e-5
    )


def test_pipeline_of_several_labels() -> None:
    model = tiny_model(problem_type="multi_label_classification")
    classify = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        logits = model(**tiny_tokenizer()(TEXTS[0], return_tensors="pt"), subnet="d0.5").logits[0]
    for function, wanted in ((None, logits.sigmoid()), ("softmax", logits.softmax(0)), ("none", logits)):
        rows = classify(TEXTS[0], top_k=None, function_to_apply=function, subnet="d0.5")
        own = {row["label"]: row["score"] for row in rows}
        assert [own[name] for name in model.config.id2label.values()] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert len(classify(TEXTS[0], top_k=2, subnet="d0.5")) == 2


def test_pipeline_refusals(plain_folder: Path) -> None:
    classify = pipeline("text-classification", model=tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match=r"width_mult 0.3 is 1.2 of 4 heads"):
        classify(TEXTS, subnet="w0.3")
    with pytest.raises(TypeError, match="subnet is a list; give one sub-network"):
        classify(TEXTS, subnet=["w0.5"] * len(TEXTS))
    plain = pipeline("text-classification", str(plain_folder))
    assert isinstance(plain, TextClassificationPipeline)
    assert type(plain.model) is BertForSequenceClassification
    assert plain(TEXTS, max_length=8, truncation=True)
    with pytest.raises(
        ValueError, match=r"BertForSequenceClassification has no sub-networks; open the checkpoint with"
    ):
        plain(TEXTS, subnet=SUBNET)


# The hub --------------------------------------------------------------------------------------------------------------


class Hub:
    """What a hub would have been asked, and the files it would hold."""

    def __init__(self, card: str | None = None) -> None:
        self.card, self.calls, self.files = card, {}, {}
        self.tokens: set[Any] = set()

    def install(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        def note(name: str, answer: Any) -> Any:
            def call(api: HfApi, repo_id: str, *args: Any, **kwargs: Any) -> Any:
                self.tokens.add(api.token)
                self.calls[name] = {"repo_id": repo_id, "args": args, **kwargs}
                return answer(repo_id, *args, **kwargs)

            return call

        def upload(repo_id: str, folder_path: Path, **_: Any) -> str:
            self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return "commit"

        def download(*_: Any, **__: Any) -> str:
            (folder / "card").write_text(str(self.card), encoding="utf-8")
            return str(folder / "card")

        answers = {
            "create_repo": lambda repo_id, **_: SimpleNamespace(
                repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id
            ),
            "create_branch": lambda *_, **__: None,
            "file_exists": lambda *_, **__: self.card is not None,
            "hf_hub_download": download,
            "upload_folder": upload,
        }
        for name, answer in answers.items():
            patch.setattr(HfApi, name, note(name, answer))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    found = Hub()
    found.install(monkeypatch, tmp_path)
    return found


def test_push_to_hub(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_model("mpnet").extract("w0.5")
    answer = model.push_to_hub(
        "small",
        tokenizer=tiny_tokenizer("mpnet"),
        private=True,
        token="secret",
        revision="trial",
        commit_message="Half",
        create_pr=True,
        tags=["mine"],
        max_shard_size="20KB",
    )
    assert answer == "commit"
    assert hub.tokens == {"secret"}
    assert hub.calls["create_repo"]["private"] is True
    assert hub.calls["create_branch"]["branch"] == "trial"
    sent = hub.calls["upload_folder"]
    assert (sent["repo_id"], sent["revision"], sent["commit_message"]) == ("me/small", "trial", "Half")
    assert sent["create_pr"] is True
    assert not Path(sent["folder_path"]).exists()
    assert {"config.json", "elastic_bert.py", "tokenizer.json", "README.md"} <= set(hub.files)
    assert "model.safetensors.index.json" in hub.files
    card = hub.files["README.md"].decode()
    assert "- mine" in card
    assert 'from_pretrained("me/small"' in card
    assert str(tmp_path) not in card
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    again = ElasticBertForSequenceClassification.from_pretrained(tmp_path)
    text = tiny_tokenizer("mpnet")("good film", return_tensors="pt")
    assert torch.equal(again(**text).logits, model(**text).logits)


def test_the_card_that_is_uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one given; else the repository's own, untouched or with tags; else a fresh one."""
    model = tiny_model()
    mine = "---\ntags:\n- old\n---\n# Mine\n"
    for card, tags, wanted in (
        (None, None, None),
        (None, ["new"], ("# Mine", "- old", "- new")),
        ("# X", None, ("# X",)),
    ):
        hub = Hub(mine)
        hub.install(monkeypatch, tmp_path)
        model.push_to_hub("me/repo", token="secret", card=card, tags=tags)
        assert ("README.md" in hub.files) == (wanted is not None)
        assert all(line in hub.files["README.md"].decode() for line in wanted or ())
        assert "elastic_bert.py" not in hub.files


def test_push_to_hub_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynabert.modeling.hub.get_token", lambda: None)
    for token in (None, True, False):
        with pytest.raises(ValueError, match="no token for uploading to me/x; run `hf auth login`, set HF_TOKEN"):
            tiny_model().push_to_hub("me/x", token=token)
    assert not hub.calls
    monkeypatch.setattr("dynabert.modeling.hub.get_token", lambda: "kept")
    tiny_model().push_to_hub("me/x")
    assert hub.tokens == {"kept"}


def test_saving_and_uploading_in_one(hub: Hub, tmp_path: Path) -> None:
    model = ElasticBertModel(tiny_model().config)
    model.save_pretrained(tmp_path / "net", push_to_hub=True, token="secret", private=False)
    assert (tmp_path / "net" / "model.safetensors").is_file()
    assert hub.calls["create_repo"]["repo_id"] == "net"
    assert json.loads(hub.files["config.json"])["architectures"] == ["BertModel"]
    with pytest.raises(TypeError, match="unknown arguments: colour"):
        model.save_pretrained(tmp_path / "net", colour="red")
    with pytest.raises(ValueError, match="weights are written as safetensors only"):
        model.save_pretrained(tmp_path / "net", safe_serialization=False)


def test_a_readme_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tiny_model().extract("w0.5").save_pretrained(tmp_path, safe_serialization=True)
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
