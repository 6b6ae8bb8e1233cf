"""TempNet's temperatures in generation: folded, in few calls or in one into C, equal to the network on the logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

import dro_temp as dt
from dro_temp.kernels.backends.cpu.decoding import MOST_ROWS
from dro_temp.predictors import logit_decoder


def _network(outcomes, width, centred, dtype=torch.float32):
    tempnet = dt.TempNet.for_logits(outcomes, tau_min=0.01, tau_max=2.0, width=width, centred=centred).to(
        dtype
    )
    # At the start all weights are alike and temperatures hardly differ.
    for parameter in tempnet.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return tempnet.eval()


@given(
    st.sampled_from([1, 3, 64, 513]),
    st.sampled_from([2, 511, 1300]),
    st.sampled_from([1, 6, 257]),
    *(st.booleans(),) * 3,
    seeds,
)
@settings(max_examples=30)
def test_equals_the_network_on_the_logits(d, outcomes, width, centred, biased, native, seed):
    torch.manual_seed(seed)
    tempnet = _network(outcomes, width, centred)
    weight, bias = torch.randn(outcomes, d), torch.randn(outcomes) if biased else None
    hidden = torch.randn(MOST_ROWS + 2, d)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(logit_decoder, "cpu_runs_on", lambda *_: False)
        decode = tempnet.decoder(dt.interfaces.FrozenHead(weight, bias))
    one = torch.cat([decode(hidden[i : i + 1], logits[i : i + 1]) for i in range(len(hidden))])
    several = decode(hidden, logits)
    exact = tempnet.double()(support=dt.Support(logits.double()))
    for found in (one, several):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact.float(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions(dtype):
    torch.manual_seed(0)
    tempnet, head = _network(40, 8, False), torch.nn.Linear(5, 40).to(dtype)
    hidden = torch.randn(2, 5, dtype=dtype)
    with torch.no_grad():
        logits = head(hidden)
    found = tempnet.decoder(dt.interfaces.FrozenHead(head.weight, head.bias))(hidden, logits)
    expected = tempnet(support=dt.Support(logits.float()))
    torch.testing.assert_close(found.float(), expected.detach(), rtol=0.02, atol=1e-3)


def test_rows_out_of_a_larger_block():
    torch.manual_seed(0)
    tempnet, head = _network(40, 8, True), torch.nn.Linear(5, 40)
    hidden = torch.randn(3, 7, 5).transpose(0, 1)[2:4, :, :][:, 1]  # strided
    with torch.no_grad():
        logits = head(hidden)
    decode = tempnet.decoder(dt.interfaces.FrozenHead(head.weight, head.bias))
    torch.testing.assert_close(decode(hidden, logits), tempnet(support=dt.Support(logits)).detach())


def test_a_map_into_the_bounds_of_ones_own_is_used():
    class Clipped(dt.TempNet):
        def bound(self, raw):
            return raw.clamp(self.tau_min, self.tau_max)

    torch.manual_seed(0)
    tempnet = Clipped(dt.predictors.LogitEncoder(40, width=8), tau_min=0.1, tau_max=2.0).eval()
    torch.nn.init.constant_(tempnet.readout.last.bias, 1.0)
    weight, hidden = torch.randn(40, 5), torch.randn(1, 5)
    found = tempnet.decoder(dt.interfaces.FrozenHead(weight))(hidden, hidden @ weight.T)
    torch.testing.assert_close(found, tempnet(support=dt.Support(hidden @ weight.T)).detach())
    assert 0.9 < float(found) < 1.3  # through a sigmoid it would be 1.5
