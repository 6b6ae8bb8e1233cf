"""How far a reader has to go: files of the package that one forward enters, and calls that it makes."""

import call_trace
import pytest

#: Most files, and most calls.
BARS = {"language rows": (30, 130), "pairs": (30, 200)}


@pytest.mark.parametrize("scenario", BARS)
def test_a_forward_stays_short(scenario):
    trace = call_trace.trace(call_trace.SCENARIOS[scenario])
    files, calls = BARS[scenario]
    assert trace.files <= files, f"{trace}: {sorted({file for file, _ in trace.calls})}"
    assert len(trace.calls) <= calls, f"{trace}; python tests/support/call_trace.py --list shows them"
