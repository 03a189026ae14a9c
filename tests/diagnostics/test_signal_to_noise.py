"""Signal-to-noise ratios of what sites send to their φ: right, for every estimator, shown, and without side effects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pictures import parsed
from showcase import GRAPHS, Tell, rewards
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.diagnostics.explanation import HEADERS
from propc.errors import PropcValueError
from propc.printing.colour_scale import RATIOS, Ratios
from propc.runtime.observe.cotangent_probe import Probe

ROWS = 50
THETA = torch.tensor([0.3, 0.4], requires_grad=True)
ESTIMATORS = [
    "rp",
    "lr",
    "tp",
    propc.estimator("tp", target="theta"),
    propc.estimator("tp", weights="past", per_coordinate=True),
    propc.estimator("combine", estimators=("rp", "lr", propc.estimator("lr", baseline=None))),
    "gs",
    "gs-tp",
    "gr",
    {"x": "lr", "y": "rp"},
    propc.estimator("lr", samples=3),
    propc.estimator("rp", samples=3, noise="common"),
    {"x": "rloo", "y": "lr"},
]


def shared_tensor(theta: Tensor) -> Tensor:
    """Two sites that share a tensor, which goes into the cost too."""
    p = theta.expand(ROWS, 2)
    x = propc.sample(Normal(p, 1.0), "x")
    y = propc.sample(Normal(p + x, 1.0), "y")
    return y.square().sum(-1) + (p * x).sum(-1)


def told(theta: Tensor) -> Tensor:
    """A program whose messages autograd cannot carry."""
    h = propc.node(theta.tanh().expand(ROWS, 2), "h", propagator=Tell())
    x = propc.sample(Normal(h, 1.0), "x")
    return propc.node(x, "late", propagator=Tell(back=["h"])).square().sum(-1)


@pytest.mark.slow
@pytest.mark.statistical
def test_of_a_chain() -> None:
    """Pathwise, a row of y's mean gets 2y, N(4θ, 8) in each coordinate, and one of x's gets 2y + θ."""
    found = propc.signal_to_noise(propc.compile(shared_tensor, estimator="rp"), THETA.double(), repeats=2000)
    square = float(THETA.detach().double().square().sum())
    error = (2 / (2 * ROWS)) ** 0.5 / 2000 + 2 * (1.6 / (2000 * ROWS)) ** 0.5  # of the noise and of the signal
    assert list(found) == ["x", "y"]
    assert found["y"] == pytest.approx(16 * square / 16, abs=5 * error)
    assert found["x"] == pytest.approx(25 * square / 16, abs=5 * error)
    twin = propc.signal_to_noise(propc.compile(shared_tensor, estimator="lr"), THETA.double(), repeats=2000)
    assert abs(twin["y"] - square) > 10 * error


@pytest.mark.statistical
def test_without_a_signal() -> None:
    """The ratio is not 1/repeats, as it would be if the noise in the mean were taken for a signal."""

    def centred(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(2000), 1.0), "x").square()

    found = propc.signal_to_noise(
        propc.compile(centred, estimator="rp"), torch.zeros((), requires_grad=True), repeats=20
    )
    assert found["x"] < 5 * (2 / 2000) ** 0.5 / 20 < 0.1 / 20 * 2


def test_without_noise() -> None:
    def linear(theta: Tensor, other: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(ROWS), 1.0), "x")
        y = propc.sample(Normal(other.expand(ROWS), 1.0), "y")
        return 3 * x + 0 * y

    leaves = [torch.tensor(1.0, requires_grad=True) for _ in range(2)]
    assert propc.signal_to_noise(propc.compile(linear, estimator="rp"), *leaves, repeats=3) == {
        "x": float("inf"),
        "y": 0.0,
    }


def probed(program: Any, estimator: Any, theta: Tensor) -> tuple[dict[Any, Tensor], Tensor]:
    """What sites sent in one step, and the gradient."""
    compiled, probe = propc.compile(program, estimator=estimator), Probe()
    compiled.compiler.probe = probe
    (gradient,) = torch.autograd.grad(compiled(theta).mean(), theta)
    return probe.take(), gradient


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_what_sites_send_makes_the_gradient(estimator: Any) -> None:
    """All of the gradient but the direct path passes through the two sites; φ of x is θ, that of y is θ + x."""

    def program(theta: Tensor) -> Tensor:
        p = theta.expand(ROWS, 2)
        x = propc.sample(Normal(p, 1.0), "x")
        return propc.sample(Normal(p + x, 1.0), "y").square().sum(-1) + x.sin().sum(-1) + p.sum(-1)

    theta = torch.tensor([0.3, 0.4], requires_grad=True)
    heard, gradient = probed(program, estimator, theta)
    assert set(heard) == {("x", 0), ("y", 0)}
    sent = sum(cotangent.flatten(0, -2).sum(0) for cotangent in heard.values())
    assert torch.allclose(sent + 1, gradient)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", propc.propagators.Sequence("rp", "clip")], ids=str)
def test_by_messages(estimator: Any) -> None:
    theta = torch.tensor([0.3, 0.4], requires_grad=True)
    assert propc.compile(told, estimator=estimator).graph(theta).general
    heard, gradient = probed(told, estimator, theta)
    assert torch.allclose(heard["x", 0].sum(0) * (1 - theta.tanh().square()), gradient)


def test_a_site_that_messages_visit() -> None:
    """Its propagator itself sends more than cotangents."""

    class Tells(Tell):
        def forward(self, node: Any, message: Any) -> Any:
            node.value = node.distribution.sample()
            return []

        def backward(self, node: Any, message: Any) -> Any:
            return [propc.Message(loc=2 * message.grad), propc.Message(size=message.grad.norm()).to("theta")]

    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(ROWS, 2), 1.0), "x", estimator=Tells(back=["theta"])).square().sum(-1)

    theta = torch.tensor([0.3, 0.4], requires_grad=True)
    assert propc.compile(program).graph(theta).general
    heard, gradient = probed(program, "infer", theta)
    assert torch.allclose(heard["x", 0].sum(0), gradient)


def test_forms_and_what_only_draws() -> None:
    theta, state = torch.tensor(0.5, requires_grad=True), torch.zeros(32)
    plain = propc.signal_to_noise(rewards, theta, state, 3, repeats=5)
    assert list(plain) == ["a0", "a1", "a2"]
    compiled = propc.compile(rewards, estimator="lr")
    assert propc.signal_to_noise(compiled, theta, state, horizon=3, repeats=5) == plain
    assert propc.signal_to_noise(compiled, theta, state, horizon=3, repeats=5, seed=1) != plain


def test_discrete_sites_and_several_phi() -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(ROWS, 2)), "z")
        return propc.sample(Normal(z * theta, theta.exp()), "x").square().sum(-1)

    found = propc.signal_to_noise(program, THETA, repeats=100)
    assert set(found) == {"z", "x"}
    assert found["x"] > 0.05


@pytest.mark.parametrize("estimator", ["enumerate", "local", "arm", "disarm", "mvd", "lr", "rloo"])
def test_of_discrete_sites(estimator: str) -> None:
    """Alternatives, antithetic pairs and configurations: all of the gradient but the direct path passes the sites."""

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(ROWS, 2)), "z")
        w = propc.sample(Bernoulli(logits=theta.expand(ROWS, 2) + z), "w")
        return (z - 0.3).square().sum(-1) * (1 + w.sum(-1)) + theta.sum()

    theta = torch.tensor([0.3, 0.4], requires_grad=True)
    heard, gradient = probed(program, estimator, theta)
    sent = sum(cotangent.flatten(0, -2).sum(0) for cotangent in heard.values())
    assert torch.allclose(sent + 1, gradient)


def test_of_a_site_without_noise() -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(ROWS, 2)), "z")
        return (z - 0.3).square().sum(-1)

    assert propc.signal_to_noise(propc.compile(program, estimator="enumerate"), THETA, repeats=3) == {"z": float("inf")}


def test_bad_input() -> None:
    with pytest.raises(PropcValueError, match="1 steps are too few for a variance"):
        propc.signal_to_noise(shared_tensor, THETA, repeats=1)
    with pytest.raises(PropcValueError, match="this call reads none"):
        propc.signal_to_noise(shared_tensor, torch.zeros(2), repeats=2)


# -- shown --------------------------------------------------------------------------------------


def test_in_the_table() -> None:
    theta, state = torch.tensor(0.5, requires_grad=True), torch.zeros(32)
    compiled = propc.compile(rewards, estimator="lr")
    ratios = propc.signal_to_noise(compiled, theta, state, horizon=3, repeats=10)
    rows = compiled.explain(theta, state, horizon=3, snr=10).rows
    assert tuple(rows[0]) == (*HEADERS[:4], "signal/noise", *HEADERS[4:])
    assert [row["signal/noise"] for row in rows] == [
        f"{ratios[row['site']]:.2g}" if row["site"] in ratios else "" for row in rows
    ]
    assert compiled.explain(theta, state, horizon=3, snr=ratios).rows == rows
    assert "signal/noise" in str(compiled.explain(theta, state, horizon=3, snr=ratios))
    assert tuple(compiled.explain(theta, state, horizon=3).rows[0]) == HEADERS


def test_in_the_picture(golden: Any) -> None:
    graph = GRAPHS["rewards"]()
    ratios = {"a0": 0.004, "a1": 0.03, "a2": 12.0}
    text = graph.to_dot(snr=ratios)
    golden("rewards.snr.dot", text)
    assert "signal/noise" not in graph.to_dot()
    assert text.count("signal/noise") == 4
    with pytest.raises(PropcValueError, match=r"snr= has a ratio of 'a5', which is no site\. Did you mean"):
        graph.to_dot(snr={"a5": 1.0})


def test_colours_rise_with_the_ratio() -> None:
    values = [0.0, 0.02, 0.5, 2.0, 50.0, float("inf")]
    tints = [Ratios({"x": value}).node("x") for value in values]
    assert [tint and tint.colour for tint in tints] == [*(colour for _, colour in RATIOS), RATIOS[-1][1]]


@pytest.mark.slow
def test_in_a_folded_picture(tmp_path: Any) -> None:
    theta, state = torch.tensor(0.5, requires_grad=True), torch.zeros(32)
    graph = propc.compile(rewards, estimator="lr").graph(theta, state, horizon=12)
    ratios = {site.name: 0.01 * i for i, site in enumerate(graph.sites) if site.name.startswith("a")}
    text = graph.to_dot(snr=ratios)
    assert "signal/noise 0.06 to 0.2" in text
    assert parsed(graph)[0] == parsed_with(graph, ratios)
    path = str(tmp_path / "graph.dot")
    graph.render(path, snr=ratios)
    with open(path) as file:
        assert "signal/noise" in file.read()


def parsed_with(graph: Any, ratios: dict[str, float]) -> list[str]:
    class Coloured:
        def to_dot(self, fold: bool) -> str:
            text: str = graph.to_dot(fold=fold, snr=ratios)
            return text

    names: list[str] = parsed(Coloured())[0]
    return names
