"""Glyphs with their scripts as classes: the same on every run, splits that do not share fonts, files by class."""

import pytest
import torch

from dro_temp.datasets import GlyphCaptions, GlyphScripts

for package in ("matplotlib", "PIL", "fontTools"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def splits():
    return {split: GlyphScripts(split) for split in ("train", "val", "test")}


def test_every_class_is_in_every_split(splits):
    for split, data in splits.items():
        assert data.labels.bincount(minlength=len(data.classes)).min() >= 10, split
        assert len(data.images) == len(data.labels) == len(data)


def test_labels_are_the_first_words_of_the_names(splits):
    captions = GlyphCaptions("train")
    scripts = [name.split()[0] for name in captions.captions]
    kept = [i for i, script in enumerate(scripts) if script in GlyphScripts.classes]
    data = splits["train"]
    assert len(kept) == len(data)
    for place in range(0, len(kept), 997):
        assert data.classes[data.labels[place]] == scripts[kept[place]]
        assert torch.equal(data.images[place], captions.images[kept[place]])


def test_a_subset_is_drawn_by_the_seed_and_nothing_else():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (GlyphScripts(size=300, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_items_and_transforms():
    data = GlyphScripts("test", size=50, transform=lambda image: image.flatten())
    image, label = data[49]
    assert image.shape == (1024,)
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert label == data.labels[49]
    with pytest.raises(IndexError, match="expected a sample number from 0 to 49, received 50"):
        data[50]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm's reader leaves files to the garbage collector
def test_files_by_class_are_read_by_timm_as_they_were_written(tmp_path):
    data = GlyphScripts("val", size=None)
    folder = data.write(tmp_path / "val")
    timm_data = pytest.importorskip("timm.data")
    read = timm_data.create_dataset("", folder, split="", input_img_mode="L")
    assert len(read) == len(data)
    names = sorted(data.classes)
    import numpy as np

    found = {
        (np.asarray(image).tobytes(), names[label]) for image, label in (read[i] for i in range(0, 400, 7))
    }
    ours = {
        (image.numpy().tobytes(), data.classes[label])
        for image, label in zip(data.images, data.labels, strict=True)
    }
    assert found <= ours


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"expected split to be one of \['train', 'val', 'test'\], received 'tset'"
    ):
        GlyphScripts("tset")
    with pytest.raises(ValueError, match="expected size of at most"):
        GlyphScripts("val", size=10**6)
