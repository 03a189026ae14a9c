"""The table: one line for every estimator, as in Tables 1 to 3 of Echraibi et al. (2020)."""

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from rich.table import Table
from tabulate import tabulate

Row = dict[str, Any]


def lines(estimators: Sequence[str], runs: Sequence[Row], noise: Sequence[Row]) -> list[dict[str, str]]:
    """What stands in the table, by column: bounds and times from `runs`, variances of gradients from `noise`.

    Bounds are means over seeds, with standard deviations.
    """
    made = []
    for name in estimators:
        own = [run for run in runs if run["estimator"] == name]
        variance = {row["stage"]: row["variance"] for row in noise if row["estimator"] == name}
        made.append(
            {
                "estimator": name,
                "ELBO train": spread([run["train_elbo"] for run in own]),
                "ELBO test": spread([run["test_elbo"] for run in own]),
                "bound test": spread([run["test_bound"] for run in own]),
                "var. first": f"{variance['first']:.2g}",
                "var. trained": f"{variance['trained']:.2g}",
                "ms a step": f"{1000 * median(run['step_seconds'] for run in own):.2f}",
                "s an epoch": f"{median(run['epoch_seconds'] for run in own):.3f}",
            }
        )
    return made


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value only itself."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def for_terminal(title: str, made: Sequence[dict[str, str]]) -> Table:
    """The lines under a title."""
    table = Table(title=title)
    for heading in made[0]:
        numbers = heading != "estimator"
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for line in made:
        table.add_row(*line.values())
    return table


def for_markdown(made: Sequence[dict[str, str]]) -> str:
    """The lines as a page shows them."""
    shown = [{**line, "estimator": f"`{line['estimator']}`"} for line in made]
    return tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True) + "\n"
