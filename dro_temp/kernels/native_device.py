"""Where the C passes run; importing this builds nothing."""

import torch

from dro_temp._compiler import constant_in_graphs
from dro_temp.kernels import native_passes
from dro_temp.kernels.native_passes.library import native
from dro_temp.kernels.triton_device import FusedPasses


def native_runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the C passes can take scores of that kind; builds them where that is all that is missing.

    Args:
        device: where the scores are.
        dtype: their precision.
    """
    return _lack(device, dtype) is None


def c_passes(device: torch.device, dtype: torch.dtype) -> FusedPasses:
    """The C passes, for scores of that kind.

    Raises:
        RuntimeError: they cannot take those, or cannot be built here.
    """
    lack = _lack(device, dtype)
    if lack is not None:
        raise RuntimeError(
            f"expected float32 scores on a processor, and a C compiler, for impl='native', received another case: "
            f"{lack}. Pass impl='chunked' (or 'auto'), which streams anywhere."
        )
    return native_passes


def _lack(device: torch.device, dtype: torch.dtype) -> str | None:
    """What stands in the way, or None."""
    if device.type != "cpu":
        return f"the tensors are on {str(device)!r}"
    if dtype != torch.float32:
        return f"the scores are {str(dtype).removeprefix('torch.')}"
    return _lack_of_library()


@constant_in_graphs
def _lack_of_library() -> str | None:
    # The compiler would look into a cached function, warn of it, and follow how the library is built.
    return native().lack or None
