"""Whole training steps, AdamW included, in mixed precision: a CLIP, a classifier, a language model.

The work on the device differs little from the baseline's; what costs time is launches, and waits that keep the host
from launching ahead. Both are counted. A table is of steps in a row, as training runs them; a second one is of steps
that the host waits for one by one, which shows all of a step's own launches.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import timm
import torch
import torch.nn.functional as F

import dro_temp as dt
from benchmarks.gpu.measure import busy_ms, compare

Step = Callable[[], object]
SAMPLES = 100_000
#: Steps that are timed together.
IN_A_ROW = 4


def adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True)


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Where the host waited for the device inside, as PyTorch tells."""
    places: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places.append(
                f"{warning.filename.rsplit('/', 2)[-2]}/{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
            )


def objective_step(objective: dt.Objective, args: tuple, batch: dict) -> Step:
    optimizer = dt.CompositionalOptimizer(adamw(objective.param_groups(lr=1e-5)), objective)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = objective(*args, **batch).loss
        loss.backward()
        optimizer.step()

    return step


def towers(n: int, d: int = 512) -> dict[str, Step]:
    """A ViT-S and a bag of words; open_clip's loss is the baseline."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    image = timm.create_model("vit_small_patch16_224", num_classes=d).to(device)
    text = torch.nn.Sequential(torch.nn.EmbeddingBag(30_000, 512), torch.nn.Linear(512, d)).to(device)
    tokens = torch.randint(30_000, (n, 32), device=device)
    images = torch.randn(n, 3, 224, 224, device=device)
    index = torch.randperm(SAMPLES, device=device)[:n]
    scale = torch.nn.Parameter(torch.tensor(14.0, device=device))
    steps: dict[str, Step] = {}
    try:
        from open_clip.loss import ClipLoss

        clip_loss: Callable[..., torch.Tensor] = ClipLoss()
    except ImportError:
        print("open_clip is not installed; its loss is written here")
        place = torch.arange(n, device=device)

        def clip_loss(x, y, scale):
            logits = scale * x @ y.T
            return (F.cross_entropy(logits, place) + F.cross_entropy(logits.T, place)) / 2

    optimizer = adamw([*image.parameters(), *text.parameters(), scale])

    def open_clip() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            x, y = F.normalize(image(images), dim=1), F.normalize(text(tokens), dim=1)
            loss = clip_loss(x, y, scale)
        loss.backward()
        optimizer.step()

    steps["open_clip"] = open_clip
    for name, options in (("tempnet", {"width": d}), ("isogclr", {}), ("sogclr", {}), ("infonce", None)):
        host = dt.hosts.TwoTower(image, text)
        recipe = getattr(dt.recipes, name)
        objective = recipe(host) if options is None else recipe(host, num_samples=SAMPLES, **options)
        batch = {} if options is None else {"index": index}
        steps[name] = objective_step(objective.to(device), (images, tokens), batch)
    return steps


def classifier(n: int = 64) -> dict[str, Step]:
    """A ViT-S of 1,000 classes."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=1000).to(device)
    images, labels = torch.randn(n, 3, 224, 224, device=device), torch.randint(1000, (n,), device=device)
    optimizer = adamw(model.parameters())

    def cross_entropy() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(384), tau_min=0.1, tau_max=4.0)
    objective = dt.Objective(dt.hosts.Timm(model), tempnet, dt.KLRobustLoss(3.0)).to(device)
    return {"cross-entropy": cross_entropy, "tempnet": objective_step(objective, (images, labels), {})}


def language_model(batch: int = 8, length: int = 1024) -> dict[str, Step]:
    """A Llama of 376 M parameters with a vocabulary of 128,256, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device("cuda")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(device, torch.bfloat16)
    ids = torch.randint(config.vocab_size, (batch, length), device=device)
    optimizer = adamw(model.parameters())

    def hugging_face() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    steps: dict[str, Step] = {"hugging face": hugging_face}
    for name, score_dtype in (("tempnet, fp32 scores", None), ("tempnet, bf16 scores", torch.bfloat16)):
        host = dt.hosts.CausalLM(model, score_dtype=score_dtype)
        both = dt.predictors.SumEncoder(
            [dt.predictors.HiddenEncoder(1024, width=64), dt.predictors.StatisticsEncoder(width=64)]
        )
        objective = dt.Objective(host, dt.TempNet(both, tau_min=0.1, tau_max=2.0), dt.KLRobustLoss(4.0)).to(
            device
        )
        ours = dt.CompositionalOptimizer(adamw(objective.param_groups(lr=1e-5)), objective)

        def step(objective=objective, ours=ours) -> None:
            ours.zero_grad()
            objective(input_ids=ids, labels=ids).loss.backward()
            ours.step()

        steps[name] = step
    return steps


CASES = {
    "CLIP, ViT-S, 256 pairs": lambda: towers(256),
    "CLIP, ViT-S, 1024 pairs": lambda: towers(1024),
    "classifier, ViT-S, 64 images": classifier,
    "language model, 8 x 1024 tokens": language_model,
}


def main(rounds: int, device: torch.device) -> dict[str, object]:
    """All cases; launches and waits of each step."""
    results: dict[str, object] = {}
    for title, make in CASES.items():
        steps = make()
        first, common = next(iter(steps)), {"rounds": rounds, "device": device}
        table = compare(title, steps, first, in_a_row=IN_A_ROW, **common)
        alone = f"{title}, one by one"
        results[alone] = compare(alone, steps, first, **common)
        for name in table:
            launches, busy, _ = busy_ms(steps[name])
            with counted_waits() as places:
                steps[name]()
            table[name] |= {"launches": launches, "busy_ms": busy, "waits": len(places)}
            print(
                f"    {name}: {launches} launches, {busy:.2f} ms of work, {len(places)} waits {places[:12]}",
                flush=True,
            )
        results[title] = table
        del steps
        torch.cuda.empty_cache()
    return results
