"""Uploading a network to the hub: what is saved, the tokenizer, and the card, as one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token

from dynabert.model_card import model_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.modeling.base import ElasticBertPreTrainedModel

CARD = "README.md"


def push_folder(
    model: ElasticBertPreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    card: str | None,
    tags: Sequence[str] | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    max_shard_size: int | str,
    commit: Mapping[str, Any],
) -> CommitInfo:
    """Arguments and errors: :meth:`ElasticBertPreTrainedModel.push_to_hub`. ``commit``: message, description, PR."""
    if not isinstance(token, str):
        token = None if token is False else get_token()
    if not token:
        raise ValueError(
            f"push_to_hub: no token for uploading to {repo_id}; run `hf auth login`, set HF_TOKEN, or give token="
        )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        text = _card(model, repo_id, card, tags, api, revision)
        if text is not None:
            (folder / CARD).write_text(text, encoding="utf-8")
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **commit)


def _card(
    model: ElasticBertPreTrainedModel,
    repo_id: str,
    card: str | None,
    tags: Sequence[str] | None,
    api: HfApi,
    revision: str | None,
) -> str | None:
    """The text to upload; None where the repository's own card stays as it is."""
    if card is None and api.file_exists(repo_id, CARD, revision=revision):
        if not tags:
            return None
        card = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    elif card is None:
        card = model_card(model, repo_id=repo_id)
    if not tags:
        return card
    tagged = ModelCard(card, ignore_metadata_errors=True)
    tagged.data["tags"] = list(dict.fromkeys((*(tagged.data.get("tags") or ()), *tags)))
    return str(tagged)
