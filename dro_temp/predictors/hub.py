"""The Hugging Face Hub: where folders may come from and go to."""

import os
import re
from pathlib import Path
from typing import Any

from dro_temp._optional import optional_module
from dro_temp.predictors.checkpoint_folder import PATTERNS
from dro_temp.predictors.model_card import CARD, is_untouched

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # "name" or "owner/name"


def folder_of(source: str | Path, **options: Any) -> Path:
    """The folder itself, or a local copy of the repository of that name.

    Args:
        source: a folder, or "owner/name".
        **options: revision, token and cache_dir of `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: neither.
        OSError: the Hub has no such repository, or cannot be reached.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"expected a folder or a name on the Hub, received {type(source).__name__} ({source!r}). Pass a path, or "
            '"owner/name".'
        )
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or _REPOSITORY.fullmatch(source) is None:
        raise FileNotFoundError(
            f"expected a folder that save_pretrained wrote, or 'owner/name' on the Hugging Face Hub, received "
            f"{str(source)!r}, which is neither. Check the path; it is relative to {Path.cwd()}."
        )
    hub = optional_module("huggingface_hub", "for saving and loading")
    try:
        return Path(hub.snapshot_download(source, allow_patterns=list(PATTERNS), **options))
    except Exception as error:  # of the Hub, of the connection, of the disk: one answer
        raise OSError(
            f"expected a folder or a repository on the Hugging Face Hub, received {source!r}: no such folder in "
            f"{Path.cwd()}, and the Hub gave none ({type(error).__name__}: {error}). Check the name, the connection, "
            "and token=... for a private one."
        ) from error


def upload(folder: Path, name: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Put a checkpoint into a repository, in one commit, in place of the one that is there.

    Args:
        folder: of the checkpoint; loses its card where the repository has one that is not ours.
        name: "owner/name", or "name" under one's own account.
        private: whether a repository that is made is private.
        token: for the Hub.
        message: of the commit.

    Returns:
        Where it is.
    """
    hub = optional_module("huggingface_hub", "for saving and loading")
    api = hub.HfApi(token=token)
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    if api.file_exists(repository, CARD) and not is_untouched(Path(api.hf_hub_download(repository, CARD))):
        (folder / CARD).unlink(missing_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=message,
        allow_patterns=list(PATTERNS),
        delete_patterns=[PATTERNS[1]],  # of earlier checkpoints; what is uploaded stays
    )
    return f"https://huggingface.co/{repository}"
