"""Networks that are saved into folders, and loaded from there or from the Hugging Face Hub."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dro_temp.predictors.checkpoint_folder import read_checkpoint, write_checkpoint
from dro_temp.predictors.encoders import TempNetEncoder
from dro_temp.predictors.hub import folder_of, upload

_Network = TypeVar("_Network", bound="Pretrained")


class Pretrained(nn.Module, ABC):
    """A network that can be saved, and built again from what it says of itself.

    Needs safetensors, and huggingface_hub for the Hub: `pip install 'dro-temp[llm]'`.
    """

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What it was built with, as JSON knows it."""

    @classmethod
    @abstractmethod
    def of_config(
        cls: type[_Network], config: Mapping[str, Any], encoders: Iterable[type[TempNetEncoder]] = ()
    ) -> _Network:
        """A network of this `config`, with fresh weights.

        Args:
            config: what `config` said.
            encoders: classes of encoders of your own that it may name.
        """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights; a kill leaves the earlier checkpoint or this one, nothing between.

        Args:
            folder: made if need be; other files in it are left alone.

        Raises:
            FileExistsError: the folder holds the `config.json` of something else, a language model, say.
            ImportError: safetensors is missing.
        """
        write_checkpoint(Path(folder), {"class": type(self).__name__, **self.config}, self.state_dict())

    @classmethod
    def from_pretrained(
        cls: type[_Network],
        source: str | Path,
        *,
        encoders: Iterable[type[TempNetEncoder]] = (),
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> _Network:
        """The network that was saved, in evaluation mode, on the processor, in the precision of its weights.

        Args:
            source: a folder, or "owner/name" on the Hugging Face Hub.
            encoders: classes of encoders of your own, if it was built with one.
            revision: branch, tag or commit on the Hub.
            token: for private repositories.
            cache_dir: where copies from the Hub are kept.

        Raises:
            FileNotFoundError: no such folder, or a file of the checkpoint is missing.
            OSError: the Hub has no such repository, or cannot be reached.
            ValueError: a damaged checkpoint, one of another class, or weights of another shape.
            ImportError: safetensors or huggingface_hub is missing.
        """
        folder = folder_of(source, revision=revision, token=token, cache_dir=cache_dir)
        config, tensors = read_checkpoint(folder)
        if config.get("class") != cls.__name__:
            raise ValueError(
                f"expected a checkpoint of {cls.__name__}, received one of {config.get('class')!r}: {folder}. "
                "Load it with that class."
            )
        try:
            with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten: leave no trace
                network = cls.of_config(config, encoders)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"expected a config.json that describes a {cls.__name__}, received {folder / 'config.json'}, which "
                f"cannot be built ({type(error).__name__}: {error}). Save it again with save_pretrained."
            ) from error
        _check_shapes(network.state_dict(), tensors, folder)
        network.load_state_dict(tensors, assign=True)  # keeps the precision that was saved
        return network.eval()

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload of a TempNet",
    ) -> str:
        """Upload to the Hugging Face Hub, in one commit; the repository is made if need be.

        Args:
            name: "owner/name", or "name" under your own account.
            private: whether a repository that is made is private; None: as your account says.
            token: yours; the one of `hf auth login` if None.
            message: of the commit.

        Returns:
            The repository's address.

        Raises:
            ImportError: safetensors or huggingface_hub is missing.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), name, private=private, token=token, message=message)


def _check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    wanted = {name: list(x.shape) for name, x in expected.items()}
    given = {name: list(x.shape) for name, x in found.items()}
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    if names:
        raise ValueError(
            "expected weights that belong to config.json, "
            + ", ".join(f"{name} {wanted.get(name, 'absent')}" for name in names)
            + ", received "
            + ", ".join(f"{name} {given.get(name, 'absent')}" for name in names)
            + f": {folder}. Undo changes to config.json, or save the network again with save_pretrained."
        )
