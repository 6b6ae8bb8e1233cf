"""What a request may ask of a serving engine; no engine is needed to check it."""

from types import SimpleNamespace

import pytest

import dro_temp as dt
from dro_temp.integrations.vllm import request_bounds, served_tempnet
from dro_temp.integrations.vllm.requests import check_engine

LOGITS = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0)
HIDDEN = dt.TempNet(dt.predictors.HiddenEncoder(16), tau_min=0.1, tau_max=2.0)


def params(**fields):
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        (None, (0.1, 2.0)),
        ({"another_plugin": 3}, (0.1, 2.0)),
        ({"dro_temp": True}, (0.1, 2.0)),
        ({"dro_temp": 1, "dro_temp_tau_min": 1}, (1.0, 2.0)),
        ({"dro_temp_tau_max": 0.5}, (0.1, 0.5)),
        ({"dro_temp_tau_min": 0.5, "dro_temp_tau_max": 0.5}, (0.5, 0.5)),
        ({"dro_temp": False}, (1.0, 1.0)),
        ({"dro_temp": 0}, (1.0, 1.0)),
    ],
)
def test_bounds(asked, bounds):
    assert request_bounds(LOGITS, params(extra_args=asked)) == bounds


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dro_temp_tau_min": 0.05}, "within the bounds of the served TempNet, received 0.05 and 2.0"),
        ({"dro_temp_tau_max": 2.5}, "received 0.1 and 2.5. Narrow them"),
        ({"dro_temp_tau_min": 1.0, "dro_temp_tau_max": 0.5}, "received 1.0 and 0.5"),
        ({"dro_temp_tau_min": float("nan")}, "received nan"),
        ({"dro_temp_tau_min": "0.5"}, "as a number, received '0.5'"),
        ({"dro_temp_tau_min": True}, "as a number, received True"),
        ({"dro_temp": "off"}, "as True or False, received 'off'"),
        ({"dro_temp": 0.0}, "as True or False"),
        ({"dro_temp": False, "dro_temp_tau_max": 1.0}, "Leave one of them out"),
        ({"dro_temp_max": 1.0}, "received dro_temp_max. Correct the name"),
    ],
)
def test_requests_that_are_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        request_bounds(LOGITS, params(extra_args=asked))


@pytest.mark.parametrize(
    "changing",
    [
        {"allowed_token_ids": [1]},
        {"bad_words": ["x"]},
        {"logit_bias": {1: 2.0}},
        {"min_tokens": 3},
        {"structured_outputs": object()},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
    ],
    ids=lambda x: next(iter(x)),
)
def test_parameters_that_change_logits(changing):
    with pytest.raises(ValueError, match=rf"{next(iter(changing))}, which changes.*'dro_temp': False"):
        request_bounds(LOGITS, params(**changing))
    assert request_bounds(LOGITS, params(extra_args={"dro_temp": False}, **changing)) == (1.0, 1.0)
    assert request_bounds(HIDDEN, params(**changing)) == (0.1, 2.0)


def test_engines_that_have_nothing_to_switch():
    assert request_bounds(None, params(extra_args=None)) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"Start vLLM with DRO_TEMP_TEMPNET=folder"):
        request_bounds(None, params(extra_args={"dro_temp": True}))
    with pytest.raises(ValueError, match=r"divides the logits of all requests"):
        request_bounds(HIDDEN, params(extra_args={"dro_temp": False}))


def engine(outcomes, width):
    model = SimpleNamespace(
        model="some/model", get_vocab_size=lambda: outcomes, get_hidden_size=lambda: width
    )
    return SimpleNamespace(model_config=model)


def test_the_engines_model():
    check_engine(LOGITS, engine(99, 5))
    check_engine(HIDDEN, engine(7, 16))
    with pytest.raises(
        ValueError, match=r"vocabulary 99.*some/model of vocabulary 128. Serve the model's own"
    ):
        check_engine(LOGITS, engine(128, 16))
    with pytest.raises(ValueError, match=r"width 16.*of width 17"):
        check_engine(HIDDEN, engine(99, 17))


def test_the_network_that_the_variable_names(monkeypatch, tmp_path):
    monkeypatch.delenv("DRO_TEMP_TEMPNET", raising=False)
    assert served_tempnet() is None
    LOGITS.save_pretrained(tmp_path)
    monkeypatch.setenv("DRO_TEMP_TEMPNET", str(tmp_path))
    assert served_tempnet() is served_tempnet()
    assert not served_tempnet().training
    monkeypatch.setenv("DRO_TEMP_TEMPNET", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        served_tempnet()
