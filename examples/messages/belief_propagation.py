"""Belief propagation: sum-product on a tree of discrete variables, as messages between variables and factors.

The tree is a `propc.Network`. The forward pass collects from the leaves to the root, the reverse pass
distributes from the root to the leaves; then every variable knows its marginal. Messages are logarithms, so
that a long chain underflows nowhere. What meets at a node is a dictionary by sender, merged by `operator.or_`:
to each neighbour goes what all the others have said. Evidence is one more neighbour, the caller.

First random trees, checked against enumeration of all joint states. Then a chain of 1000 letters: a text typed on
the keys of an old phone, three or four letters to a key, is read with the help of which letters follow each other
in other texts.

Run it: `python examples/messages/belief_propagation.py`, options: `--help`.
"""

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from shared import parser, show, write_graph, write_results
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_linnerud, load_wine
from torch import Tensor
from tqdm import tqdm

import propc

INBOX = propc.Field("inbox", merge=operator.or_)  # {sender: log message, [states]}
EVIDENCE = "evidence"

Inbox = dict[str, Tensor]


class Neighbour(propc.Propagator):
    """Sends to each neighbour a summary of what all the others have sent."""

    sends = (INBOX,)

    def summary(self, heard: Inbox, to: str | None) -> Tensor:
        """The log message to one neighbour; None is the one from which nothing was heard."""
        raise NotImplementedError

    def forward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        node.memory.inbox = message.get("inbox", {})
        return propc.Message(inbox={node.name: self.summary(node.memory.inbox, None)})

    def backward(self, node: propc.NodeView, message: propc.Message) -> list[propc.Message]:
        children = [name for name in node.memory.inbox if name != EVIDENCE]
        node.memory.inbox = node.memory.inbox | message.get("inbox", {})
        sent = []
        for name in children:
            others = {sender: heard for sender, heard in node.memory.inbox.items() if sender != name}
            sent.append(propc.Message(inbox={node.name: self.summary(others, name)}).to(name))
        return sent


@dataclass(frozen=True)
class Variable(Neighbour):
    """A variable multiplies what it hears."""

    states: int

    def summary(self, heard: Inbox, to: str | None) -> Tensor:
        return sum(heard.values(), torch.zeros(self.states, dtype=torch.float64))


@dataclass(frozen=True)
class Factor(Neighbour):
    """A factor multiplies its table with what it hears, and sums over all variables but one."""

    scope: tuple[str, ...]
    table: Tensor = field(repr=False)  # logarithms, one dimension for each variable

    def summary(self, heard: Inbox, to: str | None) -> Tensor:
        (to,) = {to} if to is not None else set(self.scope) - heard.keys()
        joint = self.table
        for axis, name in enumerate(self.scope):
            if name in heard and name != to:
                shape = [-1 if i == axis else 1 for i in range(joint.dim())]
                joint = joint + heard[name].reshape(shape)
        return joint.movedim(self.scope.index(to), 0).flatten(1).logsumexp(1) if joint.dim() > 1 else joint


@dataclass(frozen=True)
class Tree:
    """Variables, by number of states, and factors; their graph is a tree."""

    states: Mapping[str, int]
    factors: Mapping[str, Factor]

    def network(self) -> propc.Network:
        """Its nodes from the leaves to the root, which is the first variable; each is next to those before it."""
        around: dict[str, list[str]] = {name: [] for name in (*self.states, *self.factors)}
        for name, factor in self.factors.items():
            for variable in factor.scope:
                around[name].append(variable)
                around[variable].append(name)
        toward = {next(iter(self.states)): ""}
        order = list(toward)
        for name in order:
            further = [other for other in around[name] if other != toward[name]]
            if not toward.keys().isdisjoint(further):
                raise ValueError(f"there is a loop through {name}")
            toward |= dict.fromkeys(further, name)
            order += further
        network = propc.Network("tree")
        for name in reversed(order):
            rule = self.factors[name] if name in self.factors else Variable(self.states[name])
            network.add(name, rule, [other for other in around[name] if toward.get(other) == name])
        return network


def marginals(network: propc.Network, tree: Tree, evidence: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Marginals of all variables, and the logarithm of the sum over all joint states.

    Args:
        network: that of the tree.
        tree: the tree.
        evidence: log-likelihoods of what was seen, [states], by variable.
    """
    seen = {name: propc.Message(inbox={EVIDENCE: value}) for name, value in evidence.items()}
    done = network.propagate("backward", forward=seen)
    beliefs = {name: Variable(n).summary(done[name].memory.inbox, None) for name, n in tree.states.items()}
    total = beliefs[next(iter(beliefs))].logsumexp(0).item()
    return {name: belief.softmax(0) for name, belief in beliefs.items()}, total


# -- random trees -----------------------------------------------------------------------


def random_tree(variables: int) -> Tree:
    """Each new variable hangs on one or two others that hang together nowhere else; some have a factor alone."""
    states = {f"x{i}": int(torch.randint(2, 5, ())) for i in range(variables)}
    groups = [{name} for name in states]  # variables that hang together
    factors = {}

    def add(*scope: str) -> None:
        sizes = [states[name] for name in scope]
        factors[f"f{len(factors)}"] = Factor(scope, 2 * torch.randn(sizes, dtype=torch.float64))

    while len(groups) > 1:
        joined = [groups.pop(int(torch.randint(len(groups), ()))) for _ in range(min(len(groups), _pick(2, 2, 3)))]
        add(*(_pick(*sorted(group)) for group in joined))
        groups.append(set().union(*joined))
    for name in states:
        if _pick(True, False):
            add(name)
    return Tree(states, factors)


def random_evidence(tree: Tree, seen: int) -> dict[str, Tensor]:
    """Some variables are known, one is known roughly."""
    chosen = [list(tree.states)[i] for i in torch.randperm(len(tree.states))[:seen].tolist()]
    known = {name: torch.full((tree.states[name],), -math.inf, dtype=torch.float64) for name in chosen}
    for name in chosen:
        known[name][torch.randint(tree.states[name], ())] = 0.0
    if chosen:
        known[chosen[-1]] = torch.randn(tree.states[chosen[-1]], dtype=torch.float64)
    return known


def enumerated(tree: Tree, evidence: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """What `marginals` gives, from the table of all joint states."""
    names = list(tree.states)
    tables = [(factor.scope, factor.table) for factor in tree.factors.values()]
    tables += [((name,), value) for name, value in evidence.items()]
    joint = torch.zeros([tree.states[name] for name in names], dtype=torch.float64)
    for scope, table in tables:
        order = sorted(range(len(scope)), key=lambda i: names.index(scope[i]))
        shape = [tree.states[name] if name in scope else 1 for name in names]
        joint = joint + table.permute(order).reshape(shape)
    total = joint.flatten().logsumexp(0)
    probability = (joint - total).exp()
    axes = list(range(len(names)))
    return {name: torch.einsum(probability, axes, [i]) for i, name in enumerate(names)}, total.item()


def _pick(*choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), ()))]


# -- letters from the keys of a phone ------------------------------------------------------

KEYS = (" ", "abc", "def", "ghi", "jkl", "mno", "pqrs", "tuv", "wxyz")
LETTERS = "".join(KEYS)


def text(load: Any) -> str:
    """The description of one of scikit-learn's data sets, small letters and spaces alone."""
    kept = (letter if letter in LETTERS else " " for letter in load().DESCR.lower())
    return " ".join("".join(kept).split())


def letter_chain(length: int, known: Sequence[str]) -> Tree:
    """Variables c0, c1, …; between two in a row how often one letter follows another in known texts."""
    counts = Counter(pair for each in known for pair in pairwise(each))
    table = torch.tensor([[counts[a, b] + 0.1 for b in LETTERS] for a in LETTERS], dtype=torch.float64)
    follows = (table / table.sum(1, keepdim=True)).log()
    states = {f"c{i}": len(LETTERS) for i in range(length)}
    return Tree(states, {f"{a}-{b}": Factor((a, b), follows) for a, b in pairwise(states)})


def typed(message: str) -> list[int]:
    """The keys of its letters."""
    return [next(i for i, key in enumerate(KEYS) if letter in key) for letter in message]


def read(keys: Sequence[int], known: Sequence[str]) -> str:
    """The likeliest letter at each place, by its marginal."""
    tree = letter_chain(len(keys), known)
    on = torch.tensor([[letter in key for letter in LETTERS] for key in KEYS], dtype=torch.float64).log()
    found, _ = marginals(tree.network(), tree, {f"c{i}": on[key] for i, key in enumerate(keys)})
    return "".join(LETTERS[int(belief.argmax())] for belief in found.values())


def read_apart(keys: Sequence[int], known: Sequence[str]) -> str:
    """The most frequent letter of each key, without its neighbours."""
    counts = Counter("".join(known))
    return "".join(max(KEYS[key], key=lambda letter: counts[letter]) for key in keys)


def right(guess: str, truth: str) -> float:
    """Share of the letters that are right, spaces aside."""
    pairs = [(a, b) for a, b in zip(guess, truth) if b != " "]
    return sum(a == b for a, b in pairs) / len(pairs)


def tabulate(rows: Sequence[dict[str, Any]]) -> Table:
    """One line for every number of variables."""
    table = Table(title="Sum-product against enumeration, random trees with evidence")
    columns = {
        "variables": "{variables}",
        "trees": "{trees}",
        "nodes of\nthe network": "{nodes:.1f}",
        "joint\nstates": "{joint:.0f}",
        "largest error\nof a marginal": "{error:.1e}",
        "of log Z": "{log_z_error:.1e}",
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(cell.format(**row) for cell in columns.values()))
    return table


def compare(variables: int, trees: int) -> dict[str, Any]:
    """Random trees of one size, with no, one and two variables seen."""
    found: dict[str, list[float]] = {"nodes": [], "joint": [], "error": [], "log_z_error": []}
    for i in range(trees):
        tree = random_tree(variables)
        network = tree.network()
        evidence = random_evidence(tree, i % 3)
        ours, log_z = marginals(network, tree, evidence)
        exact, exact_log_z = enumerated(tree, evidence)
        found["nodes"].append(len(tree.states) + len(tree.factors))
        found["joint"].append(math.prod(tree.states.values()))
        found["error"].append(max((ours[name] - exact[name]).abs().max().item() for name in exact))
        found["log_z_error"].append(abs(log_z - exact_log_z))
    mean = {key: sum(found[key]) / trees for key in ("nodes", "joint")}
    return {"variables": variables, "trees": trees, **mean, **{k: max(found[k]) for k in ("error", "log_z_error")}}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the errors by the number of variables."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, label in (("error", "marginals"), ("log_z_error", "log Z")):
        axes.plot([row["variables"] for row in rows], [row[key] + 1e-18 for row in rows], "o-", label=label)
    axes.set(title="largest error against enumeration", xlabel="variables", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare with enumeration, then read a text."""
    options = parser("belief_propagation", __doc__)
    options.add_argument("--trees", type=int, default=30, help="random trees of each size")
    options.add_argument("--letters", type=int, default=1000, help="length of the text")
    args = options.parse_args(argv)
    trees, letters = (3, 100) if args.smoke else (args.trees, args.letters)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    rows = [compare(variables, trees) for variables in tqdm(range(1, 9), desc="random trees")]
    show(tabulate(rows), args.out)
    write_results(rows, args.out)
    plot(rows, args.out / "errors.png")
    write_graph(random_tree(5).network().graph, args.out)

    known = [text(load) for load in (load_wine, load_iris, load_diabetes, load_linnerud)]
    truth = text(load_breast_cancer)[:letters]
    keys = typed(truth)
    start = perf_counter()
    guess = read(keys, known)
    print(f"{len(keys)} letters read in {perf_counter() - start:.2f} s from a network of {2 * len(keys) - 1} nodes:")
    for name, shown in (
        ("keys", "".join(map(str, keys))),
        ("apart", read_apart(keys, known)),
        ("read", guess),
        ("truth", truth),
    ):
        score = f"{right(shown, truth):.0%} right" if name != "keys" else ""
        print(f"  {name:5} {shown[:80]}  {score}")
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
