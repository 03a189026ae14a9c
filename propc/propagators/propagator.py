"""What a node does with messages: the base class of all propagators, and what it gets to see of its node."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from propc.ir.messages import COST, GRAD, Field, Message, Target
from propc.util.configure import Configurable, printed

if TYPE_CHECKING:
    from torch.distributions import Distribution

    from propc.ir.nodes.node import Kind, Node
    from propc.ir.pass_request import Step
    from propc.types import Source

Sent = Message | Iterable[Message] | None
"""What a propagator returns: one message, several with targets of their own, or nothing to send."""


class NodeView:
    """A node as its propagator sees it, for the length of one call.

    Attributes:
        record: the node in the propagation graph.
        value: its value, detached; a propagator's `forward` may assign another of the same type.
        inputs: the values that it reads; at a site its φ, as leaves that want a gradient where the
            program's do.
        batch: number of rows of the costs, or None.
    """

    __slots__ = ("_memory", "_state", "_touched", "batch", "inputs", "record", "value")

    def __init__(
        self,
        record: Node,
        batch: int | None = None,
        value: Any = None,
        inputs: Sequence[Any] = (),
        state: Callable[[NodeView], nn.Module | None] | None = None,
        touched: list[NodeView] | None = None,
    ) -> None:
        self.record, self.batch, self.value, self.inputs = record, batch, value, inputs
        self._memory: SimpleNamespace | None = None
        self._touched, self._state = touched, state

    @property
    def name(self) -> str:
        """The node's name."""
        return self.record.name

    @property
    def kind(self) -> Kind:
        """What the node is."""
        return self.record.kind

    @property
    def where(self) -> Source:
        """The user's file and line."""
        return self.record.where

    @property
    def memory(self) -> SimpleNamespace:
        """Whatever `forward` keeps for `backward`; empty again at the next call."""
        if self._memory is None:
            self._memory = SimpleNamespace()
            if self._touched is not None:
                self._touched.append(self)
        return self._memory

    @property
    def state(self) -> nn.Module | None:
        """The module that the propagator's `state` gave; it stays from call to call."""
        return self._state(self) if self._state is not None else None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of a site's φ, such as ``("loc", "scale")``; empty elsewhere."""
        spec = getattr(self.record, "spec", None)
        return spec.fields if spec is not None else ()

    @property
    def distribution(self) -> Distribution:
        """A site's distribution, made of `inputs`."""
        with torch.enable_grad():
            made: Distribution = self.record.spec.builder()(self.inputs)  # type: ignore[attr-defined]
        return made

    def pull(self, output: Tensor, cotangent: Tensor) -> Message:
        """Carry a cotangent on something made of a site's `inputs` back to them: a field for each φ."""
        wanted = [(name, phi) for name, phi in zip(self.fields, self.inputs) if phi.requires_grad]
        grads = torch.autograd.grad(output, [phi for _, phi in wanted], cotangent, allow_unused=True, retain_graph=True)
        return Message({name: grad for (name, _), grad in zip(wanted, grads) if grad is not None})

    def part(self, key: str, *, shared: bool) -> NodeView:
        """This node for one part of its propagator.

        The part reads and assigns the same value and has its own `state`; with `shared` its memory is the
        node's, else one of its own that stays for the call.
        """
        return PartView(self, key, shared)

    def clear(self) -> None:
        """Forget the memory of the last call."""
        self._memory = None

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.name!r}>"


class PartView(NodeView):
    """A node as a part of its propagator sees it."""

    __slots__ = ("_key", "_shared", "_whole")

    def __init__(self, whole: NodeView, key: str, shared: bool) -> None:
        self._whole, self._key, self._shared = whole, key, shared
        self.record, self.inputs, self.batch = whole.record, whole.inputs, whole.batch

    @property
    def value(self) -> Any:
        return self._whole.value

    @value.setter
    def value(self, value: Any) -> None:
        self._whole.value = value

    @property
    def memory(self) -> SimpleNamespace:
        whole = self._whole.memory
        if self._shared:
            return whole
        own: SimpleNamespace = vars(whole).setdefault(self._key, SimpleNamespace())
        return own

    @property
    def state(self) -> nn.Module | None:
        whole = self._whole.state
        return whole[self._key] if isinstance(whole, nn.ModuleDict) and self._key in whole else None

    def part(self, key: str, *, shared: bool) -> NodeView:
        return PartView(self, key, shared)


P = TypeVar("P", bound="Propagator")


class Propagator(Configurable):
    """What a node does when a message passes it: in the forward pass, and in the reverse pass.

    A node is visited once in a pass, when everything that can send to it has been visited. What arrived
    is one message, its fields merged as they declare; nothing arrived is an empty message.

    What is returned goes on: a message to the targets of this propagator; an iterable of messages to the
    targets of each (`Message.to`); None to nobody. The field ``grad`` is the cotangent on the node's value
    and goes on to what the node reads; at a site, the fields named as φ are the cotangents on φ. Other
    fields go to `targets`.

    It keeps nothing in itself: `NodeView.memory` is for one call, `state` and messages to `SELF` from call
    to call.

    Attributes:
        name: printed name; by default that of the class, in lower case.
        draws: whether it draws from a distribution, so that it belongs to sites.
        runs_user_code: whether passing it calls a `forward` and a `backward`, which may do anything, so that what
            they do must not be done twice.
        sends: the fields of the messages that it makes, beside those that it hands on.
        keeps: the fields of the messages to `SELF`; they arrive at `forward` in the next call.
        targets: where messages go in the reverse pass; None is `PARENTS`.
        forward_targets: where they go in the forward pass; None is `CHILDREN`.
    """

    name: ClassVar[str] = "propagator"
    draws: ClassVar[bool] = False
    runs_user_code: ClassVar[bool] = True
    sends: tuple[Field, ...] = (GRAD, COST)
    keeps: tuple[Field, ...] = ()
    targets: Target = None
    forward_targets: Target = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = printed(cls)

    def forward(self, node: NodeView, message: Message) -> Sent:
        """Called in the forward pass, when the node's value is known; hands the message on."""
        return message

    def backward(self, node: NodeView, message: Message) -> Sent:
        """Called in the reverse pass; hands the message on."""
        return message

    def state(self, node: Any) -> nn.Module | None:
        """A module kept from call to call; the compiled object saves it and moves it."""
        return None

    def passes(self, node: str) -> tuple[Step, ...]:
        """Compiler passes that do its work at the node of this name, if any; it is taken off the node then."""
        return ()

    @property
    def idle(self) -> bool:
        """Whether it does nothing but hand on, so that the compiler may drop it."""
        cls = type(self)
        silent = cls.forward is Propagator.forward and cls.backward is Propagator.backward
        return silent and not self.passes("") and self.targets is None and self.forward_targets is None

    @property
    def acts_forward(self) -> bool:
        """Whether it does something in the forward pass."""
        return type(self).forward is not Propagator.forward

    @property
    def local(self) -> bool:
        """Whether all it sends is cotangents to what its node reads: then autograd carries its messages."""
        plain = self.targets is None and self.forward_targets is None and not self.keeps
        return plain and all(field in (GRAD, COST) for field in self.sends)

    def configure(self: P, **options: Any) -> P:
        made = super().configure(**options)
        own = vars(self).get("targets") if "targets" not in options else None
        return made if own is None else made.with_targets(own)

    def with_targets(self: P, targets: Target) -> P:
        """The same, sending elsewhere in the reverse pass."""
        made = copy.copy(self)
        vars(made)["targets"] = targets  # it may be a frozen dataclass
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def note(error: Exception, node: NodeView) -> None:
    """Add to an error at which node its propagator failed."""
    if hasattr(error, "add_note"):
        where = f", {node.where}" if str(node.where) else ""
        error.add_note(f"(propc: while visiting {node.kind.value} {node.name!r}{where})")
