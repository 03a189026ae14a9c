"""Public names of `propc.ir.messages`."""

from propc.ir.messages import (
    COST,
    EMPTY,
    GRAD,
    MERGES,
    Field,
    Merge,
    Message,
    Target,
    Toward,
    copied,
    field_table,
    merged,
)

__all__ = [
    "COST",
    "EMPTY",
    "GRAD",
    "MERGES",
    "Field",
    "Merge",
    "Message",
    "Target",
    "Toward",
    "copied",
    "field_table",
    "merged",
]
