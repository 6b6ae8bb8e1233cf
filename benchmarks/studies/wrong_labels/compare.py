"""Wrong labels: which loss learns in spite of them, and what identifies a wrong label?

Three sets of images: scikit-learn's digits (900 for training); digits of which five classes have 100 images and five
have 3 (all labels right); and glyphs by script (2,000, tested on other fonts). A share of the training labels is
redrawn uniformly from all classes; validation labels are right. Every method has four trials (two learning rates, two
values of its most important option) at a seed that is not tested; the trial with the best validation accuracy is
trained with five others (data splits, wrong labels, networks). The AUROC of a sample's temperature, weight and loss as
detectors of wrong labels is measured on the training labels.

  python -m benchmarks.studies.wrong_labels.compare        (needs scikit-learn; two hours on two threads)
  python -m benchmarks.studies.wrong_labels.compare --data digits --noise 0.3
  python -m benchmarks.studies.wrong_labels.compare --data digits --noise 0.3 --methods cross-entropy "tilted, t < 0"

Interrupt it with Ctrl-C; the same command resumes it. Losses that are not the library's are plain PyTorch.
"""

import argparse

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import Job, Options, tuned_and_tested
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.wrong_labels.data import PROBLEMS
from benchmarks.studies.wrong_labels.figure import draw
from benchmarks.studies.wrong_labels.methods import BASELINE, BOUND, IMBALANCE_METHODS, METHODS
from benchmarks.studies.wrong_labels.tables import TITLE, metrics, overview, table
from benchmarks.studies.wrong_labels.training import run

IMBALANCED = "digits-100-to-3"


def compared(data: str, noise: float, options: argparse.Namespace) -> Summary:
    """All methods at one share of wrong labels."""
    methods = METHODS | IMBALANCE_METHODS if data == IMBALANCED else dict(METHODS)
    if noise == 0.0:
        del methods[BOUND]  # the same as cross-entropy
    methods = {k: m for k, m in methods.items() if k in options.methods}
    extra = {"data": data, "noise": noise}

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        return Job(method, seed, chosen, options.out / "runs" / f"{data}-{noise:g}", run, extra=extra)

    trials = {name: method.trials() for name, method in methods.items()}
    tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    return summarise(tests, metrics, compared=("accuracy", "balanced"), references=(BASELINE,), about=extra)


def main() -> None:
    """Run the study."""
    arguments = parser(__doc__, "runs/wrong_labels", methods=METHODS | IMBALANCE_METHODS)
    arguments.add_argument(
        "--data",
        nargs="+",
        choices=list(PROBLEMS),
        default=list(PROBLEMS),
        help="sets of images (default: all)",
    )
    arguments.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0, 0.2, 0.3, 0.4, 0.6],
        help=f"shares of redrawn labels (default: %(default)s; {IMBALANCED}: always 0)",
    )
    options = arguments.parse_args()
    summaries: dict[str, dict[float, Summary]] = {}
    for data in options.data:
        levels = summaries.setdefault(data, {})
        for noise in [0.0] if data == IMBALANCED else options.noise:
            levels[noise] = compared(data, noise, options)
            publish("wrong_labels", TITLE, f"{data}-{noise:g}", levels[noise], table(levels[noise]), options)
        (options.out / f"{data}.md").write_text(f"{overview(levels)}\n")
        print(f"{data}\n\n{overview(levels)}\n")
    draw(summaries, options.out / "wrong_labels.png")


if __name__ == "__main__":
    main()
