"""A seeded grammar of small programs. A seed gives the same program for ever, as long as the grammar stands."""

from __future__ import annotations

import random

import torch

from .program import Program

# (name, text, continuous dimensions, number of values or 0, text of what goes on)
# {u}, {v}: values of rows, of any size; {t}: the draw. What is written "loc" or "pos" is bounded.
LOC = ("{u}.tanh()", "0.7 * {u}.sin()", "0.5 * {u}", "({u} + {v}).tanh()", "F.relu({u}).clamp(max=1.5)")
POS = ("F.softplus({u}) + 0.3", "torch.exp(0.4 * {u}.tanh())", "0.6 + 0.3 * {u}.cos()")

CONTINUOUS = (
    ("Normal({loc}, {pos})", 1, "{t}"),
    ("Normal({loc}, 0.5)", 1, "{t}"),
    ("Gamma({pos} + 0.5, {pos} + 0.3)", 1, "{t}"),
    ("Beta({pos} + 0.5, {pos} + 0.5)", 1, "{t}"),
    ("Laplace({loc}, {pos})", 1, "{t}"),
    ("Exponential({pos} + 0.2)", 1, "{t}"),
    ("LogNormal({loc}, 0.4)", 1, "{t}"),
    ("Gumbel({loc}, 0.5)", 1, "{t}"),
    ("TransformedDistribution(Normal({loc}, 0.6), [TanhTransform()])", 1, "{t}"),
    ("TransformedDistribution(Normal({loc}, 0.4), [AffineTransform(0.2, 0.8), ExpTransform()])", 1, "{t}"),
    ("TransformedDistribution(Normal({loc}, {pos}), [SigmoidTransform()])", 1, "{t}"),
    ("TransformedDistribution(Normal(0 * {u}, 1.0), [AffineTransform({loc}, {pos}, cache_size=1)])", 1, "{t}"),
    ("Independent(Normal(torch.stack([{loc}, {loc}], -1), 0.6), 1)", 2, "{t}[:, 0] * {t}[:, 1].cos()"),
    ("Normal(torch.stack([{loc}, {loc}], -1), 0.6)", 2, "{t}.square().sum(-1)"),
    (
        "MultivariateNormal(torch.stack([{loc}, {loc}], -1), "
        "scale_tril=torch.tensor([[0.7, 0.0], [0.3, 0.5]], dtype={u}.dtype))",
        2,
        "{t}[..., 0] * {t}[..., 1]",
    ),
)
# the last: the letter of the site's name
DISCRETE = (
    ("Bernoulli(logits={loc})", 2, "{t}", "b"),
    ("Bernoulli(probs=torch.sigmoid({loc}))", 2, "{t}", "b"),
    ("Bernoulli(0.1 + 0.8 * torch.sigmoid({loc}))", 2, "(2 * {t} - 1)", "b"),
    (
        "Independent(Bernoulli(logits=torch.stack([{loc}, {loc}], -1)), 1)",
        4,
        "({t}[:, 0] * {t}[:, 1] + {t}[:, 0])",
        "b",
    ),
    ("Bernoulli(logits=torch.stack([{loc}, {loc}], -1))", 4, "({t} * 1.3).sin().prod(-1)", "b"),
    ("Categorical(logits=torch.stack([{loc}, {loc}, 0 * {u}], -1))", 3, "{table}[{t}]", "k"),
    ("Categorical(probs=torch.softmax(torch.stack([{loc}, {loc}, 0 * {u}], -1), -1))", 3, "{t}.to({u}.dtype)", "k"),
    ("Categorical(logits=torch.stack([{loc}, {loc}], -1))", 2, "torch.where({t} == 1, {u}, {v})", "k"),
    ("OneHotCategorical(logits=torch.stack([{loc}, {loc}, 0 * {u}], -1))", 3, "({t} * {table}).sum(-1)", "b"),
    ("OneHotCategorical(probs=torch.softmax(torch.stack([{loc}, {loc}], -1), -1))", 2, "({t}[:, 0] - {t}[:, 1])", "b"),
    ("Binomial(2, logits={loc})", 3, "{t}", "n"),
)
COUNTS = (
    ("Poisson({pos})", 12, "0.5 * {t}", "n"),
    ("Poisson({pos} + 0.5)", 14, "(0.6 * {t}).sin()", "n"),
    ("Geometric(0.3 + 0.5 * torch.sigmoid({loc}))", 24, "0.3 * {t}", "n"),
)

# {t} is new; several lines are parted by |
SMOOTH = (
    "{t} = {u}.sin()",
    "{t} = {u}.tanh() * {v}",
    "{t} = 0.4 * {u} * {v} + 0.2",
    "{t} = {u} + 0.5 * {v}.cos()",
    "{t} = torch.exp(-{u}.square())",
    "{t} = F.softplus({u} - {v})",
    "{t} = ({u}.square() + {v}.square() + 0.2).sqrt()",
    "{t} = torch.addcmul({u}, {u}, {v}, value=0.3)",
    "{t} = torch.stack([{u}, {v}, {u} * {v}], -1).softmax(-1)[:, 1]",
    "{t} = torch.stack([{u}, {v}], -1).logsumexp(-1)",
    "{t} = (torch.stack([{u}, {v}], -1) @ torch.tensor([[0.5, -0.3], [0.2, 0.7]], dtype={u}.dtype)).tanh().sum(-1)",
    "{t} = torch.stack([{u}, {v}, {u}], -1).cumsum(-1)[:, 2].sin()",
    "{t} = torch.einsum('bi,bi->b', torch.stack([{u}, {v}], -1), torch.stack([{v}, {v}], -1)).tanh()",
    "{t} = propc.scan(lambda s: torch.tanh(1.2 * s + 0.3), {u}, 3)",
    "{t} = propc.scan(lambda s: (s[0] + 0.3 * s[1], s[1].sin()), ({u}, {v}), 4)[0]",
    "{t} = {u}|for _ in range(3):|    {t} = torch.tanh({t} + 0.3 * {v})",
    "{t} = propc.node({u} * {v}.sigmoid(), '{t}')",
)
MEETING = (  # kinks, and branches that meet: no jump
    "{t} = F.relu({u})",
    "{t} = {u}.abs()",
    "{t} = {u}.clamp(-0.5, 0.8)",
    "{t} = F.leaky_relu({u}, 0.2)",
    "{t} = torch.where({u} > 0, {u}, 0.1 * {u})",
    "{t} = torch.where({u} > {v}, {u}.square(), {u} * {v})",
    "{t} = torch.maximum({u}, {v})",
    "{t} = torch.minimum({u}, 0.5 * {v})",
    "{t} = F.huber_loss({u}, {v}, reduction='none')",
    "{t} = torch.stack([{u}, {v}, -{u}], -1).sort(-1).values[:, 1]",
    "{t} = torch.stack([{u}, {v}], -1).amax(-1)",
    "{t} = {u} * ({u} > 0)",
    "{t} = F.hardtanh({u})",
)
JUMPING = (
    "{t} = torch.where({u} > 0.3, {u}.square() + 1, {u})",
    "{t} = torch.where({u} > {v}, {u} + 0.7, {v})",
    "{t} = {u} * ({u} > 0.4)",
    "{t} = {u}.masked_fill({u} < -0.2, 1.0)",
    "{t} = {u} % 0.7",
    "{t} = {u}.round()",
    "{t} = (2 * {u}).floor() * {v}",
    "{t} = {u}.sign() * {v}",
    "{t} = torch.div({u}, 0.5, rounding_mode='floor')",
    "{t} = {table}[({u} > 0).long() + ({v} > 0.2).long()]",
    "{t} = {table}[(2 * {u}.sigmoid()).long()] + {u}",
    "{t} = torch.stack([{u}, {v}], -1).gather(-1, ({u} > 0.1).long().unsqueeze(-1)).squeeze(-1)",
    "{t} = torch.heaviside({u}.detach(), torch.zeros_like({u})) + {v}",
    "{t} = {table}[torch.stack([{u}, {v}, 0 * {u}], -1).argmax(-1)]",
    "{t} = {u} * 1|{t}[{u} > 0.5] = 0.0",
    "{t} = ({u} > {v}).to({u}.dtype) + {u}.tanh()",
    "{t} = torch.where(({u} > 0) & ({v} > 0), {u} + 1, {u})",
)
PATHS = (  # paths that autograd is not to be believed on, and forms that write
    "{t} = (1 * {u}).round_()",
    "{t} = 2 * {u}|{t}.floor_()",
    "{t} = (1 * {u}).sign_() * {v}",
    # of a draw the user's own word, which rp keeps and a score cannot: only of parameters
    "{t} = a.detach() * {v}",
    "{t} = {u} + b.detach()",
    "{t} = propc.opaque(torch.sin, gradient=None)({u}) + {v}",
    "{t} = propc.opaque(lambda a, b: a * b, gradient=None)({u}, {v})",
    "{t} = {u}.clone()|{t} *= 1.5|{t}.add_({v})",
    "{t} = torch.zeros_like(torch.stack([{u}, {v}], -1))|{t}[:, 0] = {u}|{t}[:, 1] = {v}|{t} = {t}.prod(-1)",
    "{t} = torch.stack([{u}, {v}], -1)|{t}[:, 0].mul_(2.0)|{t} = {t}.sum(-1).sin()",
    "{t} = torch.empty_like({u}).copy_({u}).mul_({v})",
    "{t} = torch.stack([{u}, {v}], -1).view(-1, 2).t()[0].sin()",
    "{t} = torch.stack([{u}, {v}], -1).flip(-1).unbind(-1)[0] * {v}",
    "{t} = (1 * {u}).clamp_(-0.5, 0.5)",
    "{t} = (1 * {u}).tanh_() + (1 * {v}).relu_()",
)
PLATES = (
    "with propc.plate('p', dim=1):"
    "|    w = propc.sample(Bernoulli(logits=torch.stack([{loc}, {loc}], -1)), 'bp')"
    "|    y = propc.cost(torch.sin(1.3 * w) * torch.stack([{u}, {v}], -1), 'y')",
    "with propc.plate('p', dim=1):"
    "|    w = propc.sample(OneHotCategorical(logits=torch.stack([torch.stack([{loc}, 0 * {u}], -1)] * 2, 1)), 'bp')"
    "|    y = propc.cost(w[..., 0] * torch.stack([{u}, {v}], -1).cos(), 'y')",
)
# Bounds on exact answers: states of discrete sites beside no, one and two continuous dimensions.
MOST_STATES = (200, 40, 4)


class _Writer:
    """Lines of a program, and the values of rows that the next line may use."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(f"program {seed}")  # not the numbers that chose its kind
        self.lines: list[str] = []
        self.values = ["a", "b"]
        self.sites: list[str] = []
        self.dimensions, self.states, self.count = 0, 1, 0

    def two(self) -> dict[str, str]:
        """Two values; the younger the likelier."""
        weights = [1.5**rank for rank in range(len(self.values))]
        u, v = self.choose.choices(self.values, weights, k=2)
        return {"u": u, "v": v}

    def fill(self, text: str, **more: str) -> str:
        while "{loc}" in text:
            text = text.replace("{loc}", self.choose.choice(LOC).format(**self.two()), 1)
        while "{pos}" in text:
            text = text.replace("{pos}", self.choose.choice(POS).format(**self.two()), 1)
        names = self.two()
        table = f"torch.tensor([0.3, -1.0, 0.8], dtype={names['u']}.dtype)"
        return text.format(**names, table=table, **more)

    def line(self, text: str, value: str | None = None) -> None:
        self.lines += text.split("|")
        if value is not None:
            self.values.append(value)

    def operation(self, group: tuple[str, ...]) -> None:
        self.count += 1
        name = f"t{self.count}"
        self.line(self.fill(self.choose.choice(group), t=name), name)

    def site(self) -> bool:
        """One more site, if the exact answer stays cheap."""
        kind = self.choose.choices(("continuous", "discrete", "counts"), (5, 5, 1))[0]
        if kind == "continuous":
            law, dimensions, then = self.choose.choice(CONTINUOUS)
            states, letter = 1, "c"
        else:
            law, states, then, letter = self.choose.choice(DISCRETE if kind == "discrete" else COUNTS)
            dimensions = 0
        after = self.dimensions + dimensions
        if after >= len(MOST_STATES) or self.states * states > MOST_STATES[after]:
            return False
        self.dimensions, self.states = after, self.states * states
        self.count += 1
        name = f"{letter}{self.count}"
        self.line(f"{name} = propc.sample({self.fill(law)}, {name!r})")
        self.line(f"x{self.count} = {self.fill(then, t=name)}", f"x{self.count}")
        self.sites.append(f"x{self.count}")
        return True

    def text(self, result: str, arguments: str = "a, b, c") -> str:
        return "\n".join(
            [f"def program({arguments}):", *("    " + line for line in self.lines), f"    return {result}"]
        )


def generate(seed: int) -> Program:
    """The program of a seed: seven in ten have independent rows."""
    kind = random.Random(seed).choices(("rows", "gaussian", "edge", "meet"), (70, 6, 10, 14))[0]
    program: Program = {"rows": _rows, "gaussian": _gaussian, "edge": _edge, "meet": _meet}[kind](seed)
    return program


def _rows(seed: int) -> Program:
    write = _Writer(seed)
    choose = write.choose
    rough = choose.random() < 0.35
    odd = choose.random() < 0.35

    def operations(most: int) -> None:
        for _ in range(choose.randint(0, most)):
            groups = [SMOOTH, SMOOTH, MEETING] + [JUMPING] * rough + [PATHS] * odd
            write.operation(choose.choice(groups))

    wanted = choose.choices((1, 2, 3), (4, 4, 2))[0]
    for _ in range(wanted):
        operations(1)
        while not write.site() and not write.sites:
            pass
    write.values.insert(1, "c")
    operations(3)
    if rough:
        write.operation(JUMPING)
    if odd:
        write.operation(PATHS)
    plated = choose.random() < 0.12 and write.states * 4 <= MOST_STATES[write.dimensions]
    if plated:
        write.line(write.fill(choose.choice(PLATES)))
    last = write.values[-1]
    parts = [f"{last}.sin()", f"{last} * c"]
    sites = " + ".join(f"{site} * {choose.choice(write.values)}" for site in write.sites)
    costs = [sites, *choose.sample(parts, choose.randint(1, 2))]
    several = choose.random() < 0.2
    costs = costs if several else [" + ".join(costs)]
    if choose.random() < 0.3:
        costs[0] = f"propc.cost({costs[0]}, 'first')"
    if plated:
        costs[-1] += " + y.sum(-1)"
    return Program(
        seed,
        "rows",
        write.text(", ".join(costs)),
        {name: round(choose.uniform(-1.2, 1.2), 2) for name in "abc"},
        frozenset() if plated else frozenset("c"),  # a plate's site may depend on all
        torch.float64 if choose.random() < 0.7 else torch.float32,
        choose.random() < 0.2,
    )


def _gaussian(seed: int) -> Program:
    """A chain of Normals that stays Gaussian, where Gaussian shaping is right to order 1/B."""
    write = _Writer(seed)
    choose = write.choose
    state = "a"
    for step in range(choose.choice((1, 2))):
        scale = choose.choice(("0.5", "F.softplus(b) + 0.2", "torch.exp(0.3 * b)"))
        loc = choose.choice((f"0.8 * {state} + 0.3 * b", f"{state} - 0.2 * b", f"{state}"))
        write.line(f"c{step} = propc.sample(Normal({loc}, {scale}), 'c{step}')")
        state = f"c{step}"
    cost = choose.choice(
        ("({x} - c).square()", "({x} * c).sin()", "torch.exp(-({x} - 1).square()) * c", "{x} * {x} * c")
    )
    values = {name: round(choose.uniform(-1.2, 1.2), 2) for name in "abc"}
    return Program(seed, "gaussian", write.text(cost.format(x=state)), values, frozenset("c"))


_EDGES = (
    ("Bernoulli(probs=a)", "b", (0.0, 1.0, 1e-10, 1e-30, 1 - 1e-7)),
    ("OneHotCategorical(probs=torch.stack([a, 0.3 - 0.5 * a, 0.7 - 0.5 * a], -1))", "b", (0.0, 1e-10)),
    ("Categorical(probs=torch.stack([a, 0.3 - 0.5 * a, 0.7 - 0.5 * a], -1))", "k", (0.0, 1e-10)),
    ("Binomial(2, probs=a)", "n", (0.0, 1.0, 1e-10)),
    ("Poisson(a)", "n", (0.0,)),
    ("Bernoulli(logits=a)", "b", (60.0, -60.0)),
    ("Bernoulli(probs=a).expand([len(b)])", "b", (0.0, 1.0)),
)
_OF_EDGES = {
    "OneHotCategorical": (
        "(2 * z[:, 0] + z[:, 1]) * c",
        "(z * torch.tensor([2., 1., -1.], dtype=a.dtype)).sum(-1) * b",
    ),
    "Categorical": ("torch.tensor([2., 1., -1.], dtype=a.dtype)[z] * c", "(z == 0) * c + b * z"),
}


def _edge(seed: int) -> Program:
    write = _Writer(seed)
    law, letter, values = write.choose.choice(_EDGES)
    family = law.partition("(")[0]
    write.line(f"z = propc.sample({law}, '{letter}0')")
    cost = write.choose.choice(_OF_EDGES.get(family, ("(z + b).square() * c", "torch.exp(0.5 * z) + b * z", "3 * z")))
    values = {"a": write.choose.choice(values), "b": 0.6, "c": 1.3}
    dtype = write.choose.choice((torch.float32, torch.float64))
    return Program(seed, "edge", write.text(cost), values, frozenset("bc"), dtype)


_LAWS_THAT_MEET = (
    ("Bernoulli(logits={p})", "z", "b"),
    ("Bernoulli(probs=torch.sigmoid({p}))", "(2 * z - 1)", "b"),
    (
        "Categorical(logits=torch.stack([{p}, 0 * {p}, -{p}], -1))",
        "torch.tensor([0.5, -1.0, 2.0], dtype=a.dtype)[z]",
        "k",
    ),
    ("OneHotCategorical(logits=torch.stack([{p}, 0 * {p}], -1))", "(z[:, 0] - 0.5 * z[:, 1])", "b"),
)
_MEETINGS = (
    "(x - x.mean()).square()",
    "x * x.roll(1, 0)",
    "x.cumsum(0).sin()",
    "x.softmax(0) * x",
    "x.sort(0).values * torch.arange(1.0, 1 + len(x), dtype=a.dtype)",
    "(x - x.mean()) / (x.var() + 0.5)",
    "x.flip(0) * x",
    "x[torch.tensor([1, 2, 0])] + x * b",
    "(x.unsqueeze(0) * x.unsqueeze(1)).sum(1)",
    "(M @ x).sin() + x[0]",
    "(x @ M).tanh()",
    "(x.max() - x)",
    "x + x[:1]",
    "torch.cat([x[1:], x[:1]]) * x",
    "x.view(1, -1).expand(len(x), -1).sum(-1).square()",
    "F.normalize(x + 2, dim=0)",
    "x.prod().expand(len(x))",
    "(M * x.unsqueeze(-1)).sum(0).square()",
    "F.layer_norm(x, x.shape)",
    "x.index_select(0, torch.tensor([2, 2, 1])) * x.cos()",
    "torch.where(x > x.flip(0), 1.0 + x, x)",
    "x.logsumexp(0) + 0 * x",
    "F.conv1d(x.view(1, 1, -1), torch.ones(1, 1, 3, dtype=a.dtype), padding=1).view(-1).square()",
)
_APART = (
    "x.sin() * b",
    "x.square() + b * x",
    "(x.unsqueeze(-1) * M[0]).sum(-1)",
    "x * M[:, 0]",
    "torch.where(x > 0, b, x)",
)


def _meet(seed: int) -> Program:
    """Three rows and parameters without a batch; one in five of the costs keeps the rows apart."""
    write = _Writer(seed)
    law, value, letter = write.choose.choice(_LAWS_THAT_MEET)
    parameter = write.choose.choice(("a.expand(3)", "a * torch.tensor([1.0, 0.5, -0.7], dtype=a.dtype)"))
    cost = write.choose.choice(_MEETINGS if write.choose.random() < 0.8 else _APART)
    write.line("M = torch.tensor([[0.2, -0.5, 1.0], [0.7, 0.1, -0.3], [-1.1, 0.4, 0.6]], dtype=a.dtype)")
    write.line(f"z = propc.sample({law.format(p=parameter)}, '{letter}0')")
    write.line(f"x = {value}")
    cost = f"({cost}) * torch.tensor([0.5, 1.0, 2.0], dtype=a.dtype)"
    values = {name: round(write.choose.uniform(-1.0, 1.0), 2) for name in "ab"}
    return Program(seed, "meet", write.text(cost, "a, b"), values, frozenset("b"))
