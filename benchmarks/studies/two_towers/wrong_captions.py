"""Captions of other images: do robust losses and temperatures for each input suffer less from them?

The comparison of compare.py with 0, 20 and 40 % of the training captions shuffled among themselves; validation and test
captions are right. Trials are repeated at each share, with half the learning rates: with wrong captions, training
diverges at twice those for every method.

  python -m benchmarks.studies.two_towers.wrong_captions --noise 0.2 0.4
  python -m benchmarks.studies.two_towers.wrong_captions --noise 0.4 --methods infonce tempnet-ours --seeds 0 1
"""

from benchmarks.studies.two_towers.compare import arguments, compared, shared_setting

METHODS = ("infonce", "sogclr", "isogclr", "rgcl-g", "tempnet-paper", "tempnet-ours", "noisy-pairs")


def main() -> None:
    """Run the study at each share of wrong captions."""
    parser = arguments(__doc__, METHODS, "runs/two_towers")
    parser.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0, 0.2, 0.4],
        help="shares of shuffled captions (default: %(default)s)",
    )
    options = parser.parse_args()
    options.rates = options.rates or [2e-3, 4e-3]
    for noise in options.noise:
        compared(shared_setting(options) | {"noise": noise}, options)


if __name__ == "__main__":
    main()
