"""What a comparison of estimators found: records, a table, a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from propc.diagnostics.comparison.power import FALSE_PASS, LEVEL
from propc.errors import PropcValueError, message, nearest
from propc.util.formatting import two_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
HEADERS = (
    *("estimator", "gradient", "bias", "by chance", "in s.e.", "biased", "could miss"),
    *("variance", "time [ms]", "efficiency"),
)


@dataclass(frozen=True)
class Comparison:
    """What `propc.compare` gives. Prints as a table, in notebooks too.

    Attributes:
        name: the program's.
        wrt: names of the tensors whose gradients were compared.
        repeats: gradients that each estimator was asked for, or that it took to see a bias of the size asked for.
        reference: where the reference comes from; empty if there is none.
        gradient: the reference: a tensor, or one for each name where there are several; None if there is none.
        limit: standard errors beyond which a coordinate is called biased, so that chance does so in 1 of 100
            comparisons.
        coordinates: of the gradient.
        rows: a record for each estimator, in the order given:

            - ``estimator``: its label;
            - ``mean``: the mean gradient, as `gradient`;
            - ``bias``: distance of the mean from the reference, and ``stderr``: how far chance alone takes it;
            - ``bias_se``: the largest difference of a coordinate in standard errors, ``worst``: which one,
              ``significant``: whether it is beyond `limit`;
            - ``missed``: the bias of a coordinate that would be called one in 99 of 100 comparisons; smaller ones
              could have been missed; ``missed_share``: over the largest coordinate of `gradient`;
            - ``variance``: of one gradient, summed over coordinates;
            - ``time``: seconds of a step, forward and backward, the median;
            - ``efficiency``: 1 / (variance × time);
            - ``error``: why there are no figures, or they mean little; else empty.
        agreement: who confirms the reference, and how well, or which two disagree, so that there is none and nobody is
            called biased. Empty where the reference was given, and where nothing is random.
    """

    name: str
    wrt: tuple[str, ...]
    repeats: int
    reference: str
    gradient: Any = field(repr=False)
    limit: float
    coordinates: int
    rows: list[Row] = field(repr=False)
    agreement: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, label: str) -> Row:
        """The record of an estimator."""
        for row in self.rows:
            if row["estimator"] == label:
                return row
        raise PropcValueError(
            message(f"no estimator {label!r} was compared", nearest(str(label), [r["estimator"] for r in self.rows]))
        )

    # -- showing ----------------------------------------------------------------------

    def __str__(self) -> str:
        return "\n".join([self._title(), "", self._table("simple"), "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return f"<p>{escape(self._title())}</p>{self._table('html')}{notes}"

    def _title(self) -> str:
        names = list(self.wrt) if len(self.wrt) < 6 else [*self.wrt[:4], f"{len(self.wrt) - 4} more"]
        return f"{self.name}: gradient in {', '.join(names)}, {self.repeats} repeats"

    def _table(self, form: str) -> str:
        cells = [self._cells(row) for row in self.rows]
        align = ["left", *["right"] * (len(HEADERS) - 1)]
        return tabulate(cells, headers=HEADERS, tablefmt=form, disable_numparse=True, colalign=align)

    def _cells(self, row: Row) -> list[str]:
        label = row["estimator"]
        if row["mean"] is None:
            return [label, *["–"] * (len(HEADERS) - 1)]
        verdict = {True: "yes", False: "no", None: "–"}[row["significant"]]
        return [
            label,
            _number(length(row["mean"])),
            _number(row["bias"]),
            _number(row["stderr"]),
            _number(row["bias_se"], 2),
            verdict,
            _percent(row["missed_share"]),
            _number(row["variance"]),
            _number(1e3 * row["time"]),
            _number(row["efficiency"]),
        ]

    def _notes(self) -> list[str]:
        several = self.coordinates != 1
        lines = [self._reference()] + (["of gradients and biases the length is shown"] if several else [])
        if self.reference:
            where, least = ("in a coordinate ", "'s largest coordinate") if several else ("", "")
            lines += [
                f"biased: {where}beyond {self.limit:.1f} standard errors, which chance alone exceeds in 1 of "
                f"{1 / LEVEL:.0f} comparisons",
                f"could miss: the bias {where}that passes in 1 of {1 / FALSE_PASS:.0f} comparisons, in percent of the "
                f"gradient{least}; smaller ones pass more often",
            ]
        lines += ["variance: of one gradient, summed; efficiency: 1 / (variance × seconds of a step)"]
        return lines + [f"{row['estimator']}: {row['error']}" for row in self.rows if row["error"]]

    def _reference(self) -> str:
        if self.reference:
            return f"reference: {self.reference}" + (f"; {self.agreement}" if self.agreement else "")
        if self.agreement:
            return f"reference: none; {self.agreement}, so nobody is called biased"
        return "reference: none, no unbiased estimator works here"

    def plot(self) -> Figure:
        """Bars of bias, variance, time and efficiency, a panel each.

        Returns:
            a matplotlib figure: ``result.plot().savefig("estimators.png")``.

        Raises:
            PropcValueError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise PropcValueError(
                message("plot() needs matplotlib, which is not installed", "Run 'pip install matplotlib'.")
            ) from error
        rows = [row for row in self.rows if row["mean"] is not None]
        figure = Figure(figsize=(12, 1.2 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots(1, len(_PANELS), sharey=True)
        for axis, (key, title, times) in zip(axes, _PANELS):
            _bars(axis, rows, [times * float(row[key]) for row in rows], title)
        axes[0].axvline(self.limit, color="#b83280", linestyle="--", linewidth=1)
        axes[0].invert_yaxis()
        figure.suptitle(self._title(), x=0.01, ha="left", fontsize=10)
        return figure


_PANELS = (
    ("bias_se", "bias, in standard errors", 1.0),
    ("variance", "variance", 1.0),
    ("time", "time of a step [ms]", 1e3),
    ("efficiency", "efficiency, 1 / (variance × s)", 1.0),
)


def _bars(axis: Any, rows: Sequence[Row], values: Sequence[float], title: str) -> None:
    """A horizontal bar for each estimator, on a logarithmic scale where values lie far apart."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    positive = [value for value in finite if value > 0]
    colours = ["#b83280" if row["significant"] else "#2b6cb0" for row in rows]
    bars = axis.barh([row["estimator"] for row in rows], finite, color=colours)
    if positive and max(positive) > 30 * min(positive):
        axis.set_xscale("log")
        axis.set_xlim(left=min(positive) / 3)
    axis.bar_label(bars, [_number(value) for value in values], padding=3, fontsize=8)
    axis.margins(x=0.35)
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def length(gradient: Any) -> float:
    """Of one gradient the value if it is a real number, else the Euclidean length of all."""
    parts = list(gradient.values()) if isinstance(gradient, dict) else [gradient]
    if len(parts) == 1 and parts[0].numel() == 1 and not parts[0].is_complex():
        return float(parts[0])
    return math.sqrt(sum(float(part.abs().square().sum()) for part in parts))


def _number(value: float, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def _percent(share: float) -> str:
    return f"{two_digits(100 * share)}%" if math.isfinite(share) else "–"
