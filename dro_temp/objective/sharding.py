"""Gradients that FSDP does not reduce, of parts beside sharded ones."""

import sys
from typing import Any

from torch import Tensor, nn
from torch.autograd import Variable

from dro_temp import distributed


class UnreducedGradients:
    """Checks once, at the end of a backward, for gradients that are not reduced over processes.

    FSDP reduces the gradients of the modules that it shards. A TempNet beside a sharded host, say,
    would train on each process's own rows and drift apart.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = [module]  # in a list, where torch does not register it
        self._done = False

    def check_after(self, loss: Tensor) -> None:
        """Check once at the end of this loss's backward, if FSDP shards some of the module."""
        if not self._done and distributed.world_size() > 1 and loss.requires_grad and any(self._sharded()):
            # After FSDP's own callback, which puts the sharded parameters back.
            at_end: Any = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            loss.register_hook(lambda gradient: at_end(self._refuse))  # type: ignore[no-untyped-call]

    def _sharded(self) -> list[nn.Module]:
        fsdp: Any = sys.modules.get("torch.distributed.fsdp")
        kind = getattr(fsdp, "FSDPModule", None)
        return [] if kind is None else [m for m in self._module[0].modules() if isinstance(m, kind)]

    def _refuse(self) -> None:
        reduced = {id(p) for module in self._sharded() for p in module.parameters()}
        unreduced = [
            name
            for name, p in self._module[0].named_parameters()
            if p.grad is not None and id(p) not in reduced and not hasattr(p, "full_tensor")
        ]
        if unreduced:
            raise RuntimeError(
                f"expected all parts that train to be sharded once some are, received {unreduced[0]} ({len(unreduced)} "
                f"parameters in all) beside sharded ones: its gradients would stay each process's own. "
                "Call fully_shard(objective) after sharding its parts, which takes all that is left."
            )
        self._done = True
