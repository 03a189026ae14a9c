"""Segments of functions, their inputs in plates, and what they should give there."""

from __future__ import annotations

import itertools

import torch

from propc.frontend import Tracer
from propc.frontend.simplify import simplify
from propc.fx import segment_code
from propc.fx.dependence import dependence
from propc.fx.operations import name_of
from propc.fx.program import type_of
from propc.ir import Input, Plate, Ref, Segment, Source, Stage
from propc.ir.graph import PropagationGraph
from propc.runtime.batching.vmapped import VmappedOperation

SIZES = {"a": 3, "b": 2}  # b was introduced after a, and stands outside it
ORDER = ("b", "a")
SPREADS = ((), ("a",), ("b",), ("b", "a"))


def segment_of(fn, tensors, reads):
    """The segment of a function, its inputs in some plates, and a graph with these."""
    where = Source("", 0)
    labels = [f"x{i}" for i in range(len(tensors))]
    program = simplify(Tracer().run(fn, list(tensors), lambda values: (tuple(values), {}), labels, "fn", where))
    body = tuple(n for n in program.graph.nodes if n.op not in ("placeholder", "output"))
    arguments = tuple(leaf.node for leaf in program.leaves)
    assert [leaf.path for leaf in program.leaves] == labels, "a tensor of its own"
    masks = dependence(body, arguments, program.outputs)
    carried = {name for plates in reads for name in plates}
    spread = [{n for i, plates in enumerate(reads) if mask.any >> i & 1 for n in plates} for mask in masks]
    inputs = [
        Input(name=label, outputs=(type_of(node),), plates=plates, path=label)
        for label, node, plates in zip(labels, arguments, reads)
    ]
    segment = Segment(
        name="s",
        inputs=tuple(Ref(label) for label in labels),
        outputs=tuple(type_of(n) for n in program.outputs),
        body=body,
        arguments=arguments,
        results=program.outputs,
        dependence=masks,
        stage=Stage("stage", segment_code.build("stage", body, arguments, program.outputs)),
        plates=tuple(n for n in ORDER if n in carried),
        spread=tuple(tuple(n for n in ORDER if n in part) for part in spread),
    )
    plates = tuple(Plate(name, size) for name, size in SIZES.items())
    return segment, PropagationGraph("fn", program, {n.name: n for n in (*inputs, segment)}, plates)


def looped(segment, reads, values):
    """The segment's results, computed for one element of the plates after the other."""
    order = segment.plates
    found = {}
    for element in itertools.product(*(range(SIZES[name]) for name in order)):
        at = dict(zip(order, element))
        some = [value[tuple(at[name] for name in plates)] for value, plates in zip(values, reads)]
        found[element] = segment.stage.module(*some)
    made = []
    for port, plates in enumerate(segment.spread):
        lead = [SIZES[name] for name in plates]
        each = [
            found[tuple(element[plates.index(n)] if n in plates else 0 for n in order)][port]
            for element in itertools.product(*map(range, lead))
        ]
        made.append(torch.stack(each).unflatten(0, lead) if plates else each[0])
    return made


def gradients(results, values):
    """Of a weighted sum of all results; the weights are those of positions."""
    smooth = [r for r in results if r.is_floating_point() and r.requires_grad]
    total = sum((r * torch.linspace(1, 2, r.numel()).reshape(r.shape)).sum() for r in smooth)
    wanted = [v for v in values if v.requires_grad]
    if not smooth or not wanted:
        return []
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in grads]


def same(first, second):
    for one, two in zip(first, second, strict=True):
        assert one.dtype == two.dtype
        assert one.shape == two.shape or (not one.shape and not one) or (not two.shape and not two)
        limit = 1e-9 if one.dtype is torch.float64 else 1e-2 if one.dtype.itemsize == 2 else 1e-5
        assert torch.allclose(one, two, rtol=limit, atol=limit, equal_nan=True)


def value_of(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(shape, generator=generator)
    if dtype is torch.bool:
        return unit < 0.5
    if not dtype.is_floating_point:
        return (unit * 3).floor().to(dtype)
    return (0.05 + 0.9 * unit).to(dtype).requires_grad_()


def without_rule(run):
    """Names of the operations in code for plates that have no rule."""
    operations = [node.target.node for node in run.code.nodes if isinstance(node.target, VmappedOperation)]
    names = [node.target if isinstance(node.target, str) else name_of(node.target) for node in operations]
    return {name.removeprefix("__").removesuffix("__") for name in names}


def vmapping(segment, reads, noise="different"):
    """The segment's code through `torch.vmap` as a whole."""
    run = segment.stage.module.forward
    for name in reversed(segment.plates):
        into = tuple(0 if name in plates else None for plates in reads)
        run = picked(torch.vmap(run, into, 0, randomness=noise), [name in plates for plates in segment.spread])
    return run


def picked(run, inside):
    """One element of the results that are not in a plate; vmap cannot leave out a plate that is not the outermost."""
    return lambda *values: [each if whole else each[0] for each, whole in zip(run(*values), inside)]
