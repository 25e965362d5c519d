"""A tiny random BERT, its tokenizer and some labelled texts, so that every example runs in seconds (`--tiny`).

Its answers mean nothing. It has the layout of a real checkpoint: the folder opens in transformers.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

GOOD = ("good", "fine", "bright", "warm", "clever", "lovely")
BAD = ("bad", "dull", "slow", "cold", "loud", "clumsy")
OTHER = ("the", "film", "was", "and", "its", "plot", "seemed", "a", "bit", "but", "very", "music", "felt", "often")
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 4 to 16 words with their label: ``good`` where more good words than bad ones are in them."""
    chance = random.Random(seed)
    found = []
    while len(found) < count:
        words = chance.choices(GOOD + BAD + OTHER, k=chance.randint(4, 16))
        balance = sum(word in GOOD for word in words) - sum(word in BAD for word in words)
        if balance:
            found.append((" ".join(words), "good" if balance > 0 else "bad"))
    return found


def write_csv(path: Path, count: int, seed: int = 0) -> Path:
    """A .csv file with the columns ``text`` and ``label``."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("text", "label"))
        rows.writerows(texts(count, seed))
    return path


def tiny_checkpoint(folder: Path, *, layers: int = 4, heads: int = 4, hidden_size: int = 32) -> Path:
    """A folder with a random network of two classes and a tokenizer of whole words."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + GOOD + BAD + OTHER)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **named)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,  # a few steps do not need it
        attention_probs_dropout_prob=0.0,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)  # at 0.02 so small a network would learn nothing in a few steps
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
