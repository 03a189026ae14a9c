"""From cotangents on φ to those where a weighting target is used, as flat code: one reverse traversal for all parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx.program import type_of
from propc.runtime.weighting.fx_derivative import example, flat
from propc.runtime.weighting.layer_uses import Added, Node, Product, Spread, Uses, execute, operation
from propc.runtime.weighting.per_sample_norms import LAYER, PRODUCT, ROWS

Values = dict[Node, Any]


@dataclass(frozen=True)
class Pulled:
    """Code that pulls cotangents back to a target.

    Attributes:
        code: from the values of `reads` and one cotangent [parts, *φ.shape] for each φ to, for each target, what
            `layout` says.
        reads: nodes of the program: what the reverse pass needs of the forward one, nothing of which is computed again.
        layout: for each target, or the two of a layer, what the code gives: `ROWS`, the gradients of single samples
            [parts, batch, *target.shape]; `PRODUCT`, their factors [parts or 1, batch, T, m] and [parts or 1, batch,
            T, n]; `LAYER`, those of a weight whose layer adds a bias, which is one too.
    """

    code: torch.fx.GraphModule
    reads: tuple[Node, ...]
    layout: tuple[str, ...]


def pulled(code: torch.fx.Graph, uses: Uses, parts: int) -> Pulled:
    """Trace the reverse pass of a program from φ to uses of targets.

    Args:
        code: from targets and other values to φ; it neither writes nor draws.
        parts: how many cotangents on each φ.
    """
    ends: tuple[Node, ...] = code.output_node().args[0]  # type: ignore[assignment]
    nodes = [node for node in code.nodes if node.op != "output" and type_of(node) is not None]
    cotangents = [like.new_empty((parts, *like.shape)) for like in map(example, ends)]
    reverse = _Traversal(code, uses, ends, nodes)
    module, reads = flat(reverse.run, nodes, cotangents)
    return Pulled(module, reads, tuple(reverse.layout))


class _Traversal:
    """The reverse pass, to be traced.

    The program runs under `torch.func.vjp` with a probe at every use of a target: zeros that are added to what a layer
    makes, or the spread tensor itself. The cotangent on a probe is that of every single sample.
    """

    def __init__(self, code: torch.fx.Graph, uses: Uses, ends: Sequence[Node], nodes: Sequence[Node]) -> None:
        self.uses, self.ends, self.nodes = uses, ends, nodes
        self.body = [n for n in code.nodes if n.op not in ("placeholder", "output") and n not in uses.shared]
        found = [use for each in uses.exact.values() for use in each]
        self.spread = list(dict.fromkeys(use for use in found if isinstance(use, Spread)))
        self.layers = list(dict.fromkeys(use.step for use in found if not isinstance(use, Spread)))
        self.leaves = [target for target in uses.exact if target in uses.rows]
        self.layout: list[str] = []

    def run(self, *values: Tensor) -> tuple[Tensor, ...]:
        known: Values = dict(zip(self.nodes, values))
        common = {node: known[node] for node in known if node.op == "placeholder"}
        for step in self.uses.shared:
            common[step] = execute(step, common)
        probes = (
            *(common[leaf] for leaf in self.leaves),
            *(common[use.operand].expand(_shape(use.step)) for use in self.spread),
            *(torch.zeros_like(known[step]) for step in self.layers),
        )
        _, back, own = torch.func.vjp(lambda *at: self._forward(common, at), *probes, has_aux=True)  # type: ignore[misc]
        found = torch.vmap(back)(tuple(values[len(self.nodes) :]))
        own = {**common, **own}
        results = self._results(own, found)
        self.layout = [kind for kind, *_ in results]
        return (*(tensor for _, *each in results for tensor in each), *(own[node] for node in self.nodes))

    def _forward(self, common: Values, probes: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Values]:
        """φ, and the value of every step."""
        leaves, spread, layers = self._sorted(probes)
        env = {**common, **leaves}
        for step in self.body:
            inside = {use.operand: value for use, value in spread.items() if use.step is step}
            value = execute(step, {**env, **inside} if inside else env)
            env[step] = value + layers[step] if step in layers else value
        return tuple(env[end] for end in self.ends), {n: env[n] for n in self.body if type_of(n) is not None}

    def _sorted(self, each: Sequence[Tensor]) -> tuple[Values, dict[Spread, Tensor], Values]:
        """Probes, or their cotangents, by what they stand at."""
        first, second = len(self.leaves), len(self.leaves) + len(self.spread)
        return (
            dict(zip(self.leaves, each[:first])),
            dict(zip(self.spread, each[first:second])),
            dict(zip(self.layers, each[second:])),
        )

    def _results(self, own: Values, found: Sequence[Tensor]) -> list[tuple[Any, ...]]:
        """For each target, or the two of a layer, what it is, and the gradients of single samples or their factors."""
        leaves, spread, layers = self._sorted(found)
        results: list[tuple[Any, ...]] = [(ROWS, cotangent) for cotangent in leaves.values()]
        biases = self._biases()
        for target, uses in self.uses.exact.items():
            products = [_factors(use, own, layers[use.step]) for use in uses if isinstance(use, Product)]
            if products:
                results.append((LAYER if target in biases else PRODUCT, *_joined(products)))
        sums: Values = {}
        for at, cotangent in spread.items():
            _add(sums, at.operand, _summed(cotangent, own[at.operand]))
        done = {*biases.values(), *leaves}
        rest = [t for t, uses in self.uses.exact.items() if t not in done and not isinstance(uses[0], Product)]
        for use in dict.fromkeys(use for t in rest for use in self.uses.exact[t] if isinstance(use, Added)):
            _add(sums, use.operand, _summed(_features_last(use.step, layers[use.step]), own[use.operand]))
        sums = self._to_targets(rest, sums, own)
        return [*results, *((ROWS, sums[target]) for target in rest)]

    def _biases(self) -> dict[Node, Node]:
        """For a weight that one layer reads, the bias that it adds, which nothing else reads."""
        added = {uses[0].step: t for t, uses in self.uses.exact.items() if uses and uses == (Added(uses[0].step, t),)}
        found = {}
        for target, uses in self.uses.exact.items():
            if len(uses) == 1 and isinstance(uses[0], Product) and uses[0].outputs_first and uses[0].step in added:
                found[target] = added[uses[0].step]
        return found

    def _to_targets(self, targets: Sequence[Node], sums: Values, own: Values) -> Values:
        """Cotangents of single samples on what is made of targets for all samples alike, pulled back to the targets."""
        found = {node: value for node, value in sums.items() if node in targets}
        made = [node for node in sums if node not in found]
        if not made:
            return found

        def region(*points: Tensor) -> tuple[Tensor, ...]:
            env = {**own, **dict(zip(targets, points))}
            for step in self.uses.shared:
                env[step] = execute(step, env)
            return tuple(env[node] for node in made)

        _, back = torch.func.vjp(region, *(own[target] for target in targets))  # type: ignore[misc]
        each: Callable[..., Any] = torch.vmap(torch.vmap(back))
        for target, value in zip(targets, each(tuple(sums[node] for node in made))):
            _add(found, target, value)
        return found


def _shape(node: Node) -> tuple[int, ...]:
    kind = type_of(node)
    assert kind is not None
    return kind.shape


def _add(sums: Values, node: Node, value: Tensor) -> None:
    sums[node] = sums[node] + value if node in sums else value


def _summed(cotangent: Tensor, like: Tensor) -> Tensor:
    """[parts, batch, ...] summed to [parts, batch, *like.shape], as `like` was spread over it."""
    parts, batch, *inside = cotangent.shape
    shape = list(like.shape[-len(inside) :]) if inside else []
    shape = [1] * (len(inside) - len(shape)) + shape
    dims = [i + 2 for i, (have, want) in enumerate(zip(inside, shape)) if have != want]
    return (cotangent.sum(dims, keepdim=True) if dims else cotangent).reshape(parts, batch, *like.shape)


def _features_last(step: Node, cotangent: Tensor) -> Tensor:
    """[parts, batch, ..., q] of a layer; convolutions have their features first."""
    return cotangent.flatten(3).mT if operation(step) == "conv2d" else cotangent


def _factors(use: Product, own: Mapping[Node, Any], cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """What is multiplied to the gradient of a matrix, its rows first: [parts or 1, batch, T, ...]."""
    read: Tensor = own[use.read]
    if use.patches is not None:
        read = torch.nn.functional.unfold(read, *use.patches).mT
    read = read.reshape(1, read.shape[0], -1, read.shape[-1])
    cotangent = _features_last(use.step, cotangent)
    cotangent = cotangent.reshape(*cotangent.shape[:2], -1, cotangent.shape[-1])
    return (cotangent, read) if use.outputs_first else (read, cotangent)


def _joined(several: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Factors of a matrix that is used several times."""
    if len(several) == 1:
        return several[0]
    parts = max(factor.shape[0] for pair in several for factor in pair)
    return _along_uses([left for left, _ in several], parts), _along_uses([right for _, right in several], parts)


def _along_uses(factors: Sequence[Tensor], parts: int) -> Tensor:
    return torch.cat([factor.expand(parts, -1, -1, -1) for factor in factors], 2)
