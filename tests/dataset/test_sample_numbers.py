"""Numbers of keys: the same for ever, spread evenly, colliding as often as expected."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dro_temp.datasets import SampleTable

KEYS = st.one_of(st.text(), st.binary(), st.integers())


@pytest.mark.parametrize(
    ("key", "digest"),
    [  # of `printf '%s' KEY | b2sum -l 64`, a program that is not Python
        ("", "e4a6a0577479b2b4"),
        ("a", "40f89e395b66422f"),
        ("7", "e75017cace788f82"),
        ("000001", "48e40e368f65e83e"),
        ("shard-000012/000345", "0486ce9fdb0d545b"),
        ("ångström τ", "79281c60d8942572"),
    ],
)
def test_the_hash_is_blake2b_read_from_its_low_end(key, digest):
    number = int.from_bytes(bytes.fromhex(digest), "little")
    for size in (1, 100, 1_000_000, 2**31, 400_000_000):
        assert SampleTable(size)(key) == number % size


def test_numbers_never_change():
    table = SampleTable(1_000_000)
    keys = ["", "a", "7", 7, b"7", -7, "000001", "shard-000012/000345", "ångström τ"]
    expected = [838756, 292928, 377255, 377255, 377255, table("-7"), 78536, 248260, 383865]
    assert table.numbers(keys).tolist() == expected


def test_another_process_gives_the_same_numbers():
    """Python's own hash does not."""
    code = "from dro_temp.datasets import SampleTable; print(*map(SampleTable(10**9), ['a', b'b', 3]), hash('a'))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0][:3] == said[1][:3] == [str(SampleTable(10**9)(key)) for key in ("a", b"b", 3)]
    assert said[0][3] != said[1][3]


@given(st.lists(KEYS), st.integers(1, 2**40))
def test_many_keys_are_numbered_as_one_by_one(keys, size):
    table = SampleTable(size)
    numbers = table.numbers(keys)
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [table(key) for key in keys]
    assert all(0 <= number < size for number in numbers.tolist())


@given(st.text())
def test_a_string_and_its_bytes_are_one_key(key):
    assert SampleTable(2**40)(key) == SampleTable(2**40)(key.encode())


@given(st.integers())
def test_an_integer_and_its_spelling_are_one_key(key):
    assert SampleTable(2**40)(key) == SampleTable(2**40)(str(key))


def test_a_number_of_numpy_or_torch_is_an_integer():
    numpy = pytest.importorskip("numpy")
    table = SampleTable(1000)
    assert table(numpy.int64(7)) == table(torch.tensor(7)) == table(7)


def test_names_that_are_no_valid_text_have_a_number():
    table = SampleTable(2**40)
    assert table("caf\udce9") != table("caf")


@pytest.mark.parametrize("per_entry", [0.1, 0.5, 1, 2, 8])
def test_keys_spread_evenly_and_collide_as_often_as_expected(per_entry):
    n = 20_000
    table = SampleTable(round(n / per_entry))
    counts = torch.bincount(table.numbers(f"{i:08d}" for i in range(n)), minlength=len(table)).double()
    # Pearson's statistic is chi-square with size - 1 degrees of freedom.
    statistic = float(((counts - per_entry) ** 2 / per_entry).sum())
    assert abs(statistic - len(table)) < 5 * math.sqrt(2 * len(table))
    sharing = float(counts[counts > 1].sum()) / n
    expected = table.colliding_share(n)
    assert expected == pytest.approx(1 - math.exp(-per_entry), abs=1e-4)
    assert sharing == pytest.approx(expected, abs=5 * math.sqrt(2 / n))


@pytest.mark.parametrize(
    ("size", "samples", "expected"), [(1, 1, 0.0), (1, 2, 1.0), (2, 2, 0.5), (4, 3, 7 / 16), (10**12, 1, 0.0)]
)
def test_the_expected_share_of_small_tables(size, samples, expected):
    assert SampleTable(size).colliding_share(samples) == pytest.approx(expected, abs=1e-12)


def test_the_expected_share_is_exact_for_large_tables():
    assert SampleTable(10**18).colliding_share(11) == pytest.approx(1e-17, rel=1e-6)


@pytest.mark.parametrize("key", [None, 1.5, True, ("a", 1), ["a"]])
def test_other_keys_are_refused(key):
    with pytest.raises(
        TypeError, match=rf"expected a key as str, bytes or int, received {type(key).__name__}"
    ):
        SampleTable(10)(key)


@pytest.mark.parametrize("keys", ["abc", b"abc"])
def test_one_string_is_not_many_keys(keys):
    with pytest.raises(TypeError, match=r"expected many keys, received one \w+ .* Write table\("):
        SampleTable(10).numbers(keys)


def test_a_table_without_entries_is_refused():
    with pytest.raises(ValueError, match=r"expected size >= 1, received size=0"):
        SampleTable(0)
    with pytest.raises(TypeError, match=r"expected size as an int, received float"):
        SampleTable(1e6)


def test_it_says_how_large_it_is():
    assert (repr(SampleTable(5)), len(SampleTable(5))) == ("SampleTable(5)", 5)
