"""Wrong labels: which loss learns in spite of them, and what tells that a label is wrong?

Three sets of images: scikit-learn's digits (900 to train on), digits of which five classes have 100 images and five
have 3 (right labels), and glyphs by script (2,000, tested on other fonts). A share of the training labels is redrawn
from all classes alike; those to choose options on are right. Every arm has four trials (two learning
rates, two values of what matters most to it) at a seed that is not tested; the one of the best validation accuracy is
trained with five others (divisions, noise, networks). What tells wrong labels is measured among the training labels:
AUROC of the temperature, of how little a sample weighs, and of its loss.

  python benchmarks/noisy_labels.py                    (needs scikit-learn; some two hours on two threads)
  python benchmarks/noisy_labels.py --data digits --noise 0.3
  python benchmarks/noisy_labels.py --data digits --noise 0.3 --arms cross-entropy "tilted, t < 0" --seeds 0 1

Stopped with Ctrl-C, it goes on where it was. Tables, numbers and a plot are written to --out. Losses other than ours
are plain PyTorch.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reproduction.study import Job, job, tuned_and_tested
from wrong_labels.arms import ARMS, BOUND, IMBALANCE_ARMS
from wrong_labels.data import PROBLEMS
from wrong_labels.figure import draw
from wrong_labels.tables import overview, table
from wrong_labels.training import run

IMBALANCED = "digits-100-to-3"
Found = dict[str, dict[float, dict[str, object]]]


def compared(data: str, noise: float, options: argparse.Namespace) -> dict[str, object]:
    """All arms at one share of wrong labels."""
    arms = ARMS | IMBALANCE_ARMS if data == IMBALANCED else dict(ARMS)
    if noise == 0.0:
        del arms[BOUND]  # cross-entropy
    arms = {name: arm for name, arm in arms.items() if options.arms is None or name in options.arms}

    def job_of(arm: str, seed: int, chosen: dict[str, float]) -> Job:
        return job(run, options.out / "runs" / f"{data}-{noise:g}", arm, seed, chosen, data=data, noise=noise)

    trials = {name: arm.trials() for name, arm in arms.items()}
    best, tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    return {"chosen": best, "tests": tests}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="sets of images"
    )
    parser.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0, 0.2, 0.3, 0.4, 0.6],
        help=f"shares redrawn; of {IMBALANCED} none is",
    )
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS | IMBALANCE_ARMS), help="which to compare (default: all)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/noisy-labels"), help="folder of runs and tables"
    )
    options = parser.parse_args()
    found: Found = {}
    for data in options.data:
        for noise in [0.0] if data == IMBALANCED else options.noise:
            result = found.setdefault(data, {})[noise] = compared(data, noise, options)
            text = table(result["tests"], result["chosen"])
            (options.out / f"{data}-{noise:g}.json").write_text(json.dumps(result, indent=1))
            (options.out / f"{data}-{noise:g}.md").write_text(text + "\n")
            print(f"{data}, {100 * noise:g} % of the labels redrawn\n\n{text}\n", flush=True)
        levels = {noise: result["tests"] for noise, result in found[data].items()}
        (options.out / f"{data}.md").write_text(overview(levels) + "\n")
        print(f"{data}\n\n{overview(levels)}\n")
    draw(found, options.out / "noisy_labels.png")


if __name__ == "__main__":
    main()
