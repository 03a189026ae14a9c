"""`propc.compile` on everything that can be compiled, and what the result does in a training loop."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from zoo import leaf

import propc

B = 6


@propc.compile(estimator="lr")
def scored(theta: Tensor) -> Tensor:
    """A module-level compiled function."""
    return (propc.sample(Normal(theta.expand(B), 1.0), "x") - 1).square()


@propc.compile
def bare(theta: Tensor) -> Tensor:
    return propc.sample(Normal(theta.expand(B), 1.0), "x")


def plain(theta: Tensor, scale: float = 1.0) -> Tensor:
    return propc.sample(Normal(theta.expand(B), scale), "x").square()


class Model(nn.Module):
    """Explicit `super(Model, self)`, a parameter, a buffer, a layer."""

    def __init__(self, width: int = 3) -> None:
        super(Model, self).__init__()  # noqa: UP008
        self.layer = nn.Linear(2, width)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        z = propc.sample(Normal(self.layer(x) * self.scale + self.shift, 1.0), "z")
        return z.square().sum(-1)


@propc.compile(estimator="tp")
class CompiledModel(Model):
    """The class itself is compiled."""

    def __init__(self, width: int = 3) -> None:
        super(CompiledModel, self).__init__(width)  # noqa: UP008

    def forward(self, x: Tensor) -> Tensor:
        return super(CompiledModel, self).forward(x) + 0.0  # noqa: UP008


class Child(CompiledModel):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Agent:
    """Compiled methods of an ordinary class."""

    def __init__(self, start: float) -> None:
        self.theta = leaf(start)

    @propc.compile(estimator="rp")
    def loss(self, x: Tensor) -> Tensor:
        return propc.sample(Normal(self.theta * x, 0.001), "x")

    @propc.compile
    @staticmethod
    def free(theta: Tensor) -> Tensor:
        return plain(theta)

    @classmethod
    def make(cls) -> Agent:
        return cls(1.0)


class Callable_:
    def __init__(self) -> None:
        self.theta = leaf()

    def __call__(self, batch: int) -> Tensor:
        return propc.sample(Normal(self.theta.expand(batch), 1.0), "x")


# -- what can be compiled -----------------------------------------------------------------------


def test_decorator_with_and_without_arguments() -> None:
    assert scored.__name__ == "scored"
    assert scored.__doc__ == "A module-level compiled function."
    assert "scored" in repr(scored)
    assert "'lr'" in repr(scored)
    assert bare(leaf()).shape == (B,)
    assert scored(leaf()).shape == (B,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: propc.compile(plain),
        lambda: propc.compile(plain, estimator="lr"),
        lambda: propc.compile(estimator="lr")(plain),
        lambda: propc.compile(lambda theta: plain(theta), estimator="lr"),
        lambda: propc.compile(functools.partial(plain, scale=2.0), estimator="lr"),
        lambda: propc.compile(propc.compile(plain), estimator="lr"),
        lambda: propc.compile(plain).with_estimator("lr"),
    ],
)
def test_functions_lambdas_and_partials(make: Callable[[], Any]) -> None:
    theta = leaf()
    cost = make()(theta)
    assert cost.shape == (B,)
    cost.mean().backward()
    assert theta.grad is not None


def test_callable_objects() -> None:
    thing = Callable_()
    compiled = propc.compile(thing, estimator="lr")
    compiled(B).square().sum().backward()
    assert thing.theta.grad is not None
    assert "theta" not in vars(compiled)


def test_methods_belong_to_their_object() -> None:
    one, two = Agent(1.0), Agent(-1.0)
    x = torch.ones(B)
    assert one.loss(x).mean() > 0.9
    assert two.loss(x).mean() < -0.9
    two.loss(x).sum().backward()
    assert one.theta.grad is None
    assert two.theta.grad is not None
    assert "z" not in str(one.loss.graph(x))
    assert [site.name for site in one.loss.graph(x).sites] == ["x"]
    assert "held.theta" in one.loss.graph(x).nodes
    one.loss.with_estimator("lr")(x).sum().backward()
    assert one.theta.grad is not None
    assert Agent.free(leaf()).shape == (B,)
    assert Agent.loss(one, x).mean() > 0.9
    assert propc.compile(one.loss, estimator="lr")(x).shape == (B,)


def test_a_compiled_method_looks_like_one() -> None:
    method = Agent(1.0).loss
    assert str(inspect.signature(method)) == "(x: 'Tensor') -> 'Tensor'"
    assert (method.__name__, method.__doc__) == ("loss", Agent.loss.__doc__)
    assert repr(method).startswith("<<propc.compile(loss, estimator='rp')> of <")


def test_a_compiled_method_keeps_no_object_alive() -> None:
    agent = Agent(1.0)
    agent.loss(torch.ones(B)).sum().backward()
    gone = weakref.ref(agent)
    del agent
    gc.collect()
    assert gone() is None


def test_nested_compiled_functions_are_one_program() -> None:
    model = propc.compile(Model())

    @propc.compile(estimator="rp")
    def inner(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(B), 1.0), "inner")

    @propc.compile(estimator="lr")
    def outer(theta: Tensor) -> Tensor:
        x = inner(theta)
        return propc.sample(Normal(x, 1.0), "outer").square() + model(torch.ones(B, 2))

    assert [s.name for s in outer.graph(leaf()).sites] == ["inner", "outer", "z"]
    outer(leaf()).sum().backward()
    assert model.scale.grad is not None


# -- modules --------------------------------------------------------------------------------------


def compiled_models() -> list[nn.Module]:
    return [propc.compile(Model(), estimator="lr"), CompiledModel(), Child()]


def test_a_compiled_class_is_a_class() -> None:
    assert isinstance(CompiledModel, type)
    assert issubclass(CompiledModel, nn.Module)
    one, two = CompiledModel(), CompiledModel(4)
    assert isinstance(one, CompiledModel)
    x = torch.ones(B, 2)
    one(x).sum().backward()
    two(x).sum().backward()
    assert one.layer.weight.grad.shape != two.layer.weight.grad.shape
    assert one.graph(x).sites[0].estimator == "tp"


def test_a_subclass_of_a_compiled_class() -> None:
    child = Child()
    x = torch.ones(B, 2)
    torch.manual_seed(0)
    cost = child(x)
    torch.manual_seed(0)
    assert torch.allclose(cost, 2 * CompiledModel.forward(child, x))
    cost.sum().backward()
    assert child.scale.grad is not None


def test_names_state_dict_and_strict_loading_both_ways() -> None:
    original = Model()
    for model in (propc.compile(Model()), propc.compile(Model(), estimator="lr"), CompiledModel()):
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in original.named_parameters()]
        assert [n for n, _ in model.named_buffers()] == [n for n, _ in original.named_buffers()]
        model(torch.ones(B, 2)).sum().backward()
        assert list(model.state_dict()) == list(original.state_dict())
        model.load_state_dict(original.state_dict(), strict=True)
        original.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(model.layer.weight, original.layer.weight)


def test_a_compiled_instance_shares_with_the_original() -> None:
    original = Model()
    compiled = propc.compile(original, estimator="rp")
    assert isinstance(compiled, Model)
    assert compiled is not original
    assert compiled.layer.weight is original.layer.weight
    compiled(torch.ones(B, 2)).sum().backward()
    assert original.layer.weight.grad is not None
    with torch.no_grad():
        original.shift.fill_(1000.0)
    assert compiled(torch.ones(B, 2)).min() > 1000
    other = compiled.with_estimator("lr")
    assert other.layer.weight is original.layer.weight
    assert other.graph(torch.ones(B, 2)).sites[0].estimator == "lr"
    assert compiled.graph(torch.ones(B, 2)).sites[0].estimator == "rp"


@pytest.mark.parametrize("index", range(3))
def test_modules_in_a_training_loop(index: int) -> None:
    model = compiled_models()[index]
    x = torch.ones(B, 2)
    assert model.to(torch.float32) is model
    assert model(x.float()).dtype == torch.float32
    model.to(torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    first = model(x.expand(B, 2)).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
    assert model(x).mean().item() < first + 2
    assert model.train() is model
    assert not model.eval().training
    assert model(x).shape == (B,)


@pytest.mark.parametrize("index", range(3))
def test_deepcopy_pickle_and_save(index: int) -> None:
    model = compiled_models()[index]
    x = torch.ones(B, 2)
    model(x).sum().backward()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert type(other) is type(model)
        assert other.layer.weight is not model.layer.weight
        with torch.no_grad():
            other.layer.weight.fill_(3.0)
            other.shift.fill_(7.0)
        torch.manual_seed(0)
        cost = other(x)
        assert model.layer.weight.ne(3.0).all()
        cost.sum().backward()
        assert cost.mean() > 50
        assert other.layer.weight.grad is not model.layer.weight.grad


def test_functions_copy_and_pickle() -> None:
    scored(leaf())
    for other in (copy.deepcopy(scored), pickle.loads(pickle.dumps(scored))):
        assert isinstance(other, propc.CompiledFunction)
        theta = leaf()
        other(theta).sum().backward()
        assert theta.grad is not None
        assert "'lr'" in repr(other)
    partial = propc.compile(functools.partial(plain, scale=2.0))
    assert pickle.loads(pickle.dumps(partial))(leaf()).shape == (B,)
    thing = Callable_()
    other = copy.deepcopy(propc.compile(thing.__call__))
    other(B).sum().backward()
    assert thing.theta.grad is None  # the copy has an object of its own


def test_functional_call() -> None:
    for model in compiled_models():
        x = torch.ones(B, 2)
        tensors = {n: (p.detach() * 0 + 2).requires_grad_() for n, p in model.named_parameters()}
        model(x)
        cost = torch.func.functional_call(model, {**tensors, "shift": torch.tensor(50.0)}, (x,))
        assert cost.min() > 1000
        cost.sum().backward()
        assert tensors["layer.weight"].grad is not None
        assert model.layer.weight.grad is None


def test_replacing_a_parameter_is_seen() -> None:
    model = propc.compile(Model(), estimator="rp")
    x = torch.ones(B, 2)
    model(x)
    model.layer = nn.Linear(2, 5)
    model(x).sum().backward()
    assert model.layer.weight.grad is not None
    model.scale = nn.Parameter(torch.tensor(100.0))
    assert model(x).max() > 100
    model.double()


# -- gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", "infer"])
def test_backward_and_autograd_grad_agree(estimator: str) -> None:
    compiled = propc.compile(plain, estimator=estimator)
    theta = leaf()
    torch.manual_seed(3)
    compiled(theta).mean().backward()
    torch.manual_seed(3)
    (grad,) = torch.autograd.grad(compiled(theta).mean(), theta)
    assert torch.equal(grad, theta.grad)


def two_costs(theta: Tensor) -> dict[str, Tensor]:
    x = propc.sample(Normal(theta.expand(B), 1.0), "x")
    b = propc.sample(Bernoulli(torch.sigmoid(x.detach() * 0 + theta)), "b")
    return {"first": x.square() + 3 * theta, "second": b * x}


@pytest.mark.parametrize("estimator", ["lr", "infer"])
def test_any_weighted_combination_of_costs_with_other_losses(estimator: str) -> None:
    compiled = propc.compile(two_costs, estimator=estimator)
    theta, w = leaf(), leaf(2.0)
    weights = torch.linspace(-1, 2, B)

    def grads(a: float, b: float, c: float) -> Tensor:
        torch.manual_seed(4)
        out = compiled(theta)
        loss = a * (weights * out["first"]).sum() + b * out["second"].mean() + c * (w * theta).square()
        return torch.stack(torch.autograd.grad(loss, (theta, w), materialize_grads=True))

    whole = grads(2.0, -3.0, 1.0)
    assert torch.allclose(whole, 2 * grads(1, 0, 0) - 3 * grads(0, 1, 0) + grads(0, 0, 1))


def test_accumulation_two_forwards_and_retain_graph() -> None:
    compiled = propc.compile(plain, estimator="tp")
    theta = leaf()
    torch.manual_seed(0)
    one = compiled(theta)
    two = compiled(theta)  # a second forward before the first backward
    first, second = (torch.autograd.grad(c.mean(), theta, retain_graph=True)[0] for c in (one, two))
    assert torch.equal(torch.autograd.grad(one.mean(), theta, retain_graph=True)[0], first)
    one.mean().backward(retain_graph=True)
    two.mean().backward()
    assert torch.allclose(theta.grad, first + second)
    one.mean().backward()
    assert torch.allclose(theta.grad, 2 * first + second)


def test_upstream_and_downstream_of_other_modules() -> None:
    encoder, head = nn.Linear(2, 1), nn.Linear(1, 1)
    compiled = propc.compile(lambda loc: propc.sample(Normal(loc, 1.0), "z").square(), estimator="lr")
    cost = compiled(encoder(torch.ones(B, 2)).squeeze(-1))
    head(cost.unsqueeze(-1)).mean().backward()
    assert encoder.weight.grad is not None
    assert head.weight.grad is not None


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_forward_without_backward_leaks_nothing(estimator: str) -> None:
    compiled = propc.compile(plain, estimator=estimator)
    theta = leaf()
    compiled(theta)
    gc.collect()
    cost = compiled(theta)
    alive = weakref.ref(cost)
    gc.disable()  # freed at once, not only by the collector
    try:
        del cost
        assert alive() is None
        before = _tensors()
        for _ in range(5):
            compiled(theta)
        assert _tensors() <= before
    finally:
        gc.enable()


def _tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", propc.estimator("tp", weights="past")])
def test_a_failed_backward_poisons_nothing(estimator: Any) -> None:
    def program(theta: Tensor, fail: Tensor) -> Tensor:
        h = theta.expand(B) * 1.0
        h.register_hook(explode)
        return propc.sample(Normal(h, 1.0), "x").square()

    broken = True

    def explode(grad: Tensor) -> Tensor:
        if broken:
            raise RuntimeError("the user's hook failed")
        return grad

    compiled = propc.compile(program, estimator=estimator)
    theta = leaf()
    with pytest.raises(RuntimeError, match="hook failed"):
        compiled(theta, torch.ones(1)).sum().backward()
    assert theta.grad is None
    broken = False
    torch.manual_seed(1)
    cost = compiled(theta, torch.ones(1))
    cost.sum().backward()
    assert torch.isfinite(theta.grad)


# -- choosing estimators ------------------------------------------------------------------------------


def three_sites(theta: Tensor, override: Any = None) -> Tensor:
    x = propc.sample(Normal(theta.expand(B), 1.0), "x0")
    y = propc.sample(Normal(x + theta, 1.0), "x1", estimator=override)
    b = propc.sample(Bernoulli(logits=y + theta), "b")
    return (b - y).square()


def chosen(compiled: Any, *args: Any) -> dict[str, str]:
    return {
        site.name: {"likelihood-ratio": "lr", "inverse-variance": "tp"}.get(site.rule.name, site.rule.name)
        for site in compiled.graph(leaf(), *args).sites
    }


def test_estimators_by_name_object_mapping_function_and_at_the_site() -> None:
    assert chosen(propc.compile(three_sites)) == {"x0": "rp", "x1": "rp", "b": "lr"}
    assert chosen(propc.compile(three_sites, estimator={"x*": "lr", "b": propc.LikelihoodRatio(None)})) == {
        "x0": "lr",
        "x1": "lr",
        "b": "lr",
    }
    mixed = propc.compile(
        lambda t: propc.sample(Normal(t.expand(B), 1.0), "x") + propc.sample(Normal(t.expand(B), 1.0), "y"),
        estimator={"y": propc.TotalPropagation(weights="past")},
    )
    assert chosen(mixed) == {"x": "rp", "y": "tp"}
    by_function = propc.compile(three_sites, estimator=lambda site: "lr" if site.name == "x0" else None)
    assert chosen(by_function)["x0"] == "lr"
    assert chosen(propc.compile(three_sites), "lr")["x1"] == "lr"  # at the site
    assert chosen(propc.compile(three_sites, estimator=propc.LikelihoodRatio)) == {
        "x0": "lr",
        "x1": "lr",
        "b": "lr",
    }
    assert chosen(propc.compile(three_sites).with_estimator("lr"))["b"] == "lr"


def test_explain_graph_and_graphs() -> None:
    text = str(scored.explain(leaf()))
    assert "Normal(" in text
    assert "test_compile.py" in text
    names = [name for name, _ in scored.graphs(leaf())]
    assert names[0] == "traced"
    assert names[1:3] == ["split-costs", "find-influence"]
    assert scored.graph(leaf()).verify() is not None


def test_passes_by_name_class_and_object() -> None:
    seen = []

    @propc.passes.register("count-sites-test")
    class CountSites(propc.passes.Pass):
        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            seen.append(len(graph.sites))
            return graph

    for choice in ("count-sites-test", CountSites, CountSites()):
        compiled = propc.compile(three_sites, passes=[choice])
        compiled(leaf())
        assert "count-sites-test" in [name for name, _ in compiled.graphs(leaf())]
    assert set(seen) == {3}


# -- the state of estimators ---------------------------------------------------------------------------


def moving(theta: Tensor) -> Tensor:
    return propc.sample(Normal(theta.expand(B), 1.0), "x").square() + 10


def test_estimator_state_saves_and_loads() -> None:
    for estimator in (propc.estimator("lr", baseline="moving_average"), propc.estimator("tp", weights="past")):
        trained = propc.compile(moving, estimator=estimator)
        for _ in range(3):
            trained(leaf()).mean().backward()
        state = trained.state_dict()
        assert state
        fresh = propc.compile(moving, estimator=estimator)
        fresh.load_state_dict(state)  # before its first call
        assert list(fresh.state_dict()) == list(state)
        used = propc.compile(moving, estimator=estimator)
        used(leaf()).sum().backward()
        used.load_state_dict(state)
        copies = [fresh, used, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))]
        grads = []
        for each in (trained, *copies):
            theta = leaf()
            torch.manual_seed(9)
            each(theta).mean().backward()
            grads.append(theta.grad)
        assert all(torch.equal(grads[0], g) for g in grads[1:])


def test_estimator_state_lives_in_a_compiled_module() -> None:
    model = propc.compile(Model(), estimator=propc.estimator("lr", baseline="moving_average"))
    before = list(model.state_dict())
    model(torch.ones(B, 2)).sum().backward()
    after = model.state_dict()
    assert [k for k in after if not k.startswith("estimator_state.")] == before
    assert len(after) > len(before)
    again = propc.compile(Model(), estimator=propc.estimator("lr", baseline="moving_average"))
    again.load_state_dict(after)
    again.load_state_dict(Model().state_dict())  # what is missing starts afresh
    assert list(model.estimator_parameters()) == []
    frozen = copy.deepcopy(model.state_dict())
    model.eval()
    model(torch.ones(B, 2))
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), model.state_dict().values()))


def test_two_instances_have_their_own_state() -> None:
    kind = propc.compile(
        type("Fresh", (Model,), {"forward": Model.forward}), estimator=propc.estimator("lr", baseline="moving_average")
    )
    one, two = kind(), kind()
    one(torch.ones(B, 2)).sum().backward()
    assert len(one.state_dict()) > len(two.state_dict())
    assert one.with_estimator("rp").estimator_state is not one.estimator_state


def test_moving_averages_of_two_paces_keep_apart() -> None:
    """Two sites of one cost under moving averages with other decays: each has a state of its own."""
    from propc.estimators import LikelihoodRatio, MovingAverage

    def program(t: Tensor) -> Tensor:
        x = propc.sample(Normal(t.expand(8), 1.0), "x", estimator=LikelihoodRatio(MovingAverage(0.5)))
        return (x + propc.sample(Normal(t.expand(8), 1.0), "y", estimator=LikelihoodRatio(MovingAverage(0.9)))).square()

    compiled = propc.compile(program)
    compiled(torch.tensor(1.0, requires_grad=True))
    weights = sorted(v.item() for k, v in compiled.state_dict().items() if k.endswith("weight"))
    assert weights == pytest.approx([0.1, 0.5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which Dynamo looks at
def test_inside_torch_compile() -> None:
    """Dynamo does not look inside: the program runs as it is, and what is around it is compiled."""
    compiled, model = propc.compile(plain, estimator="lr"), CompiledModel()
    frames = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        frames.append(graph)
        return graph.forward

    def outer(theta: Tensor, x: Tensor) -> Tensor:
        return 3 * compiled(torch.sin(theta)).mean() + Agent(1.0).loss(theta.expand(B)).mean() + model(x).mean()

    theta, x = leaf(), torch.ones(B, 2)
    results = []
    for run in (outer, torch.compile(outer, backend=count)):
        torch.manual_seed(0)
        results.append((value := run(theta, x), *torch.autograd.grad(value, theta)))
    torch.testing.assert_close(*results)
    assert 0 < sum(len(graph.graph.nodes) for graph in frames) < 40


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which Dynamo looks at
def test_parts_under_torch_compile() -> None:
    """They are traced as they were written."""
    layer = nn.Linear(2, 2)
    fast = torch.compile(layer, backend="eager")

    @torch.compile(backend="eager")
    def squeezed(x: Tensor) -> Tensor:
        return torch.tanh(x).sum(-1)

    def program(x: Tensor) -> Tensor:
        return squeezed(propc.sample(Normal(fast(x), 1.0), "x"))

    compiled = propc.compile(program, estimator="lr")
    compiled(torch.ones(B, 2)).mean().backward()
    assert layer.weight.grad is not None
    assert "tanh" in str(compiled.graph(torch.ones(B, 2)))
    fast.eval()
    compiled(torch.ones(B, 2))
    assert compiled.compiler.traces == 2  # the layer's mode is a part of its state


def test_under_vmap() -> None:
    with pytest.raises(propc.PropcTypeError, match=r"'plain' is called under a .*give it the elements as rows"):
        torch.vmap(propc.compile(plain), randomness="different")(torch.ones(3))
