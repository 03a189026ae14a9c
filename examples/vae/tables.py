"""The tables: what was learned, and how the gradients were, as in Tables 1 to 3 of Echraibi et al. (2020)."""

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table
from tabulate import tabulate

Row = dict[str, Any]
Line = dict[str, str]


def bounds(estimators: Sequence[str], runs: Sequence[Row]) -> list[Line]:
    """Bounds at the end of the training: means over seeds, with standard deviations."""
    made = []
    for name in estimators:
        own = [run for run in runs if run["estimator"] == name]
        columns = {"ELBO train": "train_elbo", "ELBO test": "test_elbo", "bound test": "test_bound"}
        found = {title: spread([run[key] for run in own]) for title, key in columns.items()}
        made.append({"estimator": name, **found})
    return made


def gradients(estimators: Sequence[str], runs: Sequence[Row], noise: Sequence[Row]) -> list[Line]:
    """Variance and bias of one gradient, and what a step of the training and a whole epoch take."""
    made = []
    for name in estimators:
        stages = {row["stage"]: row for row in noise if row["estimator"] == name}
        variance = {f"var. {stage}": f"{row['variance']:.2g}" for stage, row in stages.items()}
        epoch = median(run["epoch_seconds"] for run in runs if run["estimator"] == name)
        step = median(run["step_seconds"] for run in runs if run["estimator"] == name)
        bias = {f"bias {stage}": share(row) for stage, row in stages.items()}
        times = {"ms a step": f"{1000 * step:.2f}", "s an epoch": f"{epoch:.3f}"}
        made.append({"estimator": name, **variance, **bias, **times})
    return made


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value only itself."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def share(row: Row) -> str:
    """A bias that is more than twice what chance would explain, as a share of the gradient's length."""
    return f"{row['bias'] / row['length']:.0%}" if row["bias"] > 2 * row["stderr"] else "–"


def for_terminal(title: str, lines: Sequence[Line]) -> Table:
    """The lines under a title."""
    table = Table(title=title)
    for heading in lines[0]:
        name = heading == "estimator"
        heading = heading.replace(" ", "\n")
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name, overflow="fold")
    for line in lines:
        table.add_row(*line.values())
    return table


def for_markdown(lines: Sequence[Line]) -> str:
    """The lines as a page shows them."""
    shown = [{**line, "estimator": f"`{line['estimator']}`"} for line in lines]
    align = ["left", *["right"] * (len(lines[0]) - 1)]
    return tabulate(shown, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=align) + "\n"
