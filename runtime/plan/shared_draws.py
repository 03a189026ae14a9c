"""Who draws together with whom, and whose token stands for those of others."""

from __future__ import annotations

from dataclasses import dataclass

from propc.ir.graph import PropagationGraph
from propc.ir.records import Token


@dataclass(frozen=True, slots=True)
class Member:
    """A site that draws together with others.

    Attributes:
        names: of all of them.
        index: of this one.
        first_met: whether the reverse pass meets them before others that read the same join.
        before: the token that stands for the sites before it, of which that join takes tokens too.
    """

    names: tuple[str, ...]
    index: int
    first_met: bool
    before: Token | None


class Members:
    """The sites of a graph that draw together.

    Attributes:
        of: each by its name.
        stands: for the token of each, the token that stands for it in its join: that of the last one there.
    """

    def __init__(self, graph: PropagationGraph) -> None:
        self.of: dict[str, Member] = {}
        self.stands: dict[Token, Token] = {}
        join_of = {member: join.name for join in graph.joins for member in join.members}
        rows: dict[str, list[tuple[str, ...]]] = {}
        for names in graph.schedule.together:
            rows.setdefault(join_of[Token(names[0])], []).append(names)
        for row in rows.values():
            before: Token | None = None
            for names in row:
                for index, name in enumerate(names):
                    self.of[name] = Member(names, index, names is row[-1], before)
                    before = Token(name)
            assert before is not None
            self.stands.update({Token(name): before for names in row for name in names})
