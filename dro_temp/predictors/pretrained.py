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
from dro_temp.predictors.model_card import write_card

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
    def from_config(
        cls: type[_Network], config: Mapping[str, Any], encoders: Iterable[type[TempNetEncoder]] = ()
    ) -> _Network:
        """A network of this `config`, with fresh weights.

        Args:
            config: what `config` said.
            encoders: classes of encoders of your own that it may name.
        """

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights; a kill leaves the earlier checkpoint or this one, nothing between.

        A model card goes beside them, `README.md`: what it was made for, bounds, radius, how to load it, whom to cite.

        Args:
            folder: made if need be; other files in it are left alone, and so is a `README.md` that was not written
                here, or was edited since.

        Raises:
            FileExistsError: the folder holds the `config.json` of something else, a language model, say.
            ImportError: safetensors is missing.
        """
        import dro_temp

        config = {"class": type(self).__name__, **self.config}
        write_checkpoint(Path(folder), config, self.state_dict())
        parameters = sum(p.numel() for p in self.parameters())
        write_card(Path(folder), config, parameters=parameters, version=dro_temp.__version__)

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
        encoders = tuple(encoders)
        try:
            _refuse_more_parts(config, len(tensors))
            # What a file of unknown origin says is compared with its weights before anything of that size is made.
            _check_shapes(cls._outline(config, encoders), tensors, folder)
            with torch.random.fork_rng(devices=[]):  # the fresh weights are overwritten: leave no trace
                network = cls.from_config(config, encoders)
            _check_shapes(network.state_dict(), tensors, folder)
        except _UNBUILDABLE as error:
            raise ValueError(
                f"expected a config.json that describes a {cls.__name__}, received {folder / 'config.json'}, which "
                f"cannot be built ({type(error).__name__}: {error}). Save it again with save_pretrained."
            ) from error
        network.load_state_dict(tensors, assign=True)  # keeps the precision that was saved
        return network.eval()

    @classmethod
    def _outline(
        cls, config: Mapping[str, Any], encoders: tuple[type[TempNetEncoder], ...]
    ) -> Mapping[str, Tensor] | None:
        """Names and shapes of a network of this config, without its memory; None if they cannot be told like that."""
        try:
            with torch.device("meta"):
                return cls.from_config(config, encoders).state_dict()
        except RuntimeError:
            if not encoders:  # those of others may compute something when they are made
                raise
            return None

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload of a TempNet",
    ) -> str:
        """Upload to the Hugging Face Hub, in one commit, with a model card; the repository is made if need be.

        A card of the repository that was edited there stays as it is.

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


#: What building a network from a file of unknown origin may raise, beside errors that say what they expect.
_UNBUILDABLE = (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError, MemoryError)
_DEEPEST = 32


def _refuse_more_parts(config: Mapping[str, Any], tensors: int) -> None:
    """Raise where a configuration is nested deeper, or names more parts, than the weights beside it can belong to.

    Raises:
        TypeError: it does.
    """
    level: list[Any] = [config]
    parts = 0
    for _ in range(_DEEPEST):
        inside = [x for holder in level for x in (holder.values() if isinstance(holder, dict) else holder)]
        level = [x for x in inside if isinstance(x, dict | list)]
        parts += sum(isinstance(x, dict) and "class" in x for x in level)
        if not level:
            break
    # Each has a weight, but for one that only adds up others.
    if level or parts > 2 * tensors + 2:
        raise TypeError(f"it is nested too deep, or names {parts} parts for {tensors} tensors")


def _check_shapes(expected: Mapping[str, Tensor] | None, found: Mapping[str, Tensor], folder: Path) -> None:
    if expected is None:
        return
    wanted = {name: _kind(x) for name, x in expected.items()}
    given = {name: _kind(x) for name, x in found.items()}
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    if names:
        raise ValueError(
            "expected weights that belong to config.json, "
            + ", ".join(f"{name} {wanted.get(name, 'absent')}" for name in names)
            + ", received "
            + ", ".join(f"{name} {given.get(name, 'absent')}" for name in names)
            + f": {folder}. Undo changes to config.json, or save the network again with save_pretrained."
        )


def _kind(x: Tensor) -> str:
    """Its shape, and whether its numbers are of the kind that a network computes with."""
    return f"{list(x.shape)}" if x.is_floating_point() else f"{list(x.shape)} of {x.dtype}"
