"""Every graph that the examples compile first gives the same on both backends."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from agreement import assert_same, plainly
from torch import Tensor

import propc.compiler.compiler
from propc.runtime.backends import Backend, Report, auto
from propc.runtime.backends.inductor.inductor import Inductor
from propc.runtime.executable import Executable
from propc.runtime.plan.code_writer import straight
from propc.runtime.plan.step import Plan, Values

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = [
    "quickstart",
    "chaotic_rnn",
    "logistic_regression",
    "custom_pass",
    "policy_search",
    "discrete_vae",
    "hard_attention",
    "reinforce",
    "toys",
    "proppo/multi_path",
    "proppo/single_path",
    "messages/feedback_alignment",
    "messages/target_propagation",
    "messages/td_lambda",
]
GRAPHS = 1  # of each example; then it has shown enough


class Enough(BaseException):
    """Ends an example."""


class Both(Backend):
    """Runs both plans from the same values and random numbers, and compares; then goes on on eager."""

    name: ClassVar[str] = "both"

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def plan(self, executable: Executable, values: Values) -> tuple[Plan, Report]:
        plan, report = Inductor().plan(executable, values)
        wanted, found = _step(executable, executable.plan, values), _step(executable, plan, values)
        assert_same(found, wanted, 5e-4 if any(each.dtype == torch.float32 for each in wanted) else None)
        self.reports.append(report)
        if len(self.reports) == GRAPHS:
            raise Enough
        return executable.plan, report


def _step(executable: Executable, plan: Plan, values: Values) -> list[Tensor]:
    """What is returned, and gradients in all that enters, of a sum of costs."""
    places = executable.places
    line = straight(plan, places.given, places.returned)
    with auto._without_trace(executable):
        torch.manual_seed(0)
        given = [values[place].detach().requires_grad_(values[place].requires_grad) for place in places.given]
        leaves = [value for value in given if value.requires_grad]
        executable.planner.sites.begin()
        returned = line(*given)
        costs = [
            each for each, aside in zip(returned, executable.graph.output.guarded) if not aside and each.requires_grad
        ]
        ones = [torch.linspace(0.5, 1.5, each.numel(), dtype=each.dtype).view(each.shape) for each in costs]
        grads = torch.autograd.grad(costs, leaves, ones, allow_unused=True) if costs and leaves else ()
    return [each.detach() for each in (*returned, *grads) if each is not None]


@pytest.mark.filterwarnings("ignore::propc.PropcWarning")
@pytest.mark.parametrize("name", NAMES)
def test_first_graphs_agree(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch)
    both = Both()
    monkeypatch.setattr(propc.compiler.compiler, "backend", lambda chosen: both)
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(tmp_path / "out")])
    monkeypatch.syspath_prepend(str((EXAMPLES / name).parent))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    known = set(sys.modules)
    torch.set_default_dtype(torch.float32)
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    except Enough:
        pass
    finally:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        for made in set(sys.modules) - known:
            if str(getattr(sys.modules[made], "__file__", "")).startswith(str(EXAMPLES)):
                del sys.modules[made]
    assert both.reports or name.startswith("messages/")
