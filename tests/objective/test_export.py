"""Predictors as programs without Python: what is exported gives the eager temperatures at every number of rows."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import dro_temp as dt

pytestmark = pytest.mark.usefixtures("no_shape_checks")

BOUNDS = {"tau_min": 0.1, "tau_max": 2.0}
ROWS = (1, 2, 7, 600)  # 600: more than are taken at a time in training


class FromScores(nn.Module):
    """A predictor that is called with the scores alone."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, scores):
        return self.predictor(support=dt.Support(scores))


class FromBoth(FromScores):
    def forward(self, features, scores):
        return self.predictor(features, support=dt.Support(scores))


class Classifier(nn.Module):
    """What a served classifier computes: probabilities at each input's own temperature."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(8, 6), nn.Linear(6, 12)
        self.tempnet = dt.TempNet(6, prototypes=4, **BOUNDS)

    def forward(self, inputs):
        features = self.backbone(inputs)
        return (self.head(features) / self.tempnet(features)[:, None]).softmax(1)


def _several():
    encoders = [dt.predictors.HiddenEncoder(8, width=16), dt.predictors.StatisticsEncoder(width=16)]
    return dt.TempNet(dt.predictors.SumEncoder(encoders), readout=dt.predictors.ResidualReadout, **BOUNDS)


MODELS = {
    "embeddings": (lambda: dt.TempNet(8, prototypes=4, **BOUNDS), ([8],)),
    "hidden": (lambda: dt.TempNet(dt.predictors.HiddenEncoder(8, width=16), **BOUNDS), ([5, 8],)),
    "logits": (lambda: FromScores(dt.TempNet.for_logits(12, width=16, **BOUNDS)), ([12],)),
    "logits-centred": (
        lambda: FromScores(dt.TempNet.for_logits(12, width=16, centred=True, **BOUNDS)),
        ([12],),
    ),
    "statistics": (
        lambda: FromScores(dt.TempNet(dt.predictors.StatisticsEncoder(width=16), **BOUNDS)),
        ([12],),
    ),
    "several": (lambda: FromBoth(_several()), ([8], [12])),
    "learnable": (lambda: dt.LearnableTemperature(0.5), ([8],)),
    "dynatemp": (lambda: FromScores(dt.EntropyTemperature(dt.predictors.DynatempRule(0.2, 1.8))), ([12],)),
    "optimal": (lambda: FromScores(dt.OptimalTemperature(1.0, iterations=4, **BOUNDS)), ([12],)),
    "classifier": (Classifier, ([8],)),
}


def _inputs(name, n):
    generator = torch.Generator().manual_seed(n)
    return tuple(torch.randn(n, *shape, generator=generator) for shape in MODELS[name][1])


@pytest.fixture(params=MODELS)
def exported(request):
    """A model, its name, and what it is exported with: four rows, of a number that may be another."""
    torch.manual_seed(0)
    model, n = MODELS[request.param][0]().eval(), Dim("n", max=1024)
    inputs = _inputs(request.param, 4)
    return model, request.param, inputs, tuple({0: n} for _ in inputs)


def _is_equal(model, name, call):
    for n in ROWS:
        torch.testing.assert_close(call(*_inputs(name, n)), model(*_inputs(name, n)))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_export(exported, strict):
    model, name, inputs, shapes = exported
    file = io.BytesIO()
    torch.export.save(export(model, inputs, dynamic_shapes=shapes, strict=strict), file)
    file.seek(0)
    _is_equal(model, name, torch.export.load(file).module())


# Forty unrolled steps of a solver take the other two a minute and more.
QUICK = pytest.mark.parametrize("exported", [name for name in MODELS if name != "optimal"], indirect=True)


@QUICK
def test_onnx(exported, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model, name, inputs, shapes = exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its past and future
        program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def call(*arrays):
        (found,) = session.run(None, {k: x.numpy() for k, x in zip(names, arrays, strict=True)})
        return torch.from_numpy(found)

    _is_equal(model, name, call)


@QUICK
def test_executorch(exported):
    pytest.importorskip("executorch")
    model, name, inputs, shapes = exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        program = to_edge_transform_and_lower(export(model, inputs, dynamic_shapes=shapes)).to_executorch()
        method = Runtime.get().load_program(program.buffer).load_method("forward")
    _is_equal(model, name, lambda *arrays: method.execute(list(arrays))[0])
