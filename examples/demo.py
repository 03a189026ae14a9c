"""The demo: both experiments at a size that two cores finish in about a minute.

Run it: `python examples/demo.py`, options: `--help`.
"""

from collections.abc import Sequence

import chaotic_rnn
import logistic_regression
from report import parser

FULL = {logistic_regression: ["--steps", "1000", "--repeats", "100"], chaotic_rnn: ["--repeats", "30"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments and list what they wrote."""
    args = parser("demo", __doc__).parse_args(argv)
    for example, size in FULL.items():
        title, *_ = (example.__doc__ or "").splitlines()
        print(f"\n{title}\n")
        out = args.out / example.__name__
        example.main([*(["--smoke"] if args.smoke else size), "--out", str(out)])

    print("\nWritten by this demo:")
    for path in sorted(args.out.rglob("*.*")):
        print(f"  {path}")


if __name__ == "__main__":
    main()
