"""The contrastive baseline."""

from dro_temp.losses.likelihood import LikelihoodLoss


class InfoNCELoss(LikelihoodLoss):
    r"""Cross-entropy of the target among all columns, $\log \sum_j e^{h_j / \tau}$ with the target included.

    With one global learnable temperature this is CLIP's loss. Unlike the robust loss it is not scaled by tau,
    and it treats the sampled negatives as the whole population.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        >>> dt.InfoNCELoss()(rows, 1.0)
        tensor([0.1269])

    Source: arXiv 1807.03748 (CPC); arXiv 2103.00020 (CLIP).
    """
