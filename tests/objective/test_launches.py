"""A step of few rows on a GPU waits for its launches: no more of them than these beyond the baseline's."""

import launches
import pytest

pytest.importorskip("triton", reason="Triton is not installed")

#: Counted along a device's path on the CPU (`python tests/support/launches.py --list`).
BARS = {
    "CLIP, 256 pairs, tempnet": 82,
    "CLIP, 256 pairs, sogclr": 8,
    "CLIP, 256 pairs, isogclr": 66,
    "classifier, 64 images": 47,
}


@pytest.mark.parametrize("case", BARS)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the interpreter
def test_a_step_adds_few_launches(case):
    number, places = launches.added(case, n=32, d=32)
    assert number <= BARS[case], f"{number} launches more than the baseline, of {places}"
