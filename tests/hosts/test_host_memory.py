"""Memory in host memory: the same numbers to the last bit, and tables that stay where they are."""

import copy
import io

import pytest
import small
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dro_temp as dt

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not CUDA, reason="needs a GPU"))]
BUILD = {
    "estimator": lambda n=7, **options: dt.LogMovingAverage(n, gamma=0.5, **options),
    "temperatures": lambda n=7, **options: dt.IndividualTemperature(n, tau_min=0.05, tau_max=1.0, **options),
}
both = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)


def tables(module):
    return {name: getattr(module, name) for name in module.memory}


def addresses(module):
    return {name: table.data_ptr() for name, table in tables(module).items()}


def filled(module):
    """Every entry another number, so that nothing can be mixed up."""
    for name, table in tables(module).items():
        module.put(name, torch.arange(len(table)), torch.linspace(0.1, 0.9, len(table)) + len(name))
    return module


def objective(on_host, dtype, device):
    """Two towers with both kinds of memory."""
    result = small.objective("individual", estimator=lambda: BUILD["estimator"](small.N, on_host=on_host))
    for view in result.host.views:
        result.predictors[view] = BUILD["temperatures"](small.N, on_host=on_host)
    return result.to(device, dtype)


@both
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_four_bytes_per_sample_and_table(build, on_host, default):
    """Also where the default is another precision, as it is while some libraries load a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        module = build(1000, on_host=on_host)
    finally:
        torch.set_default_dtype(before)
    for table in tables(module).values():
        assert table.untyped_storage().nbytes() == 4 * 1000
    shared = sum(buffer.nbytes for buffer in module.buffers()) - 4 * 1000 * len(module.memory)
    assert shared <= 8  # the number of steps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twenty_steps_end_in_the_same_bits(dtype, device):
    pairs = [x.to(device) for x in small.data(dtype=dtype)]
    results = []
    for on_host in (False, True):
        trained = objective(on_host, dtype, device)
        plan = [index.to(device) for index in small.batches(20)]
        small.train(trained, small.optimizer(trained), plan, pairs)
        results.append(trained.to("cpu"))
    small.assert_same_state(*results)
    untrained = objective(True, dtype, "cpu")
    for now, start in zip(results[1].memory_modules(), untrained.memory_modules(), strict=True):
        for name in now.memory:
            assert not torch.equal(tables(now)[name], tables(start)[name]), name


@both
def test_the_tables_stay_where_they_are(build):
    module = filled(build(on_host=True))
    before, where = copy.deepcopy(tables(module)), addresses(module)
    for move in ("half", "bfloat16", "float"):
        getattr(module, move)()
        assert addresses(module) == where, move
    module.to("meta")  # a device like any other, but for its lack of numbers
    assert addresses(module) == where
    with pytest.raises(NotImplementedError, match="meta"):
        torch.nn.Sequential(module, torch.nn.Linear(1, 1, device="meta")).to("cpu")
    assert addresses(module) == where
    for name, table in tables(module).items():
        assert torch.equal(table, before[name])


@both
def test_what_moves_a_module_never_sees_its_tables(build):
    """Not even for a moment: they may be larger than the device's memory."""
    seen = []

    def move(x):
        seen.append(x.numel())
        return x.clone()

    module = build(on_host=True)
    where = addresses(module)
    module._apply(move)
    assert max(seen) <= 1
    assert addresses(module) == where


@both
def test_precision_is_that_of_the_other_placement(build):
    for moves in (["double"], ["double", "half"], ["double", "float"], ["half", "double"]):
        modules = [filled(build(on_host=on_host)) for on_host in (False, True)]
        for module in modules:
            for move in moves:
                getattr(module, move)()
        small.assert_same_state(*modules)
        for first, second in zip(*(tables(module).values() for module in modules), strict=True):
            assert first.dtype == second.dtype, moves


def test_a_whole_objective_moves_around_its_tables():
    moved = objective(True, torch.float32, "cpu").to("meta")
    assert all(parameter.is_meta for parameter in moved.host.parameters())
    for staged in moved.memory_modules():
        assert not any(table.is_meta for table in tables(staged).values())
    assert all(staged.steps.is_meta for staged in moved.memory_modules() if hasattr(staged, "steps"))


@pytest.mark.skipif(CUDA, reason="the next test does it with a real device")
@both
def test_slices_travel_to_the_index_and_back(build):
    """Torch's own fake tensors follow devices that this machine lacks."""
    module = filled(build(on_host=True))
    where = addresses(module)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to("cuda")
        index = torch.tensor([3, 1], device="cuda")
        for name in module.memory:
            entries = module.read(name, index)
            assert entries.device.type == module.read_nothing(name).device.type == "cuda"
            assert entries.shape == (2,)
            module.put(name, index, entries)
    assert addresses(module) == where
    assert {table.device.type for table in tables(module).values()} == {"cpu"}


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@both
def test_pinned_memory_and_slices_on_the_device(build):
    module = filled(build(on_host=True)).cuda()
    index = torch.tensor([3, 1], device="cuda")
    for name in module.memory:
        entries = module.read(name, index)
        assert entries.is_cuda
        assert module.read_nothing(name).is_cuda
        module.put(name, index, entries + 1)
        assert torch.equal(tables(module)[name][[3, 1]], entries.cpu() + 1)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assigned = build(on_host=True)
    assigned.load_state_dict({k: v.cuda() for k, v in module.state_dict().items()}, assign=True)
    for clone in (
        module,
        module.double(),
        copy.deepcopy(module),
        torch.load(file, map_location="cuda", weights_only=False),
        assigned,
    ):
        assert all(table.is_pinned() for table in tables(clone).values())


@both
def test_copies_and_saved_modules_behave_alike(build):
    module = filled(build(on_host=True))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for clone in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        small.assert_same_state(clone, module)
        assert not set(addresses(clone).values()) & set(addresses(module).values())
        where = addresses(clone)
        assert addresses(clone.to("meta")) == where


@both
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("to_host", [False, True])
def test_state_dicts_fit_both_placements(build, to_host, assign):
    source, target = filled(build(on_host=not to_host)), build(on_host=to_host)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    assert list(source.state_dict()) == list(target.state_dict())
    target.load_state_dict(torch.load(file), assign=assign)
    small.assert_same_state(source, target)


@both
def test_a_state_dict_is_no_second_copy(build):
    module = build(on_host=True)
    state = module.state_dict()
    assert {name: state[name].data_ptr() for name in module.memory} == addresses(module)


@both
def test_a_table_of_another_size_is_refused(build):
    with pytest.raises(ValueError, match=r"expected the memory of 7 samples.*received one of 5"):
        build(7, on_host=True).load_state_dict(build(5).state_dict())


def test_a_parameter_of_the_base_optimizer_cannot_stay_behind():
    with pytest.raises(
        ValueError, match=r"expected an update.*on_host=True, received update=None.*GradientUpdate"
    ):
        dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0, update=None, on_host=True)
