"""What makes temperatures of pairs collapse, and what makes them find the optimum: a part at a time.

8,000 glyph-caption pairs, batch 128, 10 epochs, rho 2.5, every arm with the same learning rate of the encoders. Five
divisions of the data, each with a seed of its own. The share of the optimum's gain is taken over the whole training
set, for 500 of its pairs. A run takes about a minute on one thread; finished ones are kept.

  python benchmarks/reproduction/gap_ablation.py
  python benchmarks/reproduction/gap_ablation.py --seeds 0 --workers 1
  python benchmarks/reproduction/gap_ablation.py --size 31000 --epochs 5 --out runs/reproduction/gap-31000
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from glyph_pairs.ablation import ABLATION, LR, RHO
from glyph_pairs.data import Setting
from glyph_pairs.run import trained
from harness.study import cell

from reproduction.study import all_done, job


def run(arm: str, seed: int, options: dict[str, float], *, tuning: bool, setting: Setting) -> dict[str, Any]:
    """One run, in whatever process."""
    return trained(ABLATION[arm], setting, seed, options, tuning=tuning)


def table(tests: list[dict[str, Any]]) -> str:
    """One row for each arm."""
    lines = [
        "| predictor | recovered (%): images | names | rank correlation: images | names | spread of τ, images: its own "
        "| optimum's | lowest mean τ | last | mean R@1 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in ABLATION:
        runs = [test for test in tests if test["arm"] == arm]
        if not runs:
            continue
        gaps = {view: [run["gap"][view] for run in runs] for view in ("image", "text")}
        cells = [cell([100 * g["recovered"] for g in gaps[view]], digits=0) for view in gaps]
        # One temperature has no order.
        ranked = all(g["tau_std"] > 0 for view in gaps for g in gaps[view])
        cells += [
            cell([g["rank_correlation"] for g in gaps[view]], digits=2) if ranked else "" for view in gaps
        ]
        cells += [cell([g[name] for g in gaps["image"]], digits=4) for name in ("tau_std", "optimum_std")]
        cells += [cell([pick(run["taus"]) for run in runs], digits=3) for pick in (min, lambda t: t[-1])]
        lines.append(f"| {arm} | {' | '.join(cells)} | {cell([run['metrics']['mean_r1'] for run in runs])} |")
    return "\n".join(lines)


def main() -> None:
    """Run the ablation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=list(ABLATION), default=list(ABLATION), help="which")
    parser.add_argument("--size", type=int, default=8_000, help="training pairs")
    parser.add_argument("--batch", type=int, default=128, help="pairs per step")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of model and division")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduction/gap"), help="folder of runs and table"
    )
    options = parser.parse_args()
    fixed = {"lr": LR, "rho": RHO}
    setting = Setting(options.size, options.batch, options.epochs)
    folder = options.out / "runs" / ("" if setting == Setting() else setting.name)
    jobs = [
        job(run, folder, arm, seed, fixed, setting=setting) for seed in options.seeds for arm in options.arms
    ]
    tests = all_done(jobs, options.workers, "training")
    (options.out / "gap_ablation.json").write_text(json.dumps(tests, indent=1))
    (options.out / "gap_ablation.md").write_text(table(tests) + "\n")
    print(table(tests))


if __name__ == "__main__":
    main()
