"""The examples of message passing run, and compute what their equations say."""

import importlib
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from example_runs import rows, run
from torch import Tensor

import propc

FOLDER = Path(__file__).parents[2] / "examples" / "messages"
GRAPH = {".txt", ".dot"} | ({".svg"} if shutil.which("dot") else set())


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (FOLDER, FOLDER.parent):
        monkeypatch.syspath_prepend(str(folder))


def example(name: str) -> ModuleType:
    torch.manual_seed(0)
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("name", "picture", "graphs"),
    [
        ("belief_propagation", "errors.png", ["graph"]),
        ("feedback_alignment", "training.png", ["graph_fa", "graph_dfa"]),
        ("target_propagation", "training.png", ["graph"]),
        ("td_lambda", "errors.png", ["graph"]),
    ],
)
def test_writes_what_it_promises(name: str, picture: str, graphs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(f"messages/{name}", out)
    for file in ("table.txt", "results.json", picture, *(stem + ending for stem in graphs for ending in GRAPH)):
        assert (out / file).stat().st_size > 0, file
    for stem in graphs:  # Graphviz refuses an empty label
        assert not re.search("<font[^>]*></font>", (out / f"{stem}.dot").read_text())
    CHECKS[name](rows(out))


def check_belief_propagation(found: list[dict]) -> None:
    assert [row["variables"] for row in found] == list(range(1, 9))
    assert max(row["error"] for row in found) < 1e-10
    assert max(row["log_z_error"] for row in found) < 1e-10


def check_feedback_alignment(found: list[dict]) -> None:
    by_rule = {row["rule"]: row for row in found}
    assert set(by_rule) == {"bp", "fa", "dfa"}
    for rule, row in by_rule.items():
        assert row["accuracy"][0] < 0.3 < 0.9 < row["accuracy"][-1], rule
    assert np.max(by_rule["bp"]["angles"]) < 0.1
    for rule in ("fa", "dfa"):  # the weights turn towards the feedback
        before, after = by_rule[rule]["angles"][0], by_rule[rule]["angles"][-1]
        assert min(before) > 80, rule
        assert max(after) < 75, rule


def check_target_propagation(found: list[dict]) -> None:
    by_rule = {row["rule"]: row for row in found}
    assert set(by_rule) == {"bp", "dtp", "fixed"}
    dtp = by_rule["dtp"]
    assert dtp["accuracy"][0] < 0.3 < 0.9 < dtp["accuracy"][-1]
    assert by_rule["fixed"]["accuracy"][-1] < dtp["accuracy"][-1] - 0.05
    assert dtp["misses"][-1][0] < dtp["misses"][0][0] / 3


def check_td_lambda(found: list[dict]) -> None:
    by_decay = {row["lambda"]: row for row in found}
    best = by_decay[0.8]
    assert 0.2 < best["error"] < 0.3
    for end in (by_decay[0.0], by_decay[1.0]):  # the curve of the book: something between the ends is best
        assert best["error"] < end["error"] - 4 * (best["stderr"] + end["stderr"])


CHECKS = {
    "belief_propagation": check_belief_propagation,
    "feedback_alignment": check_feedback_alignment,
    "target_propagation": check_target_propagation,
    "td_lambda": check_td_lambda,
}


# -- what the examples have found in propc --------------------------------------------------


def test_the_name_output_is_taken() -> None:
    program = propc.compile(lambda x: propc.node(x * 2, "output").sum(-1))
    with pytest.raises(propc.PropcValueError, match=r"'output'.*already taken"):
        program(torch.ones(3, 2))


@dataclass(frozen=True)
class Count(propc.Propagator):
    """Learns a number that the module of state holds."""

    def state(self, node: propc.NodeView) -> torch.nn.Module:
        made.append(node.name)
        return torch.nn.Linear(1, 1)

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(grad=message.grad * node.state.weight.detach())


made: list[str] = []


def test_state_of_a_name_with_a_dot_is_made_once() -> None:
    program = propc.compile(lambda x: propc.node(x * 2, "layer.0", Count()).sum(-1))
    x = torch.ones(3, 2, requires_grad=True)
    made.clear()
    for _ in range(3):
        program(x).mean().backward()
        program.propagate("backward", None, x)
    assert made == ["layer.0"]


def test_a_node_goes_before_an_argument_of_its_name() -> None:
    field = propc.Field("told")

    class Tell(propc.Propagator):
        sends = (field,)
        targets = "x"

        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            return message.replace(told=message.grad)

    class Hear(propc.Propagator):
        sends = (field,)

        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            return propc.Message(grad=10 * message.told)

    def program(x: Tensor) -> Tensor:
        x = propc.node(x, "x", Hear())
        return propc.node(3 * x, "y", Tell()).sum(-1)

    x = torch.ones(3, 2, requires_grad=True)
    propc.compile(program)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3, 2), 10.0))


# -- belief propagation -----------------------------------------------------------------


def summed(tree, evidence: dict[str, Tensor], *keep: str) -> Tensor:
    """The product of all tables, summed over all variables but `keep`."""
    places = {name: i for i, name in enumerate(tree.states)}
    operands: list = [torch.ones(size, dtype=torch.float64) for size in tree.states.values()]
    operands = [x for i, ones in enumerate(operands) for x in (ones, [i])]
    for factor in tree.factors.values():
        operands += [factor.table.exp(), [places[name] for name in factor.scope]]
    for name, value in evidence.items():
        operands += [value.exp(), [places[name]]]
    return torch.einsum(*operands, [places[name] for name in keep])


@pytest.mark.parametrize("variables", range(1, 9))
def test_marginals_are_those_of_enumeration(variables: int) -> None:
    bp = example("belief_propagation")
    torch.manual_seed(variables)
    for seen in (0, 1, 2, 0):
        tree = bp.random_tree(variables)
        network = tree.network()
        for evidence in (bp.random_evidence(tree, seen), {}):  # nothing of the evidence stays
            found, log_z = bp.marginals(network, tree, evidence)
            exact = summed(tree, evidence)
            torch.testing.assert_close(math.exp(log_z), exact.item(), rtol=1e-10, atol=0)
            assert found.keys() == tree.states.keys()
            for name, belief in found.items():
                torch.testing.assert_close(belief, summed(tree, evidence, name) / exact, rtol=0, atol=1e-10)


def test_evidence_is_seen() -> None:
    bp = example("belief_propagation")
    tree = bp.random_tree(6)
    network = tree.network()
    known = torch.tensor([0.0] + [-math.inf] * (tree.states["x3"] - 1), dtype=torch.float64)
    before, after = (bp.marginals(network, tree, evidence)[0] for evidence in ({}, {"x3": known}))
    assert after["x3"][0] == 1.0
    assert max((before[name] - after[name]).abs().max() for name in before if name != "x3") > 1e-3


def test_a_loop_is_no_tree() -> None:
    bp = example("belief_propagation")
    table = torch.zeros(2, 2, dtype=torch.float64)
    pairs = {"f": ("a", "b"), "g": ("b", "c"), "h": ("c", "a")}
    tree = bp.Tree(dict.fromkeys("abc", 2), {name: bp.Factor(scope, table) for name, scope in pairs.items()})
    with pytest.raises(ValueError, match="loop"):
        tree.network()


# -- feedback alignment -----------------------------------------------------------------


def forward(network, images: Tensor) -> list[Tensor]:
    """The values of the layers: the images, two hidden layers and the logits."""
    first, second, last = network.layers
    one = torch.tanh(first(images))
    two = torch.tanh(second(one))
    return [images, one, two, last(two)]


def batch(example: ModuleType) -> tuple[Tensor, Tensor]:
    data = example.digits()
    return data.images[:20].double(), data.labels[:20]


def state(network, name: str) -> torch.nn.Module:
    return network.estimator_state.parts[name]


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_feedback_replaces_the_transposed_weights(rule: str) -> None:
    fa = example("feedback_alignment")
    network = fa.Network([64, 12, 9, 10])
    images, labels = batch(fa)
    found = fa.gradients(network, images, labels, rule)

    with torch.no_grad():
        _, one, two, logits = forward(network, images)
        error = (logits.softmax(1) - torch.nn.functional.one_hot(labels, 10)) / len(labels)
        if rule == "bp":
            upper, lower = network.layers[2].weight, network.layers[1].weight
        else:
            upper, lower = state(network, f"{rule}/hidden1").fixed, state(network, f"{rule}/hidden0").fixed
        at_two = (error @ upper) * (1 - two**2)
        at_one = ((error if rule == "dfa" else at_two) @ lower) * (1 - one**2)
    for got, expected in zip(found, (at_one.T @ images, at_two.T @ one), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_feedback_stays_fixed_and_is_saved() -> None:
    fa = example("feedback_alignment")
    network = fa.Network([64, 12, 9, 10])
    images, labels = batch(fa)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(images, labels, "fa").mean().backward()
    before = state(network, "fa/hidden0").fixed.clone()
    optimizer.step()
    network(images, labels, "fa").mean().backward()
    assert torch.equal(state(network, "fa/hidden0").fixed, before)

    other = fa.Network([64, 12, 9, 10])
    other.load_state_dict(network.state_dict())
    pairs = zip(fa.gradients(network, images, labels, "fa"), fa.gradients(other, images, labels, "fa"))
    assert all(torch.equal(a, b) for a, b in pairs)


# -- target propagation -----------------------------------------------------------------


def test_targets_and_inverses_by_hand() -> None:
    dtp = example("target_propagation")
    network = dtp.Network([64, 12, 9, 10], step=0.3)
    images, labels = batch(dtp)
    network(images, labels, "dtp").mean().backward()
    found = [layer.weight.grad for layer in network.layers]
    learned = [parameter.grad.clone() for parameter in network.estimator_parameters()]

    inverse = state(network, "hidden1")
    for parameter in inverse.parameters():
        parameter.grad = None
    with torch.no_grad():
        _, one, two, logits = forward(network, images)
        rows = len(labels)
        error = logits.softmax(1) - torch.nn.functional.one_hot(labels, 10)
        target_two = two - 0.3 * error @ network.layers[2].weight
        target_one = one + inverse(target_two) - inverse(two)
        at_two = (two - target_two) / rows * (1 - two**2)
        at_one = (one - target_one) / rows * (1 - one**2)
        expected = at_one.T @ images, at_two.T @ one, error.T @ two / rows
    for got, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(got, by_hand, rtol=0, atol=1e-12)
    (inverse(two) - one).square().mean().backward()
    for got, parameter in zip(learned, inverse.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-12)


# -- TD(λ) ------------------------------------------------------------------------------


def plain_td(decay: float, size: float, journey: list, index: int) -> tuple[np.ndarray, float]:
    """TD(λ) of one walk, in NumPy: the weights at the end, and the mean error over the episodes."""
    weights, trace, errors = np.zeros(19), np.zeros(19), []
    for step in journey:
        if not step.active[index]:
            break
        now, then = int(step.state[index]), int(step.after[index])
        if step.first[index]:
            trace = np.zeros(19)
        trace = decay * trace
        trace[now] += 1
        ahead = weights[then] if 0 <= then < 19 else -1.0 if then < 0 else 1.0
        weights = weights + size * (ahead - weights[now]) * trace
        if not 0 <= then < 19:
            errors.append(np.sqrt(np.mean((weights - np.arange(-9, 10) / 10) ** 2)))
    return weights, float(np.mean(errors))


def test_traces_are_those_of_td_lambda() -> None:
    td = example("td_lambda")
    walks, methods = 3, [(0.0, 0.5), (0.4, 0.3), (0.9, 0.1), (1.0, 0.02)]
    journey = list(td.walk(walks, episodes=4))
    lambdas, sizes = (torch.tensor(x, dtype=torch.float64) for x in zip(*methods))
    weights, errors = td.learn(lambdas, sizes, journey, walks)
    for i, (decay, size) in enumerate(methods):
        for j in range(walks):
            expected, error = plain_td(decay, size, journey, j)
            np.testing.assert_allclose(weights[i, j].numpy(), expected, rtol=0, atol=1e-10)
            assert errors[i, j].item() == pytest.approx(error, rel=0, abs=1e-10)


def test_offline_td_one_is_monte_carlo() -> None:
    """With weights that change at the end of an episode only, λ = 1 moves every visited state towards the return."""
    td = example("td_lambda")
    program = propc.compile(td.td_loss)
    start = torch.rand(1, 19, dtype=torch.float64)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.01)
    journey = list(td.walk(1, episodes=1))
    for steps in journey:
        decay = torch.where(steps.first, 0.0, torch.ones(1, dtype=torch.float64))
        program(weights, decay, *steps.features, steps.reward).sum().backward()
    optimizer.step()
    (outcome,) = journey[-1].reward
    expected = start.clone()
    for steps in journey:
        expected[0, steps.state] += 0.01 * (outcome - start[0, steps.state])
    assert len(journey) > 10
    torch.testing.assert_close(weights.detach(), expected, rtol=0, atol=1e-10)
