"""`compiled.explain(...)`: the sites of a graph as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from tabulate import tabulate

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.printing.dot import ratios
from propc.printing.text import ratio, runs
from propc.propagators import Plain
from propc.runtime.backend import Report

HEADERS = (
    "site",
    "distribution",
    "shape",
    "estimator",
    "why",
    "messages in",
    "messages out",
    "costs after it",
    "fused call",
    "line",
)
RATIO = "signal/noise"
AGAIN = "run again"
JUMPS = "jumps"


@dataclass(frozen=True)
class Explanation:
    """One row for each site; prints as a table, in notebooks too.

    Columns:
        messages in: what arrives at the site in the reverse pass: the cotangent on its sample,
            and the costs that send their values.
        messages out: the distribution's tensors that it sends cotangents to.
        fused call: in which call of the autograd engine; empty where the site only draws, or where nodes are
            visited one by one.
        jumps: only where a cost is known to jump along the path of a draw, by how much and at which line.
        run again: only under `propc.passes.Checkpoint`, the block in which the reverse pass runs the site again; empty
            where it is kept.
        signal/noise: only where it was measured (`propc.signal_to_noise`), beside the estimator.

    Attributes:
        graph: after all passes.
        snr: signal-to-noise ratios by site; None to leave the column out.
        backend: what the backend has made of the program, and what it could not compile; None on `eager`.

    Raises:
        PropcValueError: a ratio of what is no site.
    """

    graph: PropagationGraph
    snr: Mapping[str, float] | None = None
    backend: Report | None = None

    def __post_init__(self) -> None:
        ratios(self.graph, self.snr)  # checks their names

    @property
    def headers(self) -> tuple[str, ...]:
        """The names of the columns: `HEADERS`, and those of what was measured or runs again."""
        beside = HEADERS.index("estimator") + 1
        measured = () if self.snr is None else (RATIO,)
        again = (AGAIN,) if self.graph.schedule.blocks else ()
        jumps = (JUMPS,) if any(site.jumps for site in self.graph.sites) else ()
        return (*HEADERS[:beside], *measured, *HEADERS[beside:-1], *jumps, *again, HEADERS[-1])

    @property
    def rows(self) -> list[dict[str, str]]:
        """The table as records, with the keys of `headers`."""
        influence = self.graph.influence
        costs: dict[str, list[str]] = {name: [] for name in influence.draws}
        for receiver in self.graph:
            if isinstance(receiver, (Cost, Resample)):
                for name in influence.named(influence.at(receiver).any):
                    costs[name].append(receiver.name)
        sent: dict[str, list[str]] = {site.name: [] for site in self.graph.sites}
        for route in self.graph.routes:
            for target in (t for t in route.targets if t.site in sent):
                sent[target.site].append(route.source)
        sites = [site for site in self.graph.sites if not site.copy_of]
        return [self._row(site, sent[site.name], costs[site.name]) for site in sites]

    def _row(self, site: Site, sent: Iterable[str], costs: Iterable[str]) -> dict[str, str]:
        plain = isinstance(site.rule, Plain)
        incoming = ["cotangent"] if site.rule is not None and site.rule.passes_path else []
        values = (
            site.name,
            site.distribution(self.graph),
            str(list(site.shape)),
            site.estimator,
            self._why(site),
            _listed([*incoming, *sent]),
            "" if plain else self._sent_on(site),
            _listed(costs),
            "" if plain or not self.graph.schedule.engine_calls else "1",
            str(site.where),
        )
        row = dict(zip(HEADERS, values))
        if self.snr is not None:
            row[RATIO] = ratio(self.snr[site.name]) if site.name in self.snr else ""
        row[JUMPS] = ", ".join(map(str, site.jumps))
        if AGAIN in self.headers:
            row[AGAIN] = self._again(site)
        return {header: row[header] for header in self.headers}

    def _again(self, site: Site) -> str:
        """The block in which the reverse pass runs the site again."""
        blocks = self.graph.schedule.blocks
        return next((f"block {i} of {len(blocks)}" for i, names in enumerate(blocks, 1) if site.name in names), "")

    def _why(self, site: Site) -> str:
        """Why it has its estimator; how it takes variances at a weighting target."""
        expand = next((self.graph[ref.node] for ref in site.tangents if ref is not None), None)
        return f"{site.reason}; weights from {expand.way}" if isinstance(expand, Expand) else site.reason

    def _sent_on(self, site: Site) -> str:
        """The φ that a gradient can go to."""
        wanted = (
            field
            for field, ref in zip(site.spec.fields, site.inputs)
            if self.graph[ref.node].outputs[ref.port].requires_grad
        )
        return ", ".join(wanted)

    def __str__(self) -> str:
        return self._table("simple") + (f"\n\n{self.backend}" if self.backend is not None else "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table("html") + (f"<pre>{escape(str(self.backend))}</pre>" if self.backend is not None else "")

    def _table(self, form: str) -> str:
        cells = [list(row.values()) for row in self.rows]
        return tabulate(cells, headers=self.headers, tablefmt=form, disable_numparse=True)


def _listed(names: Iterable[str]) -> str:
    """Names once each, runs of numbered ones by their ends."""
    return runs(dict.fromkeys(names))
