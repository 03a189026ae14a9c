"""The tokens of scans: a message to all earlier steps goes to a sum that is carried from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.scan import Scan
from propc.ir.records import Carried, Join, Route, Token
from propc.passes.scan.equal_steps import EqualSteps

Names = tuple[str, ...]
Group = tuple[Names, Names, Names]  # what tokens are fitted to: plates, leading dimensions, elements that stay apart
Place = tuple[int, int]  # of a token in a step: the position of its site, and which of its tokens


class Sums:
    """What stands for the targets of each route, as one scan after the other is rolled.

    Args:
        graph: with all routes, before any scan is rolled.
    """

    def __init__(self, graph: PropagationGraph) -> None:
        self.routes = graph.routes
        self.groups: list[Group] = [_group(graph, route) for route in graph.routes]
        self.members: dict[int, list[Token]] = {}  # of the routes that begin in a rolled step, or behind one
        self.joins: list[Join] = []
        self.known: dict[tuple[Group, Names | tuple[Token, ...]], Token] = {}

    def carried(self, steps: EqualSteps) -> tuple[Carried, ...]:
        """What a scan carries for the routes that begin in its middle step or behind it."""
        order = steps.graph.wiring.place
        own = _OfScan(steps, self)
        for number, route in enumerate(self.routes):
            place = steps.place.get(route.source)
            behind = place[0] >= steps.middle if place else order[route.source] > order[steps.nodes[-1][-1].name]
            if behind:
                given = self.members.get(number, list(route.targets))
                self.members[number] = own.members(number, given)
        return tuple(own.carried)

    def joined(self, tokens: Iterable[Token], group: Group) -> Token:
        """One token for several."""
        members = tuple(tokens)
        if len(members) == 1:
            return members[0]
        key = group, members
        if key not in self.known:
            self.joins.append(Join(f"scan.join{len(self.joins)}", members, group[0]))
            self.known[key] = Token(self.joins[-1].name)
        return self.known[key]

    def finished(self, graph: PropagationGraph) -> PropagationGraph:
        """The graph whose routes go through what stands for their targets."""
        if not graph.of(Scan):
            return graph
        routes = list(self.routes)
        for number, members in self.members.items():
            routes[number] = replace(routes[number], through=(self.joined(members, self.groups[number]),))
        graph = replace(graph, routes=tuple(routes), joins=(*graph.joins, *self.joins))
        return replace(graph, joins=tuple(_read(graph)))


class _OfScan:
    """The sums that one scan carries."""

    def __init__(self, steps: EqualSteps, sums: Sums) -> None:
        self.steps, self.sums = steps, sums
        self.carried: list[Carried] = []
        self.known: dict[object, Token] = {}

    def members(self, number: int, given: Sequence[Token]) -> list[Token]:
        """What stands for the targets of a route.

        These are split by step: from the k-th step before the middle one on, each step takes messages as the step
        before does, and the sum of these is carried; later ones are read one by one.
        """
        steps, route, group = self.steps, self.sums.routes[number], self.sums.groups[number]
        early: list[Token] = []
        late: list[Token] = []
        alike: dict[int, list[Place]] = {step: [] for step in range(steps.first, steps.middle + 1)}
        start = steps.graph.wiring.place[steps.nodes[0][0].name]
        for token in given:
            step, position = steps.place.get(token.site, (-1, 0))
            if steps.first <= step <= steps.middle:
                alike[step].append((position, token.index))
            elif step > steps.middle or (step < 0 and steps.graph.wiring.place.get(token.site, -1) > start):
                late.append(token)
            else:  # an earlier site, or the sum of those of an earlier scan
                early.append(token)
        self._check(number)
        back = self._settled(route, {step: set(places) for step, places in alike.items()})
        far = sorted(alike[steps.middle - back])
        found = early
        if far:
            before = [self._token(step, p) for step in range(steps.first, steps.middle - back) for p in far]
            found = [self._sum(route.source, group, (*early, *before), far, back)]
        for step in range(steps.middle - back + 1, steps.middle + 1):
            found = found + [self._single(route.source, group, p, steps.middle - step) for p in sorted(alike[step])]
        return found + late

    def _settled(self, route: Route, alike: dict[int, set[Place]]) -> int:
        """How many steps before the middle one each step begins to take messages as the step before does."""
        steps = self.steps
        changes = [step for step in range(steps.first + 1, steps.middle + 1) if alike[step] != alike[step - 1]]
        back = steps.middle - changes[0] + 1 if changes else 0
        if back >= steps.middle - steps.first:
            raise steps.error("which earlier steps it sends messages to has not settled", steps.graph[route.source])
        return back

    def _check(self, number: int) -> None:
        """A route of the middle step is that of its neighbours, relative to the step."""
        steps, route = self.steps, self.sums.routes[number]
        step, position = steps.place.get(route.source, (-1, 0))
        if step != steps.middle:
            return
        mine = [r for r in self.sums.routes if r.source == route.source]
        for other in (steps.middle - 1, steps.middle + 1):
            name = steps.nodes[other][position].name
            routes = [r for r in self.sums.routes if r.source == name]
            like = routes[mine.index(route)] if len(routes) == len(mine) else None
            if (
                like is None
                or _way(like) != _way(route)
                or self._relative(like, other - steps.middle) != self._relative(route, 0)
            ):
                raise steps.error(f"it does not send messages as {name!r} does", steps.graph[route.source])

    def _relative(self, route: Route, by: int) -> tuple[set[Token], set[tuple[int, Place]]]:
        """Targets outside of like steps, and those inside, moved by some steps, as far as can be compared."""
        outside: set[Token] = set()
        inside: set[tuple[int, Place]] = set()
        for token in route.targets:
            place = self.steps.like(token.site)
            if place is None:
                outside.add(token)
            elif place[0] - by > self.steps.first:
                inside.add((place[0] - by, (place[1], token.index)))
        return outside, inside

    def _sum(self, reader: str, group: Group, start: Sequence[Token], far: Sequence[Place], back: int) -> Token:
        """The sum of the tokens of all steps up to `back` before the one that reads it, and of those before."""
        key = group, frozenset(start), tuple(far), back
        if key not in self.known:
            here = self._carry(self.sums.joined(start, group), reader, group)
            fresh = [self._single(reader, group, place, back) for place in far]
            made = self.sums.joined((here, *fresh), group)
            self.carried[here.index] = replace(self.carried[here.index], again=made)
            self.known[key] = made
        return self.known[key]

    def _single(self, reader: str, group: Group, place: Place, back: int) -> Token:
        """The token of a site, `back` steps before."""
        if back == 0:
            return self._token(self.steps.middle, place)
        key = group, place, back
        if key not in self.known:
            nearer = self._single(reader, group, place, back - 1)
            here = self._carry(self._token(self.steps.middle - back, place), reader, group)
            self.carried[here.index] = replace(self.carried[here.index], again=nearer)
            self.known[key] = here
        return self.known[key]

    def _carry(self, first: Token, reader: str, group: Group) -> Token:
        """Carry a token; what it is in the next step is still to be said."""
        self.carried.append(Carried(first, first, reader, group[0], group[2]))
        return Token(self.steps.turn.scan, len(self.carried) - 1)

    def _token(self, step: int, place: Place) -> Token:
        return Token(self.steps.nodes[step][place[0]].name, place[1])


def _group(graph: PropagationGraph, route: Route) -> Group:
    if not route.by_autograd:
        return (), (), ()
    return graph.meeting(route), graph.own(graph[route.source]), route.along


def _way(route: Route) -> tuple[object, ...]:
    """All of a route but its ends."""
    return route.baseline, route.kind, route.fields, route.over, route.along


def _read(graph: PropagationGraph) -> Iterator[Join]:
    """The joins that somebody reads."""
    read = {token.site for route in graph.routes for token in route.through}
    for scan in graph.of(Scan):
        read.update(token.site for carried in scan.tokens for token in (carried.first, carried.again))
    wanted = set()
    for join in reversed(graph.joins):
        if join.name in read:
            wanted.add(join.name)
            read.update(token.site for token in join.members)
    return (join for join in graph.joins if join.name in wanted)
