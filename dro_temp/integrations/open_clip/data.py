"""Numbers for the samples of the data sets that open_clip's main makes."""

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dro_temp._optional import optional_module
from dro_temp.datasets import SampleTable
from dro_temp.integrations.open_clip.numbers import NumberedStream, NumberedTexts


def number(info: Any, args: Any, table_size: int | None) -> int:
    """Give the samples of open_clip's training data numbers; how many there are.

    A row of a CSV file has its place. A sample of shards has the hash of its shard's name and its key, since keys need
    to be unique within a shard only.

    Args:
        info: open_clip's `DataInfo`, whose loader is changed or replaced.
        args: options of open_clip's main.
        table_size: entries for hashes; None: four for each sample.
    """
    loader = info.dataloader
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        info.dataloader = _numbered(loader)
        return len(loader.dataset)  # type: ignore[arg-type]
    if table_size is None:
        data = optional_module("open_clip_train.data", "whose data sets are numbered", extra="clip")
        table_size = 4 * (args.train_num_samples or data.get_dataset_size(args.train_data)[0])
    stages: Any = getattr(getattr(loader, "pipeline", [None])[0], "dataset", None)
    if not isinstance(getattr(stages, "pipeline", None), list) or len(stages.pipeline) < 2:
        raise TypeError(
            f"expected a CSV file or a pipeline of webdataset, received a {type(loader).__name__}. Number the samples "
            "in a loop of your own: NumberedTexts or NumberedStream."
        )
    webdataset = optional_module("webdataset", "whose shards are numbered", extra="clip")
    # The last two stages make a tuple and a batch of what the others made.
    stages.pipeline.insert(-2, webdataset.map(NumberedStream(SampleTable(table_size), key=_shard_and_key)))
    return table_size


def _shard_and_key(sample: Any) -> str:
    return f"{sample['__url__'].rpartition('/')[2]}/{sample['__key__']}"


def _numbered(loader: Any) -> Any:
    """The same loader over texts with numbers; a loader's own data set cannot be changed."""
    names = (
        "batch_size", "sampler", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn",
        "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers",
    )  # fmt: skip
    made: Any = DataLoader(NumberedTexts(loader.dataset), **{name: getattr(loader, name) for name in names})
    made.num_samples, made.num_batches = loader.num_samples, loader.num_batches
    return made
