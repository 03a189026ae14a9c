"""Where in the user's code we are."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

import torch

from propc.types import Source

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# In a checkout propc/passes and propc/runtime are links, whose real folders do not lie below propc/.
_FOLDERS = (os.path.dirname(torch.__file__), _OWN, os.path.join(_OWN, "passes"), os.path.join(_OWN, "runtime"))
_HIDDEN = tuple(os.path.join(os.path.realpath(path), "") for path in _FOLDERS)
_SEEN: dict[str, bool] = {}


def user_source() -> Source:
    """File, line and function of the innermost frame that is neither torch's nor propc's."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_hidden(frame.f_code.co_filename):
            return _source(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return Source("", 0)


def source_of(error: BaseException) -> Source:
    """The same for the place where an error was raised."""
    found, trace = Source("", 0), error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not is_hidden(code.co_filename):
            found = _source(code.co_filename, trace.tb_lineno, code.co_name)
        trace = trace.tb_next
    return found


@lru_cache(1024)
def _source(file: str, line: int, function: str) -> Source:
    """One object for each line, however many nodes it makes."""
    return Source(file, line, function)


def is_hidden(filename: str) -> bool:
    """Whether a file is torch's or propc's own."""
    if filename not in _SEEN:
        generated = filename.startswith("<") and not filename.startswith(("<stdin", "<string", "<ipython"))
        _SEEN[filename] = generated or os.path.realpath(filename).startswith(_HIDDEN)
    return _SEEN[filename]
