"""What a profile found: rows, a table, a trace, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from os import PathLike, fspath
from pathlib import Path

from tabulate import tabulate

from propc.diagnostics.profile.chrome_trace import chrome_trace
from propc.diagnostics.profile.node_rows import OVERHEAD, Part, Row, rows
from propc.diagnostics.profile.picture import ProfiledGraph
from propc.diagnostics.profile.timers import Interval
from propc.errors import PropcValueError, message, nearest
from propc.ir.nodes.node import Kind
from propc.printing.text import runs
from propc.util.formatting import milliseconds, percent, size
from propc.util.stopwatch import Seconds

HEADERS = ("stage", "nodes", "calls", "forward [ms]", "reverse [ms]", "share [%]", "allocated", "kept", "line")
NOTES = (
    f"{OVERHEAD}: what is done outside of nodes, such as finding the graph and starting autograd",
    "allocated: in the forward pass; kept: of that, what stays for the reverse pass",
)

KINDS = {kind.value for kind in Kind if kind is not Kind.SEGMENT}  # whose rows are called after them


@dataclass(frozen=True)
class Profile:
    """What `compiled.profile` gives. Prints as a table, in notebooks too.

    Attributes:
        name: the program's.
        repeats: steps that were timed.
        forward, reverse: seconds of a step as it is, without clocks: of the call, and of the reverse pass.
        peak: bytes that a step has at most at one time, beside what was there before.
        compiling: seconds of tracing, of every pass and of the rest, by name, when this call was compiled.
        traces: how often the program has been traced so far, for any call.
        graph: drawn with what every node took: ``profile.graph.render("model.svg")``.
        intervals: which node ran when, in the fastest step with clocks.
    """

    name: str
    repeats: int
    forward: float
    reverse: float
    peak: int
    compiling: Seconds = field(repr=False)
    traces: int
    graph: ProfiledGraph = field(repr=False)
    intervals: tuple[Interval, ...] = field(repr=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What every node took, in the order of the plan; what no node took is the last."""
        return self.graph.parts

    @cached_property
    def rows(self) -> list[Row]:
        """A record for each stage of the program, and for sites, costs, … of one line; those that took longest first.

        - ``name``: the stage's, or those of the nodes; ``call overhead`` for all that is done outside of nodes;
        - ``kind``: ``segment``, ``site``, ``cost``, …; ``nodes``: names of all; ``calls``: in a step;
        - ``estimator``: of a site or propagator; ``where``: the user's file and line;
        - ``forward``, ``reverse``: seconds; ``share``: of the sum over all rows;
        - ``allocated``: bytes that the forward pass takes; ``kept``: of these, what stays for the reverse pass;
          ``reverse_allocated``: bytes that the reverse pass takes.
        """
        return rows(self.parts)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of a stage, or of a node by its name."""
        for row in self.rows:
            if name == row["name"] or name in row["nodes"]:
                return row
        known = [known for row in self.rows for known in (row["name"], *row["nodes"])]
        raise PropcValueError(message(f"the profile has no row {name!r}", nearest(str(name), known)))

    def chrome_trace(self, path: str | PathLike[str]) -> str:
        """Write a trace for chrome://tracing or Perfetto; returns the path.

        It has compiling, pass by pass, and the fastest of the steps, every node in the forward and in the reverse
        pass. For single operations use ``torch.profiler``, where nodes carry the same names.
        """
        about = {part.name: _about(part) for part in self.parts}
        Path(path).write_text(chrome_trace(self.name, self.compiling, self.intervals, about), encoding="utf-8")
        return fspath(path)

    # -- showing ----------------------------------------------------------------------

    def __str__(self) -> str:
        return "\n".join([self._title(), "", self._table("simple"), "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        return f"<p>{escape(self._title())}</p>{self._table('html')}{notes}"

    def _title(self) -> str:
        forward, reverse = milliseconds(self.forward), milliseconds(self.reverse)
        whole = milliseconds(self.forward + self.reverse)
        parts = f" ({forward} forward, {reverse} reverse)" if self.reverse else ""
        return f"{self.name}: {whole} ms a step{parts}, at most {size(self.peak)}; {self.repeats} repeats"

    def _table(self, form: str) -> str:
        align = ["left", "left", *["right"] * 6, "left"]
        cells = [_cells(row) for row in self.rows]
        return tabulate(cells, headers=HEADERS, tablefmt=form, disable_numparse=True, colalign=align)

    def _notes(self) -> list[str]:
        longest = sorted(self.compiling, key=lambda each: -each[1])[:5]
        parts = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in longest)
        whole = milliseconds(sum(seconds for _, seconds in self.compiling))
        times = "once" if self.traces == 1 else f"{self.traces} times"
        return [*NOTES, f"compiled in {whole} ms: {parts}, …; traced {times}"]


def _cells(row: Row) -> list[str]:
    by = f" by {row['estimator']}" if row["estimator"] else ""
    return [
        f"{row['kind'] if row['kind'] in KINDS else row['name']}{by}",
        runs(row["nodes"]),
        str(row["calls"]),
        milliseconds(row["forward"]),
        milliseconds(row["reverse"]),
        percent(row["share"]),
        size(row["allocated"]),
        size(row["kept"]),
        row["where"],
    ]


def _about(part: Part) -> dict[str, object]:
    """What a trace says of a node beside its times."""
    lines = dict.fromkeys(str(node.where) for node in part.nodes)
    return {
        "nodes": [node.name for node in part.nodes],
        "line": ", ".join(lines),
        "allocated [B]": part.allocated,
        "kept [B]": part.kept,
        "allocated in reverse [B]": part.reverse_allocated,
    }
