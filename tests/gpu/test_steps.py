"""Training steps on a card: none waits for the device, and what a loss does can be captured in a CUDA graph.

The same steps run here on the CPU, where nothing can wait: so that a fault in the tests themselves shows.
"""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp.predictors import HiddenEncoder, StatisticsEncoder, SumEncoder
from dro_temp.state import checks_now

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@contextmanager
def no_waits(device):
    """PyTorch raises at a call that waits for the device."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def stepper(objective, args, batch, device):
    """A step with AdamW, in mixed precision on a card."""
    objective = objective.to(device)
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = dt.CompositionalOptimizer(
        torch.optim.AdamW(objective.param_groups(lr=1e-3), **fused), objective
    )
    seen = []

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = objective(*args, **batch).loss
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())

    return step, seen


def pairs(recipe, device, **options):
    """A linear CLIP of 64 pairs, and samples numbered on the device."""
    torch.manual_seed(0)
    n, samples = 64, 2048
    host = dt.hosts.TwoTower(nn.Linear(48, 32), nn.Linear(40, 32))
    batch = torch.randn(n, 48, device=device), torch.randn(n, 40, device=device)
    index = torch.randperm(samples, device=device)[:n]
    return stepper(recipe(host, samples, **options), batch, {"index": index}, device)


def assert_steps_do_not_wait(step, seen, device):
    for _ in range(3):  # compilation, optimizer state, a queue that fills
        step()
    with no_waits(device):
        step()
        step()
    losses = torch.stack(seen)
    assert losses.isfinite().all()
    assert losses[-1] != losses[0]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (dt.recipes.tempnet, {"width": 32}),
        (dt.recipes.sogclr, {}),
        (dt.recipes.isogclr, {}),
        (dt.recipes.noisy_pairs, {"steps": 3}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_clip_does_not_wait(recipe, options, device):
    assert_steps_do_not_wait(*pairs(recipe, device, **options), device)


@pytest.mark.gpu
@pytest.mark.xfail(reason="how many keys a queue leaves out is read", raises=RuntimeError, strict=True)
def test_a_queue_does_not_wait():
    """It does: the size of a row's support must be known."""
    device = torch.device("cuda")
    options = {"width": 32, "queue": 128, "replay": 16, "rho": 1.0}
    assert_steps_do_not_wait(*pairs(dt.recipes.tempnet_queued, device, **options), device)


def test_a_classifier_does_not_wait(device):
    torch.manual_seed(0)
    labels = torch.randint(50, (64,), device=device)
    host = dt.hosts.Classifier(nn.Linear(48, 32), nn.Linear(32, 50))
    predictor = dt.TempNet(HiddenEncoder(32, width=16), tau_min=0.1, tau_max=4.0)
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(3.0))
    step, seen = stepper(objective, (torch.randn(64, 48, device=device), labels), {}, device)
    assert_steps_do_not_wait(step, seen, device)


@pytest.mark.slow
def test_a_language_model_waits_only_where_labels_are_counted(device):
    """Its other wait is in transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    both = SumEncoder([HiddenEncoder(32, width=16), StatisticsEncoder(width=16)])
    predictor = dt.TempNet(both, tau_min=0.1, tau_max=2.0)
    objective = dt.Objective(dt.hosts.CausalLM(model), predictor, dt.KLRobustLoss(4.0))
    ids = torch.randint(300, (2, 16), device=device)
    step, seen = stepper(objective, (), {"input_ids": ids, "labels": ids}, device)
    for _ in range(3):
        step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{w.filename}:{w.lineno}"
        for w in caught
        if "synchroniz" in str(w.message) and "/dro_temp/" in w.filename
    ]
    assert len(waits) <= 1, waits
    assert torch.stack(seen).isfinite().all()


def test_a_wrong_sample_number_is_noticed_a_step_later(device):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    objective = dt.recipes.sogclr(host, 16).to(device)
    batch = torch.randn(8, 6, device=device), torch.randn(8, 5, device=device)
    index = torch.arange(8, device=device)
    wrong = index.clone()
    wrong[3] = 99

    def two_steps():
        objective(*batch, index=wrong).loss.backward()
        objective.commit()
        objective(*batch, index=index)

    with pytest.raises((ValueError, IndexError), match="99"):
        two_steps()
    with checks_now(), pytest.raises((ValueError, IndexError), match="99"):
        objective(*batch, index=wrong)


@pytest.mark.gpu
def test_a_loss_is_captured_in_a_cuda_graph():
    """Forward and backward over a vocabulary, replayed on other numbers."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    n, d, m = 512, 256, 32_000
    hidden = torch.randn(n, d, device=device, dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(m, d, device=device) * d**-0.5).bfloat16().requires_grad_()
    target = torch.randint(m, (n,), device=device)
    tau = torch.full((n,), 0.8, device=device)
    loss = dt.KLRobustLoss(2.0, backend="triton")

    def step():
        hidden.grad = weight.grad = None
        output = loss.evaluate(dt.Rows(dt.LinearScores(hidden, weight), target), tau, check=False)
        output.values.mean().backward()
        return output.values.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = step()
    captured = (hidden.grad, weight.grad)
    with torch.no_grad():
        hidden.copy_(torch.randn(n, d, device=device))
        target.copy_(torch.randint(m, (n,), device=device))
    graph.replay()
    found = [x.clone() for x in (values, *captured)]
    expected = [step(), hidden.grad, weight.grad]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_towers_compiled_to_cuda_graphs_train_alike():
    """`mode="reduce-overhead"` reuses the memory of a tower's outputs in its next call: nothing may keep them."""
    device = torch.device("cuda")
    results = []
    for mode in (None, "reduce-overhead"):
        torch.manual_seed(0)
        towers = [nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16)).to(device) for _ in range(2)]
        called = towers if mode is None else [torch.compile(tower, mode=mode) for tower in towers]
        objective = dt.recipes.sogclr(dt.hosts.TwoTower(*called), 256).to(device)
        optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
        losses = []
        for seed in range(6):
            g = torch.Generator(device).manual_seed(seed)
            x, y = (torch.randn(64, 48, device=device, generator=g) for _ in range(2))
            index = torch.randperm(256, device=device, generator=g)[:64]
            optimizer.zero_grad()
            loss = objective(x, y, index=index).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone())
        results.append([*losses, *(p.detach() for tower in towers for p in tower.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)
