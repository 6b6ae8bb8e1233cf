"""Pairs, and objectives over them, for losses with a queue of keys."""

import math

import torch
from torch import nn

import dro_temp as dt

RHO, WIDTH, VIEWS = 1.0, 4, ("image", "text")


def pair_host() -> dt.hosts.TwoTower:
    torch.manual_seed(0)
    return dt.hosts.TwoTower(nn.Linear(6, WIDTH), nn.Linear(5, WIDTH)).double()


def pair_batch(n: int, seed: int, samples: int = 40):
    g = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randn(n, 6, generator=g, dtype=torch.float64),
        "texts": torch.randn(n, 5, generator=g, dtype=torch.float64),
        "index": torch.randperm(samples, generator=g)[:n],
    }


def values_by_hand(queries, keys, index, tau, earlier) -> list[float]:
    """Loops over the batch's other columns and the earlier keys of samples that are not in it."""
    values, here = [], set(index.tolist())
    for i in range(len(queries)):
        own = queries[i] @ keys[i]
        margins = [queries[i] @ keys[j] - own for j in range(len(keys)) if j != i]
        margins += [queries[i] @ key - own for key, number in earlier if number not in here]
        log_g = math.log(sum(math.exp(float(h / tau[i])) for h in margins) / len(margins))
        values.append(float(tau[i]) * (log_g + RHO))
    return values


def queued_objective(**changes) -> dt.Objective:
    torch.manual_seed(1)
    host = pair_host()
    net = {
        v: dt.TempNet(
            dt.predictors.HiddenEncoder(WIDTH, width=8),
            tau_min=0.05,
            tau_max=1.0,
            readout=dt.predictors.ResidualReadout,
        ).double()
        for v in host.views
    }
    loss = {v: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(40, gamma=0.7)) for v in host.views}
    return dt.Objective(host, net, loss, **changes)
