"""A tiny elastic network, a tokenizer over a small word list, and a folder with both, for what reads text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dynabert import (
    ElasticBertConfig,
    ElasticBertForSentenceEmbedding,
    ElasticBertForSequenceClassification,
    Pooling,
)
from tests.dynabert.tiny_networks import CONFIGS, TINY, VOCABULARY

WORDS = (  # noqa: SIM905  (one word a line would be a page)
    "a the film story actor plot music ending scene joke good bad great poor fine dull bright slow fast warm cold loud "
    "quiet is was not very too never always and but or it he she they we this that with without for of in on at to "
    "from makes feels"
).split()
SPECIAL = {"bert": ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "roberta": ("<s>", "<pad>", "</s>", "<unk>")}
SPECIAL["mpnet"] = SPECIAL["roberta"]


def tiny_tokenizer(architecture: str = "bert") -> PreTrainedTokenizerFast:
    """Splits on white space; one id a word; pairs get token types 0 and 1 for BERT."""
    special = SPECIAL[architecture]
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    assert len(vocabulary) <= VOCABULARY
    unknown = special[3]
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, end, pad = (
        (special[1], special[2], special[0]) if architecture == "bert" else (special[0], special[2], special[1])
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    # Published models carry such state (a sentence encoder's pads everything to 128): it must not matter.
    backend.enable_padding(length=16, pad_id=vocabulary[pad], pad_token=pad)
    backend.enable_truncation(5)
    names = (
        ["input_ids", "token_type_ids", "attention_mask"] if architecture == "bert" else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        pad_token=pad,
        cls_token=begin,
        sep_token=end,
        model_input_names=names,
    )


def tiny_model(architecture: str = "bert", seed: int = 0, **changes: Any) -> ElasticBertForSequenceClassification:
    """A random network whose answers differ clearly from text to text and from width to width."""
    torch.manual_seed(seed)
    config = ElasticBertConfig.from_plain(CONFIGS[architecture](**(TINY | changes)))
    model = ElasticBertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def tiny_folder(path: Path, architecture: str = "bert", **changes: Any) -> Path:
    """A checkpoint folder with model and tokenizer."""
    tiny_model(architecture, **changes).save_pretrained(path)
    tiny_tokenizer(architecture).save_pretrained(path)
    return path


def tiny_embedder(
    architecture: str = "bert", pooling: Pooling | None = None, **changes: Any
) -> ElasticBertForSentenceEmbedding:
    """The encoder of `tiny_model`'s kind, with weights that matter, and a pooling."""
    torch.manual_seed(0)
    config = ElasticBertConfig.from_plain(CONFIGS[architecture](**(TINY | changes)))
    model = ElasticBertForSentenceEmbedding(config, pooling)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def tiny_embedder_folder(
    path: Path, architecture: str = "bert", pooling: Pooling | None = None, **changes: Any
) -> Path:
    """A folder of sentence-transformers with model and tokenizer."""
    tiny_embedder(architecture, pooling, **changes).save_pretrained(path)
    tiny_tokenizer(architecture).save_pretrained(path)
    return path


def some_texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Random texts of 1 to ``longest`` words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(count)]
