"""Print the tables of the published results, `benchmarks/results/`, as Markdown; nothing is trained.

python -m benchmarks.studies.show                  # all studies
python -m benchmarks.studies.show wrong_labels
"""

import argparse
from collections.abc import Iterator, Mapping

from benchmarks.studies.calibration.compare import table as calibration
from benchmarks.studies.classifier_gap.compare import table as classifier_gap
from benchmarks.studies.common.summary import Summary, published
from benchmarks.studies.hash_collisions.measure import table as hash_collisions
from benchmarks.studies.language_models.tables import table as language_models
from benchmarks.studies.mixed_sources.tables import table as mixed_sources
from benchmarks.studies.real_language.tables import table as real_language
from benchmarks.studies.self_supervised.compare import at_the_same_temperature
from benchmarks.studies.self_supervised.compare import table as self_supervised
from benchmarks.studies.two_towers.ablation import table as two_towers_ablation
from benchmarks.studies.two_towers.tables import table as two_towers
from benchmarks.studies.wrong_labels.tables import overview
from benchmarks.studies.wrong_labels.tables import table as wrong_labels

#: From a section's name and its summary to its table.
TABLES = {
    "calibration": lambda section, summary: calibration(summary),
    "classifier_gap": lambda section, summary: classifier_gap(summary),
    "hash_collisions": lambda section, summary: hash_collisions(summary),
    "language_models": language_models,
    "mixed_sources": lambda section, summary: mixed_sources(summary),
    "real_language": real_language,
    "self_supervised": lambda section, summary: "\n\n".join(
        [self_supervised(summary), *at_the_same_temperature(summary)]
    ),
    "two_towers": lambda section, summary: two_towers(summary),
    "two_towers_ablation": lambda section, summary: two_towers_ablation(summary),
    "wrong_labels": lambda section, summary: wrong_labels(summary),
}


def tables(study: str) -> Iterator[tuple[str, str]]:
    """Section and table, for all sections of a study's results."""
    sections = published(study)
    for section, summary in sections.items():
        yield section, TABLES[study](section, summary)
    if study == "wrong_labels":
        yield from _overviews(sections)


def _overviews(sections: Mapping[str, Summary]) -> Iterator[tuple[str, str]]:
    levels: dict[str, dict[float, Summary]] = {}
    for summary in sections.values():
        levels.setdefault(summary.about["data"], {})[summary.about["noise"]] = summary
    for data, each in levels.items():
        yield data, overview(each)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(TABLES)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.studies) - set(TABLES)
    if unknown:
        parser.error(f"expected studies of {', '.join(TABLES)}, received {', '.join(sorted(unknown))}")
    for study in options.studies or TABLES:
        for section, table in tables(study):
            print(f"{study}: {section}\n\n{table}\n")


if __name__ == "__main__":
    main()
