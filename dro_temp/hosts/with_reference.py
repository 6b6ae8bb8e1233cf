"""A host whose scores are measured against those of a reference model."""

from dataclasses import replace
from typing import Any

import torch

from dro_temp._checks import check_kind
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


class WithReference(HostAdapter):
    r"""$s_{ij} - s^{\mathrm{ref}}_{ij}$: scores of a host less those of a frozen reference on the same batch.

    Margins become $h_{ij} - h^{\mathrm{ref}}_{ij}$, so a loss on these rows is the DRRho risk: an outcome gets a large
    weight where the model does worse on it than the reference. Where both scores are products, so is their
    difference, $[q, -q^{\mathrm{ref}}] \cdot [k, k^{\mathrm{ref}}]$, and is streamed like any other. Predictors read
    the host's own features.

    The reference runs in eval mode without gradient, and its parameters have `requires_grad=False`. Its weights *are*
    in `state_dict`, so that a run resumes bit for bit; to keep checkpoints small, leave out the keys that start with
    "reference." and load with strict=False. Each view is scored separately (`mirrored` is None).

    Args:
        host: what is trained.
        reference: a host with `frozen=True` and the same views, that takes the same batch; widths may differ.

    Raises:
        TypeError: one of the two is no host.
        ValueError: a reference that is not frozen, has other views, or shares parameters with the host; at a call,
            rows, targets or supports that differ.

    Example:
        >>> import copy, torch, dro_temp as dt
        >>> image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
        >>> reference = dt.hosts.TwoTower(copy.deepcopy(image), copy.deepcopy(text), frozen=True)
        >>> host = dt.hosts.WithReference(dt.hosts.TwoTower(image, text), reference)
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 5))
        >>> bool(rows["image"].dense_scores.abs().max() < 1e-6)   # so far the two are one model
        True

    Source: arXiv 2505.06699 (DRRho).
    """

    def __init__(self, host: HostAdapter, reference: HostAdapter) -> None:
        check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...).")
        check_kind("reference", reference, HostAdapter, "Wrap it: dro_temp.hosts.TwoTower(..., frozen=True).")
        super().__init__(frozen=host.frozen)
        if not reference.frozen:
            raise ValueError(
                "expected a frozen reference, received one that would train. Build it with frozen=True, for example "
                "TwoTower(image_encoder, text_encoder, frozen=True)."
            )
        if reference.views != host.views:
            raise ValueError(
                f"expected a reference with the host's views {list(host.views)}, received one with "
                f"{list(reference.views)}. Wrap both models in the same kind of host."
            )
        ours = {id(p) for p in host.parameters()}
        if any(id(p) in ours for p in reference.parameters()):
            raise ValueError(
                "expected a reference with parameters of its own, received one that shares some with the host, which "
                "would be frozen with it. Pass copy.deepcopy of the encoders."
            )
        self.views = host.views  # type: ignore[misc]  # a wrapper has those of what it wraps
        self.host, self.reference = host, reference.requires_grad_(False)
        self.train(host.objective_trains)

    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """The host's rows, less the reference's scores."""
        ours, theirs = self.host(*args, **batch), self.reference(*args, **batch)
        return {view: _less(view, rows, theirs[view]) for view, rows in ours.items()}

    def train(self, mode: bool = True) -> "WithReference":
        """Set the mode of both; each knows whether it is frozen."""
        super().train(mode)
        self.host.train(mode)
        self.reference.train(mode)
        return self


def _less(view: str, rows: Rows, reference: Rows) -> Rows:
    if rows.scores.shape != reference.scores.shape:
        raise ValueError(
            f"expected a reference with scores of shape {list(rows.scores.shape)} in view {view!r}, received "
            f"{list(reference.scores.shape)}. Both must score the same rows against the same outcomes."
        )
    differ = rows.target_in_support != reference.target_in_support
    if differ or (not torch.compiler.is_compiling() and bool((rows.target != reference.target).any())):
        raise ValueError(
            f"expected a reference with the host's targets and support in view {view!r}, received others. Wrap "
            "both models in the same kind of host, and pass both the same batch."
        )
    s, r = rows.scores, reference.scores
    if not isinstance(s, LinearScores) or not isinstance(r, LinearScores) or s.transform or r.transform:
        return replace(rows, scores=rows.dense_scores - reference.dense_scores)
    queries, keys = torch.cat([s.queries, -r.queries], 1), torch.cat([s.keys, r.keys], 1)
    bias = s.bias if r.bias is None else -r.bias if s.bias is None else s.bias - r.bias
    return replace(rows, scores=LinearScores(queries, keys, bias))
