"""Operations without a rule: recorded at the first call, and run as recorded at later ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plated import SIZES, gradients, looped, same, segment_of, value_of, vmapping, without_rule

from propc.fx.assignment import assigned as value_assigned
from propc.runtime.batching.vmapped import VmappedOperation
from propc.runtime.plates.segments import chunked, lifted


def written(x):
    y = x * 2
    y.view(y.shape).add_(1)  # through a view: other writes are values before they come here
    return y


class Own(torch.autograd.Function):
    generate_vmap_rule, factor = True, 1.0

    @staticmethod
    def forward(x):
        return Own.factor * x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] + 0.5)  # none that torch would find


def assigned(x):
    y = x * 2
    y.view(y.shape)[0] = x[1]
    return y


def without_gradient(x):
    with torch.no_grad():
        y = x.flip(0)
    return x * y


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x.float(), x.float())


RECORDED = {
    "cdist": lambda x: torch.cdist(x, x),
    "cross": lambda x: torch.cross(x[:, :3], x[:, 1:], dim=1),
    "svdvals": torch.linalg.svdvals,
    "written": written,
    "assigned": assigned,
    "assigned as a value": lambda x: value_assigned(x, (slice(1, None), 0), x[1, 1]) + value_assigned(x, 0, 2.0),
    "masked as a value": lambda x: value_assigned(x, x > 0, 0.5) * x,
    "items of a list": lambda x: x[[0, 2]] * x[:2],
    "several results": lambda x: x.sort(0).values + x.sort(0).indices,
    "filters in plates": lambda x: F.conv1d(x.t()[None], x[:, :, None])[0],
    "without gradient": without_gradient,
}
DRAWN = {
    "rand": lambda x: x.exp() + torch.rand(3, 4),
    "dropout": F.dropout,
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "before the plates": lambda x: (torch.randn(4).exp() * x, x.sum(0)),
}
WITHIN = (("a",), ("b",), ("b", "a"))


def at_each(fn, reads):
    """A segment in plates, its code, and a value for it."""
    segment, graph = segment_of(lambda x: fn(x.sin()), [value_of((3, 4), torch.float64, 0)], [reads])
    value = value_of((*(SIZES[name] for name in reads), 3, 4), torch.float64, 1)
    return segment, lifted(graph, segment, [reads]), value


def derivatives(results, value):
    """First and second, where there are some."""
    smooth = [r for r in results if r.is_floating_point() and r.requires_grad]
    (first,) = torch.autograd.grad(sum(r.square().sum() for r in smooth), value, create_graph=True)
    return [first, *torch.autograd.grad(first.square().sum(), value)]


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("reads", WITHIN)
def test_what_has_no_rule_is_recorded(name, reads, monkeypatch):
    """Through torch.vmap once; then the same values, and derivatives of first and second order."""
    segment, run, value = at_each(RECORDED[name], reads)
    assert without_rule(run)
    vmap, calls = torch.vmap, []
    monkeypatch.setattr(torch, "vmap", lambda *args, **options: calls.append(args) or vmap(*args, **options))
    for _ in range(3):
        found, expected = run(value), looped(segment, [reads], [value])
        same(found, expected)
        if name == "cdist":  # torch differentiates it once
            same(gradients(found, [value]), gradients(expected, [value]))
        else:
            same(derivatives(found, value), derivatives(expected, value))
    operations = [node for node in run.code.nodes if isinstance(node.target, VmappedOperation)]
    assert len(calls) == len(operations) * len(reads)
    other = value.detach().transpose(-1, -2).contiguous().transpose(-1, -2)  # in another order in memory
    same(run(other), looped(segment, [reads], [other]))
    assert len(run.known) == 2


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("reads", WITHIN)
def test_what_draws_is_recorded(name, reads):
    """A call after the first draws what torch.vmap draws."""
    segment, run, value = at_each(DRAWN[name], reads)
    for seed in range(3):
        torch.manual_seed(seed)
        found = run(value)
        torch.manual_seed(seed)
        expected = vmapping(segment, [reads])(value)
        same(found, expected)
        same(derivatives(found, value), derivatives(expected, value))
    assert len(run.known) == 1


def test_autocast_is_recorded():
    segment, run, value = at_each(autocast, ("a",))
    for _ in range(2):
        (found,), expected = run(value), vmapping(segment, [("a",)])(value)
        assert found.dtype is torch.bfloat16
        same([found], expected)
        same(gradients([found], [value]), gradients(expected, [value]))


def test_common_noise_is_recorded():
    segment, graph = segment_of(DRAWN["rand"], [value_of((3, 4), torch.float64, 0)], [("a",)])
    graph = replace(graph, plates=tuple(replace(plate, common=True) for plate in graph.plates))
    run, value = lifted(graph, segment, [("a",)]), value_of((3, 3, 4), torch.float64, 1)
    for seed in range(2):
        torch.manual_seed(seed)
        found = run(value)[0] - value.exp()
        assert torch.allclose(found, found[:1])
        torch.manual_seed(seed)
        same([found + value.exp()], vmapping(segment, [("a",)], "same")(value))


def test_a_users_function_runs_at_every_call(monkeypatch):
    """It has a derivative of its own, and may look at what changes."""
    _, run, value = at_each(Own.apply, ("a",))
    monkeypatch.setattr(Own, "factor", 2.0, raising=False)
    assert torch.allclose(run(value)[0], 2 * value.sin().exp())
    monkeypatch.setattr(Own, "factor", 3.0)
    found = run(value)
    assert torch.allclose(found[0], 3 * value.sin().exp())
    same(torch.autograd.grad(found[0].sum(), value), [3 * value.sin().exp() * value.cos() + 0.5 * value.cos()])


def test_the_rest_of_its_segment_is_recorded():
    _, run, value = at_each(lambda x: Own.apply(x).flip(0), ("a",))
    run(value)
    (code,) = run.known.values()
    steps = [node for node in code.__self__.graph.nodes if node.op == "call_function"]
    assert [isinstance(step.target, VmappedOperation) for step in steps] == [True, False]


def test_values_are_checked_at_every_call():
    _, run, value = at_each(lambda x: torch.linalg.inv(x[:, :3]), ("a",))
    run(value)
    with pytest.raises(torch.linalg.LinAlgError):
        run(value.detach() * 0)


def test_an_operation_of_the_users_has_no_rule_by_its_name():
    """And is Python code of theirs, which may look at what changes."""
    factors = [1.0]
    with torch.library._scoped_library("propc_test", "FRAGMENT") as library:
        library.define("softmax(Tensor x, int dim) -> Tensor")
        library.impl("softmax", lambda x, dim: factors[-1] * x.select(dim, 0), "CompositeImplicitAutograd")
        segment, run, value = at_each(lambda x: torch.ops.propc_test.softmax(x, 0), ("a",))
        for factor in (1.0, 2.0):
            factors.append(factor)
            same(run(value), looped(segment, [("a",)], [value]))


def test_casts_are_recorded():
    """Not made a second time: what is inside an operation that autocast leaves in float32 stays so."""
    _, run, value = at_each(lambda x: torch.linalg.pinv(x.float()), ("a",))
    value = value.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = run(value)[0], run(value)[0]
        assert torch.is_autocast_enabled("cpu")
    assert first.dtype is second.dtype is torch.float32
    same([second], [first])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_loop_of_vmap_is_not_recorded(monkeypatch):
    """It has as many operations as the plate has elements."""
    for most, written in ((64, False), (4, True)):
        monkeypatch.setattr("propc.runtime.batching.recorded.MOST", most)
        segment, run, value = at_each(lambda x: torch.histc(x, 4), ("a",))
        for _ in range(2):
            same(run(value), looped(segment, [("a",)], [value]))
        (code,) = run.known.values()
        assert any(isinstance(node.target, VmappedOperation) for node in code.__self__.graph.nodes) == written


def test_a_checkpoint_may_stop_inside_a_users_function():
    """Under `chunk=` the reverse pass runs the code again, up to the last tensor that it needs."""
    segment, graph = segment_of(lambda x: Own.apply(x.sin()), [value_of((3, 4), torch.float64, 0)], [("a",)])
    graph = replace(graph, plates=tuple(replace(plate, chunk=1) for plate in graph.plates))
    value = value_of((3, 3, 4), torch.float64, 1)
    whole = lifted(graph, segment, [("a",)]).run
    parts = chunked(graph, whole, [("a",)], segment.spread)
    same(gradients(parts(value), [value]), gradients(whole(value), [value]))
