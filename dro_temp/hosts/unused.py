"""Parts of a model on which no score depends."""

from typing import Any

import torch

from dro_temp.hosts._modules import shadow_copy
from dro_temp.interfaces import HostAdapter


def freeze_unused(host: HostAdapter, *args: Any, **batch: Any) -> list[str]:
    """Freeze the parameters on which no score depends, such as a caption decoder; return their names.

    They are found by running a batch and checking which parameters get a gradient. On one process they do no harm,
    since optimizers skip what has no gradient; DistributedDataParallel raises over them, so call this before wrapping.

    Args:
        host: the host.
        *args: a batch of two samples or more, as the host takes it.
        **batch: the rest of it.

    Returns:
        The names of the parameters that now have `requires_grad=False`, and had not.

    Example:
        >>> import dro_temp as dt
        >>> image_encoder = torch.nn.Linear(6, 4)
        >>> image_encoder.head = torch.nn.Linear(4, 10)  # its forward does not use it
        >>> host = dt.hosts.TwoTower(image_encoder, torch.nn.Linear(5, 4))
        >>> dt.hosts.freeze_unused(host, torch.randn(2, 6), torch.randn(2, 5))
        ['image_encoder.head.weight', 'image_encoder.head.bias']
    """
    named = {name: p for name, p in host.named_parameters() if p.requires_grad}
    if host.frozen or not named:
        return []
    # A copy over the same parameters: another thread may train the host meanwhile. In eval mode, so that nothing is
    # dropped, no running statistics change, and nothing is gathered: each process finds its own.
    copy = shadow_copy(host).eval()
    with torch.enable_grad():
        scores = [rows.dense_scores for rows in copy(*args, **batch).values()]
        total = torch.stack([s.square().sum() for s in scores]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    unused = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    for name in unused:
        named[name].requires_grad_(False)
    return unused
