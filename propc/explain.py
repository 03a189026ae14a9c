"""`compiled.explain(...)`: the sites of a graph as a table for people."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from tabulate import tabulate

from propc.graph import PropagationGraph
from propc.ir import Site
from propc.propagators import Plain

HEADERS = ("site", "distribution", "shape", "estimator", "why", "messages in", "messages out", "costs after it",
           "fused call", "line")


@dataclass(frozen=True)
class Explanation:
    """One row for each site; prints as a table, in notebooks too."""

    graph: PropagationGraph

    @property
    def rows(self) -> list[dict[str, str]]:
        """The table as records, with the keys of `HEADERS`."""
        costs: dict[str, list[str]] = {site.name: [] for site in self.graph.sites}
        for cost in self.graph.costs:
            for name in self.graph.influence.upstream(cost.inputs[0]):
                costs[name].append(cost.name)
        sent: dict[str, list[str]] = {site.name: [] for site in self.graph.sites}
        for route in self.graph.routes:
            for target in route.targets:
                sent[target.site].append(route.source)
        return [self._row(site, sent[site.name], costs[site.name]) for site in self.graph.sites]

    def _row(self, site: Site, sent: list[str], costs: list[str]) -> dict[str, str]:
        plain = isinstance(site.rule, Plain)
        incoming = (["cotangent"] if site.rule is not None and site.rule.passes_path else []) + _short(sent)
        values = (site.name, str(site.spec), str(list(site.shape)), site.estimator, site.reason,
                  ", ".join(incoming), "" if plain else ", ".join(site.spec.fields), ", ".join(_short(costs)),
                  "" if plain else "1", str(site.where))
        return dict(zip(HEADERS, values))

    def __str__(self) -> str:
        return tabulate([list(row.values()) for row in self.rows], headers=HEADERS)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def _short(names: list[str]) -> list[str]:
    """A long list by its ends."""
    return names if len(names) <= 4 else [names[0], f"… ({len(names) - 2})", names[-1]]
