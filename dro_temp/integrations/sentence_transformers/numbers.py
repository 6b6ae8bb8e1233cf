"""Sample numbers that reach a loss of sentence-transformers: through the label column, the only way there is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

_LABELS = ("label", "labels", "score", "scores")  # what the trainer takes for labels


def number_samples(dataset: "Dataset") -> "Dataset":
    """A data set with a further column "label", the number of each row.

    Number it once, before it is shuffled or filtered: the numbers must name the same rows in every epoch and run.

    Args:
        dataset: a `datasets.Dataset`.

    Raises:
        TypeError: a data set without rows that can be counted, such as a stream.
        ValueError: it has a column already that the trainer takes for labels.

    Example:
        >>> import datasets
        >>> pairs = datasets.Dataset.from_dict({"anchor": ["a", "b"], "positive": ["A", "B"]})
        >>> number_samples(pairs)["label"][:]
        [0, 1]
    """
    if not (hasattr(dataset, "add_column") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"expected a datasets.Dataset, received {type(dataset).__name__}, whose rows have no numbers. Number each "
            "split by itself; give a stream a column 'label' of its own, the same in every epoch "
            "(dro_temp.datasets.SampleTable makes numbers of keys)."
        )
    taken = [name for name in dataset.column_names if name in _LABELS]
    if taken:
        raise ValueError(
            f"expected a data set without a column of labels, received one with {taken[0]!r}, of which the trainer "
            f"passes only one on. Write dataset.remove_columns({taken[0]!r}) first."
        )
    return dataset.add_column("label", list(range(len(dataset))))
