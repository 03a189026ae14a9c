"""The table: one line for every estimator, as in Tables 1 to 3 of Echraibi et al. (2020)."""

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table

Row = dict[str, Any]


def tabulate(title: str, estimators: Sequence[str], runs: Sequence[Row], noise: Sequence[Row], samples: int) -> Table:
    """Bounds and times from `runs`, mean and standard deviation over seeds; gradient variances from `noise`."""
    table = Table(title=title)
    headings = (
        "estimator",
        "ELBO\ntrain",
        "ELBO\ntest",
        f"{samples} draws\ntest",
        "var.\nfirst",
        "var.\ntrained",
        "ms\na step",
        "s\nan epoch",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=heading == "estimator")
    for name in estimators:
        own = [run for run in runs if run["estimator"] == name]
        variance = {row["stage"]: row["variance"] for row in noise if row["estimator"] == name}
        table.add_row(
            name,
            *(spread([run[bound] for run in own]) for bound in ("train_elbo", "test_elbo", "test_bound")),
            *(f"{variance[stage]:.2g}" for stage in ("first", "trained")),
            f"{1000 * median(run['step_seconds'] for run in own):.2f}",
            f"{median(run['epoch_seconds'] for run in own):.3f}",
        )
    return table


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value only itself."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
