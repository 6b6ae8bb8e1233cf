"""Numbers of groups: of equal keys, of near-duplicates, and of both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from dro_temp.datasets import group_numbers, merged_groups
from dro_temp.evaluation import concepts, near_duplicate_groups, near_duplicates


def components(n, edges):
    """By search, number by number."""
    near = {i: {i} for i in range(n)}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    found, count = [-1] * n, 0
    for start in range(n):
        if found[start] >= 0 or len(near[start]) == 1:
            continue
        stack = [start]
        while stack:
            i = stack.pop()
            if found[i] < 0:
                found[i] = count
                stack += near[i]
        count += 1
    return found


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 14), st.sampled_from([0.3, 0.8, 0.95]), st.sampled_from([3, 8192]))
def test_near_duplicates_are_joined_by_chains(seed, n, threshold, tile):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    x[n // 2 :] = 2.0 * x[: n - n // 2] + 0.1 * torch.randn(n - n // 2, 3, generator=generator)
    unit = torch.nn.functional.normalize(x, dim=1)
    edges = [(i, j) for i in range(n) for j in range(i) if unit[i] @ unit[j] >= threshold]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concepts, "BANK", tile)
        patch.setattr("dro_temp.evaluation._inputs.BLOCK", 4 * tile)
        found = near_duplicate_groups(x, threshold=threshold)
        assert found.tolist() == components(n, edges)
        assert torch.equal(near_duplicates(x, threshold=threshold) > 0, found >= 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3), st.integers(-2, 3)), max_size=12))
def test_merged_groups_are_components_of_all(numbers):
    n = len(numbers)
    edges = [
        (i, j)
        for i in range(n)
        for j in range(i)
        for a, b in zip(numbers[i], numbers[j], strict=True)
        if a == b >= 0
    ]
    columns = torch.tensor(numbers, dtype=torch.long).view(n, 3).unbind(1)
    assert merged_groups(*columns).tolist() == components(n, edges)


def test_a_long_chain_is_one_group():
    angle = torch.arange(300) * 0.02
    chain = torch.stack([angle.cos(), angle.sin()], 1)[torch.randperm(300)]
    assert not near_duplicate_groups(chain, threshold=0.999).any()


def test_numbers_of_keys_are_the_same_everywhere():
    numbers = group_numbers(["a dog", b"a dog", None, 7, "7"])
    assert numbers[0] == numbers[1] == group_numbers(["a dog"])[0]
    assert numbers[2] == -1
    assert numbers[3] == numbers[4] != numbers[0]
    assert (numbers[[0, 1, 3]] >= 0).all()


def test_wrong_arguments_are_refused(no_shape_checks):
    for keys in ("abc", b"abc", {"a": 1}):
        with pytest.raises(TypeError, match="keys"):
            group_numbers(keys)
    with pytest.raises(TypeError, match="expected a key as"):
        group_numbers([0.5])
    with pytest.raises(ValueError, match="threshold"):
        near_duplicate_groups(torch.randn(3, 2), threshold=1.1)
    with pytest.raises(ValueError, match="features"):
        near_duplicate_groups(torch.randn(3))
    with pytest.raises(ValueError, match="expected numbers of the same samples"):
        merged_groups(torch.arange(3), torch.arange(4))
    with pytest.raises(TypeError, match="integer"):
        merged_groups(torch.randn(3))
