"""A module whose saved state has only what was trained, each tensor once."""

from typing import Any

from torch import nn

from dro_temp.interfaces import HostAdapter


class SlimState(nn.Module):
    """Leaves names out of its state, and does not miss them when a state is loaded.

    The weights of a frozen host would be written again at every checkpoint, and safetensors refuses a tensor that
    has two names, as a head has that is tied to the embeddings.

    Args:
        prefix: where the host will be inside this module, ending in a dot.
        host: the host.
    """

    def __init__(self, prefix: str, host: HostAdapter) -> None:
        super().__init__()
        self._host_prefix = prefix
        # What is frozen later only was trained before: its weights are in no other file.
        self._never_trained = _untrained(prefix, host)
        # Functions, not methods: torch marks what it is given, and copies and pickles keep it.
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_do_not_miss)  # type: ignore[no-untyped-call]

    def left_out(self) -> set[str]:
        """Names that are not saved: of host weights that are not trained, and second names of one tensor."""
        host = self.get_submodule(self._host_prefix.removesuffix("."))
        assert isinstance(host, HostAdapter)
        return (self._never_trained & _untrained(self._host_prefix, host)) | _second_names(self)


def _untrained(prefix: str, host: HostAdapter) -> set[str]:
    names = {name for name, p in host.named_parameters(remove_duplicate=False) if not p.requires_grad}
    if host.frozen:
        names |= {name for name, _ in host.named_buffers(remove_duplicate=False)}
    return {prefix + name for name in names}


def _second_names(module: nn.Module) -> set[str]:
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, p in named if first.setdefault(id(p), name) != name}


def _leave_out(module: SlimState, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in module.left_out():
        state.pop(prefix + name, None)


def _do_not_miss(module: SlimState, keys: Any) -> None:
    left_out = module.left_out()
    root = module._host_prefix.partition(".")[0]  # inside another module, names come with its prefix
    keys.missing_keys[:] = [key for key in keys.missing_keys if key[max(key.find(root), 0) :] not in left_out]
