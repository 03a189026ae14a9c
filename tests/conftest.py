"""Every test: float64, one seed, one thread, no GPU assumed, torch's globals left as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import torch_state
from agreement import plainly
from mistakes import normal
from torch.autograd.function import _SingleLevelFunction
from zoo import leaf

import propc

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
# The first torch.compile of a process patches torch for good: here, not in the test that meets it.
torch.compile(torch.neg, backend="eager")(torch.ones(1))
torch.distributions.Distribution.set_default_validate_args(True)
hypothesis.settings.register_profile("propc", deadline=None, derandomize=True)
hypothesis.settings.load_profile("propc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")
    parser.addoption("--first-case", action="store_true", help="of each test that has cases, the first one only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--first-case"):
        cases: dict[str, list[pytest.Item]] = {}
        for item in items:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        config.hook.pytest_deselected(items=[item for _, *others in cases.values() for item in others])
        items[:] = [first for first, *_ in cases.values()]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def torch_globals() -> Iterator[None]:
    """Run the test in float64 from seed 0, and fail it if it leaves torch changed."""
    outside = torch_state.settings()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    before = torch_state.snapshot()
    yield
    changed = torch_state.changes(before, torch_state.snapshot())
    torch_state.restore(outside)
    assert not changed, f"the test left torch changed: {', '.join(changed)}"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("chain.txt", text)`: the text is that of tests/golden/chain.txt.

    Under ``--update-golden`` the file is written instead; read its diff before committing.
    """

    def check(name: str, text: str) -> None:
        __tracebackhide__ = True
        path = GOLDEN / name
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if not path.exists():
            pytest.fail(f"no tests/golden/{name}: run pytest --update-golden and read it")
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend `inductor` without its compiler."""
    plainly(monkeypatch)


@pytest.fixture
def nothing_is_lost() -> Iterator[None]:
    """After the test, torch is as it was, and an ordinary program compiles and has a gradient."""
    apply = torch.autograd.Function.apply
    yield
    assert torch.autograd.Function.apply == apply
    assert "apply" not in vars(_SingleLevelFunction)
    assert propc.frontend.active_tracer() is None
    theta = leaf()
    propc.compile(lambda theta: normal(theta).square(), estimator="lr")(theta).sum().backward()
    assert theta.grad is not None
