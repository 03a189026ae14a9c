"""The built-in propagators at nodes, costs and sites, by `backward()` and by `propagate`, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from surrogate import Plain, seeded, surrogate
from torch import Tensor
from torch.distributions import Normal

import propc
from propc import Field, Message, PropcTypeError, PropcValueError, propagator
from propc.estimators import LeaveOneOut
from propc.propagators import Chain, NodeView, Propagator, Sequence
from propc.runtime.weighting.weighting import Weighting

BATCH = 5
THETA = torch.tensor([0.4, -1.3], dtype=torch.float64)


def gradients(program: Callable[..., Any], estimator: Any = "rp", **options: Any) -> tuple[Tensor, Tensor]:
    """The gradient of the mean cost in θ, by `backward()` and by `propagate`; they are the same."""
    leaf = THETA.clone().requires_grad_()
    costs = seeded(lambda: propc.compile(program, estimator=estimator)(leaf, **options))
    (grad,) = torch.autograd.grad(costs.mean(), leaf, allow_unused=True)
    compiled = propc.compile(program, estimator=estimator)
    found = seeded(lambda: compiled.propagate("backward", None, leaf, **options))
    sent = found.messages["theta"].get("grad") if "theta" in found.messages else None
    assert torch.equal(found.value, costs.detach())
    zero = torch.zeros_like(THETA)
    by_backward, by_messages = (zero if g is None else g for g in (grad, sent))
    torch.testing.assert_close(by_backward, by_messages, rtol=1e-13, atol=1e-15)
    return by_backward


class Hook(torch.autograd.Function):
    """Plain torch's way to change a cotangent."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.change(grad), None


def at_node(theta: Tensor, mark: Callable[[Tensor], Tensor], sample: Any = propc.sample) -> Tensor:
    """One node that two readers share, and another way for the first parameter."""
    h = mark(torch.stack([theta * 2, theta.square()]).sum(0).expand(BATCH, 2))
    x = sample(Normal(h, 1.0), "x").sum(-1)
    return x.square() * theta[0] + h[:, 1].sin()


def expected(change: Callable[[Tensor], Tensor] | None) -> Tensor:
    leaf = THETA.clone().requires_grad_()

    def mark(value: Tensor) -> Tensor:
        return value.detach() if change is None else Hook.apply(value, change)

    costs = seeded(lambda: at_node(leaf, mark, lambda dist, name: dist.rsample()))
    return torch.autograd.grad(costs.mean(), leaf)[0]


def norm_clip(limit: float, dims: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda g: g * (limit / g.square().sum(dims, keepdim=True).sqrt()).clamp(max=1.0)


NODES: list[tuple[Propagator, Callable[[Tensor], Tensor] | None]] = [
    (propagator("backprop"), lambda g: g),
    (propagator("pause"), lambda g: g),
    (propagator("sum"), lambda g: g),
    (propagator("skip"), lambda g: g),
    (propagator("baseline"), lambda g: g),
    (Propagator(), lambda g: g),
    (propagator("detach"), None),
    (propagator("stop"), None),
    (propagator("scale", factor=-2.0), lambda g: -2 * g),
    (propagator("clip", limit=0.2), lambda g: g.clamp(-0.2, 0.2)),
    (propagator("clip", limit=0.5, by="norm"), norm_clip(0.5, [0, 1])),
    (propagator("clip", limit=0.3, by="row"), norm_clip(0.3, [1])),
    (Sequence("scale", "clip").configure(part0={"factor": 3.0}, limit=0.2), lambda g: 3 * g.clamp(-0.2, 0.2)),
    (Sequence("clip", "scale").configure(part1={"factor": 3.0}, limit=0.2), lambda g: (3 * g).clamp(-0.2, 0.2)),
    (Chain("clip", "scale").configure(part1={"factor": 3.0}, limit=0.2), lambda g: (3 * g).clamp(-0.2, 0.2)),
]


@pytest.mark.parametrize(("rule", "change"), NODES, ids=lambda x: repr(x) if isinstance(x, Propagator) else "")
def test_at_a_node(rule: Propagator, change: Callable[[Tensor], Tensor] | None) -> None:
    def program(theta: Tensor) -> Tensor:
        return at_node(theta, lambda value: propc.node(value, "h", propagator=rule))

    if change is not None and rule.name not in ("skip",):
        torch.testing.assert_close(gradients(program), expected(change))
    elif change is None:
        torch.testing.assert_close(gradients(program), expected(None))


def test_the_changes_matter() -> None:
    plain = expected(lambda g: g)
    others = [expected(change) for _, change in NODES[6:]]
    assert not any(torch.allclose(plain, other) for other in others)


def test_a_name_is_enough() -> None:
    torch.testing.assert_close(
        gradients(lambda theta: at_node(theta, lambda value: propc.node(value, "h", propagator="detach"))),
        expected(None),
    )


class Say(Propagator):
    """Hands cotangents on and says its name."""

    sends = (Field("word", "list"),)

    def forward(self, node: NodeView, message: Message) -> Message:
        node.memory.arrived = message.get("word", ())
        return Message(word=node.name)

    def backward(self, node: NodeView, message: Message) -> Message:
        node.memory.heard = message.get("word", ())
        return message.only("grad").replace(word=node.name)


def in_a_row(theta: Tensor, rules: dict[str, Any]) -> Tensor:
    h = theta.expand(BATCH, 2)
    for name, rule in rules.items():
        h = propc.node(torch.sin(h) + theta, name, propagator=rule)
    return propc.sample(Normal(h, 1.0), "x").square().sum(-1)


def heard(rules: dict[str, Any]) -> dict[str, Any]:
    compiled = propc.compile(lambda theta: in_a_row(theta, rules), estimator="rp")
    found = compiled.propagate("backward", None, THETA.clone().requires_grad_())
    assert found.messages["theta"].grad.abs().sum() > 0 or "stop" in rules.values()
    return {name: getattr(node.memory, "heard", None) for name, node in found.nodes.items()}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("pause", ("c",)),  # hands on what it heard
        ("scale", ("c",)),
        ("clip", ("c",)),
        ("detach", ("c",)),
        ("sum", ("c",)),
        ("backprop", ()),
        ("stop", ()),
    ],
)
def test_what_built_in_propagators_do_with_other_fields(rule: str, words: tuple[str, ...]) -> None:
    assert heard({"a": Say(), "b": rule, "c": Say()})["a"] == words


def test_skip() -> None:
    rules = {"a": Say(), "b": Say(), "c": Sequence(Say(), propagator("skip", over=1))}
    assert heard(rules) == {"a": ("c", "b"), "b": (), "c": ()}
    rules["c"] = Sequence(Say(), propagator("skip", over=0))
    assert heard(rules) == {"a": ("b",), "b": ("c",), "c": ()}


def test_sum_adds_what_a_list_has_collected() -> None:
    class Number(Propagator):
        sends = (Field("numbers", "list"),)

        def __init__(self, value: float = 0.0) -> None:
            self.value = value

        def forward(self, node: NodeView, message: Message) -> Message:
            node.memory.arrived = message.get("numbers", ())
            return Message(numbers=self.value)

    network = propc.Network()
    for i, value in enumerate((1.0, 2.0, 4.0)):
        network.add(f"n{i}", Number(value))
    network.add("sum", "sum", ["n0", "n1", "n2"])
    network.add("end", Number(), ["sum"])
    assert network.propagate("forward")["end"].memory.arrived == (7.0,)


# -- costs ------------------------------------------------------------------------------


def costs(theta: Tensor, first: Any = None, second: Any = None, sample: Any = propc.sample, cost: Any = None) -> Any:
    """A pair of sites with a cost after each."""
    cost = cost or propc.cost
    x, y = zoo.linear_gaussian(theta[0], theta[1], BATCH, sample)
    return cost(torch.sin(x) * theta[1], "one", first), cost(y.square() + x * theta[0], "two", second)


def by_surrogate(path: bool, sites: list[list[str]], keep: tuple[bool, bool] = (True, True)) -> Tensor:
    """Plain torch: each cost to these sites by score function, and its own gradient where it is kept."""
    leaf, plain = THETA.clone().requires_grad_(), Plain(["x", "y"] if path else [])
    values = seeded(lambda: costs(leaf, sample=plain, cost=lambda value, *_: value))
    terms = [(v if k else v.detach(), s) for v, k, s in zip(values, keep, sites)]
    return torch.autograd.grad(surrogate(terms, plain.scores).mean(), leaf)[0]


BOTH = [["x"], ["x", "y"]]
COSTS = {
    "loss": (("loss", "loss"), BOTH, (True, True)),
    "one loss": (("loss", None), BOTH, (True, True)),
    "no gradient": ((propagator("loss", gradient=False), None), BOTH, (False, True)),
    "neither": ((propagator("loss", gradient=False),) * 2, BOTH, (False, False)),
    "last": ((None, propagator("loss", cumulative=False)), BOTH, (True, True)),  # x reaches the cost by itself, too
    "detach": (("detach", None), [[], ["x", "y"]], (False, True)),
    "stop": ((None, "stop"), [["x"], []], (True, False)),
    "backprop": (("backprop", "loss"), [[], ["x", "y"]], (True, True)),
}


@pytest.mark.parametrize("case", COSTS)
def test_at_a_cost(case: str) -> None:
    rules, sites, keep = COSTS[case]
    found = gradients(lambda theta: sum(costs(theta, *rules)), "lr")
    torch.testing.assert_close(found, by_surrogate(False, sites, keep))
    if case in ("no gradient", "detach", "stop", "backprop"):
        assert not torch.allclose(found, by_surrogate(False, BOTH))


def test_costs_under_pathwise_sites() -> None:
    for rules, keep in ((("loss", None), (True, True)), ((None, "stop"), (True, False))):
        found = gradients(lambda theta, rules=rules: sum(costs(theta, *rules)), "rp")
        torch.testing.assert_close(found, by_surrogate(True, [[], []], keep))


def cost_of_the_last(theta: Tensor, rule: Any = None, sample: Any = propc.sample, cost: Any = propc.cost) -> Tensor:
    """The cost reads the last of three sites alone."""
    _, y = zoo.linear_gaussian(theta[0], theta[1], BATCH, sample)
    z = sample(Normal(theta[0] * y, 1.0), "z")
    return cost(torch.sin(z) * theta[1], "c", rule)


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_loss_that_is_not_cumulative(cumulative: bool, wrap: bool) -> None:
    """Only the last sites learn of it."""
    loss: Propagator = propagator("loss", cumulative=cumulative)
    rule = Sequence("scale", loss=loss) if wrap else loss
    leaf, plain = THETA.clone().requires_grad_(), Plain()
    value = seeded(lambda: cost_of_the_last(leaf, None, plain, lambda v, *_: v))
    sites = ["x", "y", "z"] if cumulative else ["z"]
    want = torch.autograd.grad(surrogate([(value, sites)], plain.scores).mean(), leaf)[0]
    torch.testing.assert_close(gradients(lambda theta: cost_of_the_last(theta, rule), "lr"), want)


def test_a_scaled_loss() -> None:
    """Backward, the last part comes first."""
    found = gradients(lambda theta: cost_of_the_last(theta, Sequence(propagator("scale", factor=3.0), "loss")), "lr")
    torch.testing.assert_close(found, 3 * gradients(lambda theta: cost_of_the_last(theta), "lr"))


# -- sites ------------------------------------------------------------------------------


def one_site(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta[0].expand(BATCH), theta[1].exp()), "x")
    return x.cos() * theta[1]


@pytest.mark.parametrize("name", ["rp", "lr", "tp"])
def test_propagators_of_sites_are_what_estimators_use(name: str) -> None:
    torch.testing.assert_close(gradients(one_site, propagator(name)), gradients(one_site, name))


@pytest.mark.parametrize("whole", [Sequence, Chain])
def test_score_and_baseline(whole: Any) -> None:
    """The baseline comes last, so first on the way back."""
    found = gradients(one_site, whole(score="lr", baseline="baseline"))
    torch.testing.assert_close(found, gradients(one_site, "lr"))
    bare = propc.estimator("lr", baseline=None)
    rule = whole(score="lr", baseline="baseline").configure(baseline=None)
    torch.testing.assert_close(gradients(one_site, rule), gradients(one_site, bare))
    assert not torch.allclose(found, gradients(one_site, bare))


def test_clipped_on_the_way_to_a_site() -> None:
    def clipped(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta[0].expand(BATCH), theta[1].exp()), "x")
        return propc.node(x, "n", propagator=propagator("clip", limit=0.02)).cos() * theta[1]

    rule = Sequence("rp", propagator("clip", limit=0.02))
    torch.testing.assert_close(gradients(one_site, rule), gradients(clipped))
    assert not torch.allclose(gradients(clipped), gradients(one_site))


def test_score_of_ones_own() -> None:
    """A site's propagator written by a user, which sends more than cotangents."""

    class Score(Propagator):
        sends = (propc.messages.GRAD, propc.messages.COST, Field("word", "list"))

        def forward(self, node: NodeView, message: Message) -> Message:
            node.value = node.distribution.sample()
            node.memory.score = node.distribution.log_prob(node.value)
            return message

        def backward(self, node: NodeView, message: Message) -> Message:
            return Message({**node.pull(node.memory.score, message.cost), "word": node.name})

    def program(theta: Tensor) -> Tensor:
        return one_site(theta)

    bare = propc.estimator("lr", baseline=None)
    torch.testing.assert_close(gradients(program, Score()), gradients(program, bare))
    found = propc.compile(program, estimator=Score()).propagate("backward", None, THETA.clone().requires_grad_())
    assert found.messages["x"].word == ("x",)


@pytest.mark.parametrize("name", ["scale", "clip", "detach"])
def test_at_a_site_alone(name: str) -> None:
    """Nothing to hand on to φ: an error that says so, or nothing at all."""
    leaf = THETA.clone().requires_grad_()
    compiled = propc.compile(one_site, estimator=propagator(name))
    words = r"site 'x' \(test_propagators.py:\d+\).*no cotangent on φ. Return cotangents on loc, scale"
    with pytest.raises(propc.MessageError, match=words):
        compiled(leaf).mean().backward()
    with pytest.raises(propc.MessageError, match=words):
        compiled.propagate("backward", None, leaf)


def test_stop_at_a_site() -> None:
    leaf, draw = THETA.clone().requires_grad_(), Plain()
    want = torch.autograd.grad(
        seeded(lambda: draw(Normal(leaf[0].expand(BATCH), leaf[1].exp()), "x").cos() * leaf[1]).mean(), leaf
    )[0]
    torch.testing.assert_close(gradients(one_site, propagator("stop")), want)


# -- composition ------------------------------------------------------------------------


class Log(Propagator):
    """Writes into the node's memory, and changes the value on the way forward."""

    sends = (Field("log", "list"),)

    def __init__(self, label: str) -> None:
        self.label = label

    def forward(self, node: NodeView, message: Message) -> Message:
        vars(node.memory).setdefault("steps", []).append(self.label)
        if node.value is not None:
            node.value = node.value * 2
        return message.replace(log=(*message.get("log", ()), self.label))

    def backward(self, node: NodeView, message: Message) -> Message:
        node.memory.steps.append(self.label.upper())
        return message.replace(log=(*message.get("log", ()), self.label.upper()))


def composed(whole: Any, direction: str = "backward") -> propc.Propagation:
    network = propc.Network()
    network.add("n", whole)
    return network.propagate(direction, Message(log="start"))


def test_a_sequence_shares_memory_and_message() -> None:
    found = composed(Sequence(Log("a"), Log("b"), Log("c")))
    assert found["n"].memory.steps == ["a", "b", "c", "C", "B", "A"]
    assert found.messages["n"].log == ("start", "C", "B", "A")
    assert composed(Sequence(Log("a"), Log("b")), "forward").messages["n"].log == ("start", "a", "b")


def test_parts_of_a_chain_have_memory_of_their_own() -> None:
    found = composed(Chain(Log("a"), last=Log("b")))
    assert {key: part.steps for key, part in vars(found["n"].memory).items()} == {
        "part0": ["a", "A"],
        "last": ["b", "B"],
    }
    assert found.messages["n"].log == ("start", "B", "A")


def test_compositions_nest() -> None:
    found = composed(Sequence(Log("a"), Sequence(Log("b"), Log("c")), Log("d")))
    assert found["n"].memory.steps == ["a", "b", "c", "d", "D", "C", "B", "A"]
    found = composed(Chain(Log("a"), inner=Chain(Log("b"), Log("c"))))
    assert found["n"].memory.inner.part1.steps == ["c", "C"]


@pytest.mark.parametrize("whole", [Sequence, Chain])
def test_parts_see_the_value_that_the_one_before_left(whole: Any) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.node(theta.expand(BATCH, 2), "h", propagator=whole(Log("a"), Log("b"))).sum(-1)

    leaf = THETA.clone().requires_grad_()
    assert torch.equal(propc.compile(program)(leaf), 4 * leaf.expand(BATCH, 2).sum(-1))


def test_a_part_that_stops_ends_the_sequence() -> None:
    assert composed(Sequence(Log("a"), "stop", Log("b")))["n"].memory.steps == ["a", "B"]


def test_configure() -> None:
    rule = Sequence(score="lr", baseline="baseline")
    assert list(rule.configure(baseline=None).named_parts()) == ["score"]
    assert list(rule.named_parts()) == ["score", "baseline"]
    assert rule.configure(baseline={"baseline": None}).parts[1].baseline is None
    assert rule.configure(score="rp").parts[0].name == "rp"
    assert propagator("clip").configure(limit=2.0, by="norm") == propagator("clip", limit=2.0, by="norm")
    total = propagator("tp").configure(weights="past", per_coordinate=True)
    assert (total.weighting.weights, total.weighting.per_coordinate) == ("past", True)
    assert type(propagator("tp").configure(baseline=None).baselines[0]).__name__ == "NoBaseline"
    assert propc.estimator("tp").configure(baseline=None).baseline is None
    assert Sequence("clip", "scale").configure(factor=2.0).parts[1].factor == 2.0
    assert repr(Sequence(a="stop")).startswith("Sequence(a=Stop")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: propagator("clip").configure(limt=1.0), r"unknown option 'limt' of 'clip'.*Did you mean 'limit'"),
        (lambda: propagator("clip", limt=1.0), r"unknown option 'limt' of propagator 'clip'.*Did you mean 'limit'"),
        (lambda: propagator("tp", limt=1.0), r"propagator 'tp' cannot be made with these options.*limt"),
        (lambda: propagator("clap"), r"unknown propagator 'clap'.*Did you mean 'clip'"),
        (lambda: propagator("clip", limit=0.0), r"limit=0.0 of 'clip' must be positive"),
        (lambda: propagator("clip", by="rows"), r"by='rows' of 'clip' is unknown.*Did you mean 'row'"),
        (lambda: propagator("baseline", baseline="lo"), r"unknown baseline 'lo'.*Did you mean 'loo'"),
        (lambda: Sequence("clip", "scale").configure(limt=1.0), r"unknown option 'limt' of 'sequence'.*mean 'limit'"),
        (lambda: Sequence("clip", "clip").configure(limit=1.0), r"'limit' belongs to several parts: 'part0', 'part1'"),
        (lambda: Sequence(a="clip").configure(a={"factor": 1.0}), r"unknown option 'factor' of 'clip'"),
        (lambda: propagator("rp").configure(baseline=None), r"unknown option 'baseline' of 'rp'"),
        (lambda: propc.estimator("tp").configure(basline=None), r"unknown option 'basline'.*mean 'baseline'"),
    ],
)
def test_unknown_and_misplaced_options(make: Any, words: str) -> None:
    with pytest.raises(PropcValueError, match=words):
        make()


def test_what_is_no_propagator() -> None:
    with pytest.raises(PropcTypeError, match=r"a sequence needs a part. Give one propagator or more"):
        Sequence(a=None)
    with pytest.raises(PropcTypeError, match=r"a chain needs a part"):
        Chain("clip").configure(part0=None)
    with pytest.raises(PropcTypeError, match=r"a propagator is a Propagator or the name of one; got 3"):
        Sequence(3)


def test_names() -> None:
    class SeveralWords(Propagator):
        pass

    assert SeveralWords.name == "several-words"
    assert {
        "backprop",
        "pause",
        "rp",
        "lr",
        "tp",
        "baseline",
        "skip",
        "sum",
        "detach",
        "stop",
        "clip",
        "scale",
        "loss",
    } <= set(propc.propagators.known_propagators())
    with pytest.raises(PropcValueError, match=r"the propagator name 'clip' is taken"):
        propc.register_propagator("clip")(SeveralWords)
    assert SeveralWords.name == "several-words"


@pytest.mark.parametrize("option", [{"weights": "pasd"}, {"k_interval": 0}, {"per_coordinate": True, "target": "m"}])
def test_total_propagation_refuses_what_no_option_can_be(option: dict[str, Any]) -> None:
    for make in (propc.propagator, propc.estimator):
        with pytest.raises(propc.PropcValueError, match=next(iter(option))):
            make("tp", **option)
    with pytest.raises(propc.PropcValueError, match=next(iter(option))):
        propc.propagator("tp").configure(**option)


def test_crossfit_keeps_the_halves_of_the_baseline_apart_however_it_was_chosen() -> None:
    whole = propc.propagator("tp", weights="past")
    for rule in (propc.propagator("tp"), whole.configure(weights="crossfit"), whole.configure(weighting=Weighting())):
        assert rule.named_parts()["lr"].baseline == LeaveOneOut(groups=2)
    assert whole.named_parts()["lr"].baseline == LeaveOneOut()
