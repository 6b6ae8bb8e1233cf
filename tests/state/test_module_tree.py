"""The kept list of a model's modules follows each change of the model."""

import pytest
import torch
from torch import nn

from dro_temp._module_tree import ModuleTree


class Equal(nn.Linear):
    """Equal to each of its kind, as modules with `==` of their own may be."""

    def __eq__(self, other):
        return isinstance(other, Equal)

    __hash__ = nn.Module.__hash__


class Elementwise(nn.Linear):
    """Compared as tensors are."""

    def __eq__(self, other):
        return torch.tensor([True, False])

    __hash__ = nn.Module.__hash__


def another_dictionary(model):
    del model[1:1]
    model.append(nn.Linear(2, 2))


def removed(model):
    del model[0]


def replaced(model):
    model[0] = type(model[0])(2, 2)


@pytest.mark.parametrize("kind", [nn.Linear, Equal, Elementwise])
@pytest.mark.parametrize("change", [another_dictionary, removed, replaced])
def test_a_change_is_seen(change, kind):
    model = nn.Sequential(kind(2, 2), nn.ReLU(), nn.Linear(2, 2))
    tree = ModuleTree(model)
    tree.modules()
    change(model)
    assert list(map(id, tree.modules())) == list(map(id, model.modules()))
    assert tree.modules() is tree.modules()
