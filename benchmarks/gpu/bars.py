"""What each ratio must reach on a GPU, set beside what was measured."""

from dataclasses import dataclass
from typing import Any

MIB_OF_GB = 1e9 / 2**20


@dataclass(frozen=True)
class Bar:
    """The most that a figure may be.

    Args:
        part: of the benchmarks: "rows", "pairs" or "steps".
        case: title of the table.
        contender: row of the table.
        most: the bar.
        over: contender that the time is divided by; None for the table's floor.
        column: what is judged: "median" (ratio of times), "peak_mib", "launches" (more than the first contender's),
            or "waits".
    """

    part: str
    case: str
    contender: str
    most: float
    over: str | None = None
    column: str = "median"

    @property
    def text(self) -> str:
        """The bar in words."""
        of = {
            "median": f"time over {self.over or 'the floor'}",
            "peak_mib": "peak memory, MiB",
            "launches": "launches added",
            "waits": "waits for the device",
        }
        return f"{self.case}: {self.contender}, {of[self.column]}"

    def measured(self, results: dict[str, Any]) -> float | None:
        """The figure, or None where a contender did not run."""
        table = results.get(self.part, {}).get(self.case, {})
        row = table.get(self.contender)
        if row is None or self.column not in row:
            return None
        if self.column == "launches":
            return float(row["launches"] - next(iter(table.values()))["launches"])
        if self.column != "median":
            return float(row[self.column])
        if self.over is None:
            return float(row["median"])
        return float(row["ms"] / table[self.over]["ms"]) if self.over in table else None


def _rows() -> list[Bar]:
    bars = []
    for shape in ((8192, 2048, 128256), (4096, 4096, 128256)):
        case = f"rows {shape}"
        graphs = f"{case}, as graphs"
        for name, most in (("constant", 1.13), ("hidden+statistics", 1.18), ("logits", 1.25)):
            bars.append(Bar("rows", graphs, f"{name}, bf16 scores", most))
        bars.append(Bar("rows", graphs, "constant, fp32 scores", 1.25))
        bars.append(Bar("rows", f"{case}, frozen host, as graphs", "hidden+statistics, bf16 scores", 1.5))
        for peer in ("cross-entropy, compiled", "liger"):
            bars.append(Bar("rows", case, "constant, bf16 scores", 1.0, over=peer))
    return bars


def _pairs() -> list[Bar]:
    bars = []
    for d, table, networks in ((512, 2.4, 2.8), (1024, 1.9, 2.3)):
        case = f"pairs 16384, d {d}, bfloat16 features"
        bars.append(Bar("pairs", case, "table", table))
        bars.append(Bar("pairs", case, "TempNets", networks))
        bars.append(Bar("pairs", case, "table", 1 / 1.3, over="open_clip, compiled"))
    case = "pairs 65536, d 512, bfloat16 features"
    bars += [Bar("pairs", case, "table", 2.6), Bar("pairs", case, "table", MIB_OF_GB, column="peak_mib")]
    return bars


def _steps() -> list[Bar]:
    small, large, images, text = (
        "CLIP, ViT-S, 256 pairs",
        "CLIP, ViT-S, 1024 pairs",
        "classifier, ViT-S, 64 images",
        "language model, 8 x 1024 tokens",
    )
    bars = [
        Bar("steps", small, "tempnet", 1.05),
        Bar("steps", large, "tempnet", 1.02),
        Bar("steps", images, "tempnet", 1.05),
        Bar("steps", text, "tempnet, bf16 scores", 1.0),
        Bar("steps", small, "tempnet", 150, column="launches"),
        Bar("steps", images, "tempnet", 60, column="launches"),
    ]
    bars += [Bar("steps", case, "tempnet", 0, column="waits") for case in (small, large, images)]
    return [*bars, Bar("steps", text, "tempnet, bf16 scores", 0, column="waits")]


BARS = (*_rows(), *_pairs(), *_steps())


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar, the figure, and whether it passes; None where it was not measured."""
    found = []
    for bar in BARS:
        figure = bar.measured(results)
        found.append(
            {
                "bar": bar.text,
                "most": bar.most,
                "measured": figure,
                "passes": None if figure is None else figure <= bar.most,
            }
        )
    return found


def show(judged: list[dict[str, Any]]) -> None:
    """The final table."""
    width = max(len(row["bar"]) for row in judged)
    print(f"\n{'bar':{width}}  {'at most':>9} {'measured':>9}")
    for row in judged:
        if row["measured"] is None:
            print(f"{row['bar']:{width}}  {row['most']:9.3f} {'-':>9}  not measured")
        else:
            verdict = "pass" if row["passes"] else "FAIL"
            print(f"{row['bar']:{width}}  {row['most']:9.3f} {row['measured']:9.3f}  {verdict}")
    measured = [row for row in judged if row["measured"] is not None]
    print(f"{sum(row['passes'] for row in measured)} of {len(measured)} measured bars pass")
