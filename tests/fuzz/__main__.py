"""`python -m tests.fuzz --seeds 0:500 --seconds 600`: the table, and the programs of what is wrong or crashed."""

from __future__ import annotations

import argparse
import sys

import torch

from .campaign import WAYS, Finding, run
from .exact import exact
from .generator import generate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seeds", default="0:500", help="from:to, or one")
    parser.add_argument("--seconds", type=float, default=600.0, help="no new program is begun after so many")
    parser.add_argument("--estimator", nargs="*", choices=sorted(WAYS), help="only these")
    parser.add_argument("--each", type=int, default=4, help="estimators of a program, beside infer")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--show", type=int, metavar="SEED", help="print a seed's program and its exact answer")
    parser.add_argument("--verbose", action="store_true", help="print refusals and warnings too")
    given = parser.parse_args()
    if given.show is not None:
        program = generate(given.show)
        print(program.text, dict(program.parameters), exact(program), sep="\n")
        return 0

    def tell(finding: Finding) -> None:
        if given.verbose and finding.verdict != "right":
            print(f"{finding.program.seed} {finding.way}: {finding.verdict}: {finding.detail}", flush=True)

    first, _, last = given.seeds.partition(":")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    ways = {name: WAYS[name] for name in given.estimator or WAYS}
    torch.distributions.Distribution.set_default_validate_args(True)
    report = run(seeds, given.seconds, ways=ways, each=given.each, backend=given.backend, tell=tell)
    print(report)
    return 1 if report.of("WRONG", "crashed") else 0


if __name__ == "__main__":
    sys.exit(main())
