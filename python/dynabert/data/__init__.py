"""Texts, labels, token ids and scores: everything between a file and a packed batch."""

from __future__ import annotations

from dynabert.data.augmentation import augment, default_copies
from dynabert.data.batching import token_batches
from dynabert.data.cache import default_cache_dir, tokenise_once
from dynabert.data.candidate_words import CandidateWords, NeighbourWords, Slot
from dynabert.data.drugreview import read_drugreview
from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Examples
from dynabert.data.glue import TASKS, load_task, task_metric, task_names
from dynabert.data.labels import align_labels, model_labels, model_problem
from dynabert.data.masked_words import MaskedWords
from dynabert.data.metrics import METRICS, compute_metric, default_metrics, majority_score
from dynabert.data.rows import Row, RowReader
from dynabert.data.tables import find_columns, read_examples
from dynabert.data.tokenisation import Encoded, TextEncoder, tokenise

__all__ = [
    "METRICS",
    "MULTI_LABEL",
    "REGRESSION",
    "SINGLE_LABEL",
    "TASKS",
    "CandidateWords",
    "Encoded",
    "Examples",
    "MaskedWords",
    "NeighbourWords",
    "Row",
    "RowReader",
    "Slot",
    "TextEncoder",
    "align_labels",
    "augment",
    "compute_metric",
    "default_cache_dir",
    "default_copies",
    "default_metrics",
    "find_columns",
    "load_task",
    "majority_score",
    "model_labels",
    "model_problem",
    "read_drugreview",
    "read_examples",
    "task_metric",
    "task_names",
    "token_batches",
    "tokenise",
    "tokenise_once",
]
