"""Several threads, one model: each gets what it would get alone."""

import copy
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import dro_temp as dt

pytest.importorskip("transformers")
import tiny_lms

V, STEPS, ROUNDS = tiny_lms.VOCABULARY, 5, 12


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns after every few instructions, as they do on a busy server after every few forwards."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-6)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def together(*jobs: Callable[[], Any], rounds: int = ROUNDS) -> list[list[Any]]:
    """The results of each job, each in a thread of its own, all of which start every round at once."""
    barrier = threading.Barrier(len(jobs))
    results: list[list[Any]] = [[] for _ in jobs]
    errors: list[BaseException] = []

    def work(job: Callable[[], Any], into: list[Any]) -> None:
        try:
            for _ in range(rounds):
                barrier.wait(timeout=60)
                into.append(job())
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(jobs, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


def same(found: list[list[Any]], expected: list[Any]) -> None:
    """Each round of each job gave what the job gives alone."""
    for rounds, alone in zip(found, expected, strict=True):
        assert len(rounds) == ROUNDS
        for result in rounds:
            torch.testing.assert_close(result, alone, rtol=0, atol=0)


def language_model(kind: str = "llama") -> nn.Module:
    model = tiny_lms.model(kind)
    torch.manual_seed(0)
    nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model


def tempnet(inputs: str = "logits") -> dt.TempNet:
    torch.manual_seed(1)
    encoder = (
        dt.predictors.LogitEncoder(V, width=8)
        if inputs == "logits"
        else dt.predictors.HiddenEncoder(32, width=8)
    )
    return tiny_lms.tempnet(encoder)


def tokens(seed: int, batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(50, V, (batch, length), generator=torch.Generator().manual_seed(seed))


def generating(model: nn.Module, processor: Any, prompt: torch.Tensor) -> Callable[[], Any]:
    def job() -> tuple[torch.Tensor, torch.Tensor]:
        options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
        text = model.generate(prompt, logits_processor=[processor], **options)
        return text, processor.temperatures

    return job


def forwarding(host: dt.HostAdapter, prompt: torch.Tensor) -> Callable[[], Any]:
    def job() -> tuple[torch.Tensor, torch.Tensor]:
        rows = host(input_ids=prompt)["token"]
        return rows.features.detach(), rows.dense_scores.detach()

    return job


# --- Generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["logits", "hidden"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_two_threads_generate(kind, shared, inputs):
    model, network = language_model(kind), tempnet(inputs)
    first = dt.TemperatureLogitsProcessor(model, network)
    second = first if shared else dt.TemperatureLogitsProcessor(model, network)
    # As many rows in both: nothing but the numbers tells whose they are.
    jobs = [generating(model, first, tokens(1)), generating(model, second, tokens(2))]
    alone = [job() for job in jobs]
    assert not torch.equal(alone[0][1], alone[1][1])
    same(together(*jobs), alone)


def test_threads_share_a_processor_at_other_lengths_and_modes():
    model, network = language_model(), tempnet()
    processor = dt.TemperatureLogitsProcessor(model, network)

    def beams() -> torch.Tensor:
        options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "num_beams": 3}
        return model.generate(tokens(3), logits_processor=[processor], **options)

    jobs = [generating(model, processor, tokens(1)), beams, generating(model, processor, tokens(2, 2, 8))]
    same(together(*jobs), [job() for job in jobs])


def test_temperatures_of_a_text_that_another_thread_generated():
    # As with a TextIteratorStreamer: generate runs in a thread of its own, and the first one reads.
    model, network = language_model(), tempnet()
    processor = dt.TemperatureLogitsProcessor(model, network)
    job = generating(model, processor, tokens(1))
    _, expected = job()
    processor.reset()
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert torch.equal(processor.temperatures, expected)
    processor.reset()
    assert processor.temperatures.numel() == 0


def test_a_processor_is_made_while_another_thread_generates():
    model, network = language_model("gemma2"), tempnet()
    jobs = [generating(model, dt.TemperatureLogitsProcessor(model, network), tokens(1))]
    prompt = tokens(2)

    def of_its_own() -> torch.Tensor:
        with dt.TemperatureLogitsProcessor(model, network) as processor:
            return generating(model, processor, prompt)()

    jobs.append(of_its_own)
    same(together(*jobs), [job() for job in jobs])


# --- Hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_a_host_beside_generate(kind):
    model, network = language_model(kind), tempnet()
    processor = dt.TemperatureLogitsProcessor(model, network)
    host = dt.hosts.CausalLM(model, frozen=True)
    jobs = [generating(model, processor, tokens(1)), forwarding(host, tokens(2))]
    same(together(*jobs), [job() for job in jobs])


def test_a_host_beside_the_models_own_forward():
    model = language_model()
    host = dt.hosts.CausalLM(model, frozen=True)

    def own() -> torch.Tensor:
        with torch.no_grad():
            return model(tokens(1)).logits

    jobs = [own, forwarding(host, tokens(2)), own]
    same(together(*jobs), [job() for job in jobs])


@pytest.mark.parametrize("shared", [True, False])
def test_two_hosts_forwards(shared):
    model = language_model()
    first = dt.hosts.CausalLM(model)
    second = first if shared else dt.hosts.CausalLM(model)
    jobs = [forwarding(first, tokens(1)), forwarding(second, tokens(2)), forwarding(first, tokens(3))]
    same(together(*jobs), [job() for job in jobs])


class Records(nn.Module):
    """Notes whether it was in training mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.modes: set[tuple[int, bool]] = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.modes.add((threading.get_ident(), self.training))
        return self.inner(*args, **kwargs)


def test_a_host_is_made_while_another_thread_trains():
    model = language_model()
    model.model.norm = Records(model.model.norm)
    model.train()
    who: list[int] = []

    def trains() -> tuple[torch.Tensor, ...]:
        who[:] = [threading.get_ident()]
        model.zero_grad(set_to_none=True)
        output = model(tokens(1), labels=tokens(1))
        return output.logits.detach(), *torch.autograd.grad(output.loss, list(model.parameters()))

    alone = trains()
    (found, _) = together(trains, lambda: dt.hosts.CausalLM(model, frozen=True))
    same([found], [alone])
    assert {mode for thread, mode in model.model.norm.modes if thread == who[0]} == {True}
    assert all(module.training for module in model.modules())


def test_a_host_is_pickled_and_copied_with_hooks_of_ours():
    model, network = language_model(), tempnet()
    processor = dt.TemperatureLogitsProcessor(model, network)
    job = generating(model, processor, tokens(1))
    expected = job()
    host = copy.deepcopy(dt.hosts.CausalLM(model, frozen=True))
    torch.testing.assert_close(
        forwarding(host, tokens(2))(), forwarding(dt.hosts.CausalLM(model), tokens(2))()
    )
    torch.testing.assert_close(job(), expected)


# --- timm, open_clip, sentence-transformers -------------------------------------------------------------------


def test_first_batches_of_a_timm_model():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    model.fc = nn.Sequential(model.fc)  # where it is another class, no head is looked at
    model.fc = model.fc[0]
    model.global_pool = Records(model.global_pool)
    host = dt.hosts.Timm(model).train()
    for part in model.modules():  # of which the first thread's batch would change the second one's numbers
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    expected = {part: part.training for part in model.modules()}
    batches = [torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(k)) for k in range(2)]

    def job(batch: torch.Tensor) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            host._known = (None, False)  # each batch is a first one
            return host(batch, torch.arange(4))["class"].dense_scores.detach()

        return run

    jobs = [job(batch) for batch in batches]
    same(together(*jobs), [run() for run in jobs])
    assert {mode for _, mode in model.global_pool.modes} == {True}
    assert {part: part.training for part in model.modules()} == expected


def test_numbers_of_two_threads_texts():
    pytest.importorskip("open_clip")
    import open_clip

    from dro_temp.integrations.open_clip import read_numbers

    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 4, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    model = read_numbers(open_clip.CLIP(24, vision, text, output_dict=True)).eval()

    def job(start: int, numbered: bool) -> Callable[[], Any]:
        texts = torch.randint(99, (3, 1, 4), generator=torch.Generator().manual_seed(start))
        own = torch.arange(start, start + 3).view(3, 1, 1)
        texts = torch.cat([texts, own], 2) if numbered else texts[:, 0]

        def run() -> Any:
            output = model(torch.ones(3, 3, 16, 16), texts)
            return output.get("index", torch.tensor(-1))

        return run

    jobs = [job(0, True), job(50, True), job(80, False)]
    alone = [run() for run in jobs]
    assert [x.tolist() for x in alone] == [[0, 1, 2], [50, 51, 52], -1]
    same(together(*jobs), alone)


class Bag(nn.EmbeddingBag):
    def forward(self, features):
        return {"sentence_embedding": super().forward(features["input_ids"])}


def test_held_out_data_beside_training():
    from dro_temp.integrations.sentence_transformers import RobustRankingLoss

    torch.manual_seed(0)
    network = dt.TempNet(16, tau_min=0.01, tau_max=0.5, dropout=0.0)
    loss = RobustRankingLoss(Bag(99, 16), network, dt.KLRobustLoss(1.0)).train()
    loss.model.eval()  # as the trainer does before it evaluates
    seen: set[tuple[int, bool, bool]] = set()
    who: list[int] = []
    host = loss.objective.host
    made = type(host).rows

    def rows(self, *args, **batch):
        seen.add((threading.get_ident(), self.objective_trains, network.training))
        return made(self, *args, **batch)

    columns = [{"input_ids": torch.randint(99, (8, 5))} for _ in range(2)]

    def trains() -> torch.Tensor:
        who[:] = [threading.get_ident()]
        return loss(columns).detach()

    def evaluates() -> torch.Tensor:
        with torch.no_grad():
            return loss(columns)

    jobs = [trains, evaluates]
    alone = [job() for job in jobs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(host), "rows", rows)
        same(together(*jobs), alone)
    assert {modes for thread, *modes in map(tuple, seen) for modes in [tuple(modes)] if thread == who[0]} == {
        (True, True)
    }
    assert host.objective_trains
    assert network.training


def test_unused_parts_are_sought_beside_training():
    torch.manual_seed(0)
    image = Records(nn.Linear(6, 4))
    host = dt.hosts.TwoTower(image, nn.Linear(5, 4)).train()
    batch = torch.randn(4, 6), torch.randn(4, 5)
    who: list[int] = []

    def trains() -> torch.Tensor:
        who[:] = [threading.get_ident()]
        rows = host(*batch)["image"]
        return torch.stack([rows.dense_scores.detach().sum(), torch.tensor(float(host.objective_trains))])

    alone = trains()
    found, unused = together(trains, lambda: dt.hosts.freeze_unused(host, *batch))
    same([found], [alone])
    assert set(itertools.chain.from_iterable(unused)) == set()
    assert {mode for thread, mode in image.modes if thread == who[0]} == {True}
