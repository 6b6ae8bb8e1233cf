"""A timm backbone with a projection head, and the four schemes over it."""

import timm
from torch import Tensor, nn
from torchvision.ops import MLP

import dro_temp as dt

from .config import Options

WIDTH = 64  # width of the compared vectors


class Encoder(nn.Module):
    """[n 1 32 32] images to [n 64], for training. Only `backbone` is used afterwards.

    Args:
        backbone: name of a timm model.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, in_chans=1)
        hidden = self.backbone.head_hidden_size
        self.head = MLP(hidden, [hidden, WIDTH], norm_layer=nn.BatchNorm1d)

    def forward(self, images: Tensor) -> Tensor:
        """Projected features, not normalised: the host does that."""
        projected: Tensor = self.head(self.backbone(images))
        return projected


# --8<-- [start:schemes]
def build(o: Options, host: dt.hosts.TwoViews, samples: int) -> dt.Objective:
    """The scheme's objective; the four differ in nothing else."""
    bounds = {"tau_min": o.tau_min, "tau_max": o.tau_max, "tau_init": o.tau}
    if o.scheme == "simclr":
        return dt.recipes.simclr(host, tau=o.tau)
    if o.scheme == "sogclr":
        return dt.recipes.sogclr(host, samples, tau=o.tau, gamma=o.gamma)
    if o.scheme == "isogclr":
        step = {"tau_step": o.tau_step, "tau_clip": 3.0}  # 3 is the paper's for one modality
        return dt.recipes.isogclr(host, samples, rho=o.rho, gamma=o.gamma, **step, **bounds)
    return dt.recipes.tempnet(host, samples, WIDTH, rho=o.rho, gamma=o.gamma, **bounds)


# --8<-- [end:schemes]
