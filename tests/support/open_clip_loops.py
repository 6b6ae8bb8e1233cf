"""open_clip's own loop over small towers, and the data that it wants."""

import copy
from types import SimpleNamespace
from typing import Any

import small
import torch
from torch import Tensor, nn

import dro_temp as dt
from dro_temp.integrations.open_clip import NumberedTexts, OpenClipLoss, read_numbers

WORDS, LENGTH = 11, 3
ARGS = {
    "device": "cpu",
    "precision": "fp32",
    "accum_freq": 1,
    "distill": False,
    "skip_scheduler": True,
    "grad_clip_norm": None,
    "horovod": False,
    "distributed": False,
    "rank": 0,
    "world_size": 1,
    "log_every_n_steps": 1,
    "batch_size": 6,
    "wandb": False,
    "val_frequency": 1,
    "epochs": 1,
    "save_logs": False,
}


class Words(nn.Module):
    """Mean of the words' vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).mean(1)


class Clip(nn.Module):
    """What the loop wants of a model."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.visual, self.text = nn.Linear(small.D, 4), Words()
        self.logit_scale = nn.Parameter(torch.tensor(2.659))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None
        self.output_dict = True

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        unit = nn.functional.normalize
        out = {
            "image_features": None if image is None else unit(self.visual(image), dim=-1),
            "text_features": None if text is None else unit(self.text(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            out["logit_bias"] = self.logit_bias
        return out if self.output_dict else tuple(out.values())


def clip(**options: Any) -> Clip:
    torch.manual_seed(0)
    return Clip(**options).double()


def pairs() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(7)
    tokens = torch.randint(WORDS, (small.N, LENGTH), generator=g)
    return list(zip(small.data()[0], tokens, strict=True))


def parts(predictor: str = "tempnet", estimator=None) -> tuple[dict, dict]:
    """A predictor and a loss for each view, the same numbers at every call."""
    torch.manual_seed(1)
    build = estimator or (lambda: dt.LogMovingAverage(small.N, gamma=0.5))
    views = dt.hosts.TwoTower.views
    return (
        {view: small.PREDICTORS[predictor]() for view in views},
        {view: dt.KLRobustLoss(0.5, estimator=build()) for view in views},
    )


def clip_loss(predictor: str = "tempnet", estimator=None, **options: Any) -> OpenClipLoss:
    return OpenClipLoss(*parts(predictor, estimator), **options).double()


class Loader:
    """Batches of these numbers, as open_clip's loaders give them."""

    def __init__(self, plan: list[Tensor], dataset: Any = None) -> None:
        self.plan, self.dataset = plan, NumberedTexts(pairs()) if dataset is None else dataset
        self.num_batches, self.num_samples = len(plan), small.N

    def __iter__(self):
        for index in self.plan:
            images, texts = zip(*(self.dataset[i] for i in index.tolist()), strict=True)
            yield torch.stack(images), torch.stack(texts)


def data_of(loader: Loader, name: str = "train") -> dict[str, Any]:
    return {name: SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}


def run(model, loss, optimizer, plan: list[Tensor], scaler=None, **changes: Any) -> None:
    """open_clip's own `train_one_epoch`."""
    from open_clip_train.train import train_one_epoch

    args = SimpleNamespace(**(ARGS | changes))
    train_one_epoch(model, data_of(Loader(plan)), loss, 0, optimizer, scaler, None, None, args)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The gradient's own size shows in what it does."""
    return torch.optim.SGD(model.parameters(), lr=0.2)


def trained(plan: list[Tensor], predictor: str = "tempnet", *, wrap=lambda model: model, **changes: Any):
    """Model and loss after one epoch of the loop."""
    model = clip()
    loss = clip_loss(predictor, accum_freq=changes.get("accum_freq", 1))
    wrapped = wrap(read_numbers(model))
    run(wrapped, loss, loss.optimizer(sgd(wrapped), tau_lr=0.1), plan, **changes)
    return model, loss


def house(plan: list[Tensor], predictor: str = "tempnet"):
    """The same training, the house's way."""
    model = clip()
    objective = dt.Objective(dt.hosts.TwoTower(model.visual, model.text), *parts(predictor)).double()
    base = torch.optim.SGD(objective.param_groups(lr=0.2, tau_lr=0.1), lr=0.2)
    optimizer = dt.CompositionalOptimizer(base, objective)
    images, texts = (torch.stack(side) for side in zip(*pairs(), strict=True))
    for index in plan:
        objective(images[index], texts[index], index=index).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, objective


def state(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [copy.deepcopy(module.state_dict()) for module in modules]
