"""The folder that a run leaves, and what the other commands read of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dro_temp._files import whole_file
from dro_temp.cli.models import load_model
from dro_temp.cli.needs import needed
from dro_temp.predictors import TempNet


@dataclass(frozen=True)
class Run:
    """A run's folder: `config.yaml`, `tempnet/`, `model/` if the model was trained, `checkpoints/`.

    Args:
        folder: where.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The options, as `--config` takes them."""
        return self.folder / "config.yaml"

    @property
    def tempnet(self) -> Path:
        """The TempNet."""
        return self.folder / "tempnet"

    @property
    def model(self) -> Path:
        """The model, if it was trained as well."""
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from."""
        return self.folder / "checkpoints"

    def options(self) -> dict[str, Any]:
        """What the run was started with.

        Raises:
            ValueError: there is no run there.
        """
        if not self.config.exists():
            raise ValueError(
                f"expected the folder of a run in {str(self.folder)!r}, received one without config.yaml. Make one: "
                f"dro-temp lm fit {self.folder}"
            )
        found: dict[str, Any] = needed("yaml").safe_load(self.config.read_text())
        return found

    def record(self, options: dict[str, Any]) -> None:
        """Write the options down, all at once.

        Raises:
            ValueError: the folder holds a run with other options.
        """
        if self.config.exists():
            known = self.options()
            free = ("output", "steps", "save_every")  # the same run, elsewhere or for longer
            other = sorted(key for key in options if known.get(key) != options[key] and key not in free)
            if other:
                raise ValueError(
                    f"expected the options that {str(self.folder)!r} was started with, received other "
                    f"{', '.join(f'{key}={options[key]!r} (was {known.get(key)!r})' for key in other)}. Pass another "
                    "folder, or remove this one."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.config) as file:
            file.write(needed("yaml").safe_dump(options, sort_keys=False).encode())

    def load(self) -> tuple[Any, Any, TempNet, dict[str, Any]]:
        """Model, tokenizer, TempNet and options.

        Raises:
            ValueError: the run was not finished.
        """
        options = self.options()
        if not self.tempnet.exists():
            raise ValueError(
                f"expected a finished run in {str(self.folder)!r}, received one without a TempNet. Go on with it: "
                f"dro-temp lm fit {self.folder}"
            )
        source = str(self.model) if self.model.exists() else options["model"]
        model, tokenizer = load_model(source, options["tokenizer"])
        tempnet = TempNet.from_pretrained(self.tempnet).eval()
        tempnet.check_fits(model)
        return model, tokenizer, tempnet, options
