"""What the trainer does not do for a loss: commit its memory after each step, save it, load it again."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dro_temp._files import whole_file
from dro_temp._optional import optional_module
from dro_temp.objective import Objective

if TYPE_CHECKING:
    from transformers import TrainerCallback


def memory_callback(
    loss: torch.nn.Module, objective: Objective, name: str, resume_from: Path | None
) -> "TrainerCallback":
    """A callback for one loss: see `RobustRankingLoss.callback`.

    `name` is that of the file in a checkpoint's folder, and of the entry in the trainer's own state.
    """
    use = "whose trainer runs the callback"
    base: Any = optional_module("transformers", use, extra="clip").TrainerCallback

    class MemoryCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            objective.discard()
            run = _run_of(state, name)
            if state.global_step > 0:
                folder = resume_from or _folder(args, state)
                saved = _load(folder / name)
                if run is None or (saved["run"], saved["step"]) != (run, state.global_step):
                    raise ValueError(
                        f"expected the loss of the run that is resumed, at step {state.global_step}, received in "
                        f"{str(folder / name)!r} that of another run, at step {saved['step']}. Write "
                        "loss.callback(resume_from=folder) with the folder that "
                        "trainer.train(resume_from_checkpoint=folder) is given."
                    )
                loss.load_state_dict(saved["loss"])
            # An id in the trainer's own file tells this run's checkpoints from those of others.
            state.stateful_callbacks[name] = {"args": {}, "attributes": {"run": run or uuid.uuid4().hex}}

        def on_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
        ) -> None:
            if getattr(optimizer, "step_was_skipped", False):  # by a gradient scaler
                objective.discard()
            elif objective.pending:  # unless a CompositionalOptimizer has committed it already
                objective.commit()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not args.should_save:
                return
            saved = {"run": _run_of(state, name), "step": state.global_step, "loss": loss.state_dict()}
            with whole_file(_folder(args, state) / name) as file:
                torch.save(saved, file)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                loss.load_state_dict(_load(Path(state.best_model_checkpoint) / name)["loss"])

    callback: TrainerCallback = MemoryCallback()
    return callback


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _run_of(state: Any, name: str) -> str | None:
    run: str | None = state.stateful_callbacks.get(name, {}).get("attributes", {}).get("run")
    return run


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"expected the loss in {str(path)!r}, received a checkpoint without it: a loss that starts afresh would "
            "not match the model. Resume from a checkpoint that was saved with loss.callback(); if it is in another "
            "folder, write loss.callback(resume_from=folder); if the save of this one was interrupted, remove it and "
            "resume from the one before."
        )
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved
