"""Where numbers of a training are logged, and what happens to them when a run resumes."""

import sys

import picture_files as files
import pytest

pytest.importorskip("accelerate")

from dro_temp.cli.main import main
from dro_temp.cli.trackers import CsvLog, trackers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_csv_log_gets_columns_and_forgets_steps_that_are_taken_again(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    log.log({"loss": 1.5}, 1)
    log.log({"val": 0.25}, 2)
    log.log({"loss": 1.0, "val": 0.5}, 3)
    assert path.read_text() == "step,loss,val\n1,1.5,\n2,,0.25\n3,1.0,0.5\n"
    again = CsvLog(path, 2)
    again.log({"loss": 0.5}, 3)
    assert path.read_text() == "step,loss,val\n1,1.5,\n2,,0.25\n3,0.5,\n"


def test_a_csv_log_that_was_cut_goes_on(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,1.5\n2,")
    CsvLog(path, 5).log({"loss": 0.5}, 6)
    assert path.read_text() == "step,loss\n1,1.5\n2,\n6,0.5\n"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_says_what_installs_it(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[log\]'"):
        trackers(("csv", name), tmp_path, 0)


@pytest.mark.slow
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data, run = files.write_classes(tmp_path / "data", 40), tmp_path / "run"
    options = ["--data", str(data), "--epochs", "1", "--batch", "16", "--log", "[tensorboard]"]
    assert main(["vision", "fit", str(run), *options]) == 0
    events = EventAccumulator(str(run / "logs" / "vision"))
    events.Reload()
    assert {"loss", "val/accuracy"} <= set(events.Tags()["scalars"])
    assert not (run / "log.csv").exists()
