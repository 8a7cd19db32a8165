"""Inside a warm interpreter: finalizers that modules made while they were imported ahead.

They are a program's from when it imports these modules. Some need not run at its end: torch takes
its table of operators apart there, entry by entry, which costs half of what a program that imports
it does. The process's end does the same to all of it at once.
"""

from __future__ import annotations

import _thread
import sys

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Callable

# By module and name: they change nothing but this process's memory.
NEEDLESS = {("torch.library", "_del_library")}


def find(ahead: Any) -> None:
    """Take the place of their work for the end, where a module imported ahead has made any."""
    weakref = ahead.hidden.get("weakref") or sys.modules.get("weakref")
    finalize = getattr(weakref, "finalize", None)
    at_exit = ahead.recorder.at_exit
    for index, one in enumerate(at_exit):
        if finalize is not None and one.args[:1] == (finalize._exitfunc,):
            at_exit[index] = Finalizers(finalize)


def is_the_end() -> bool:
    """Whether who calls this is called by the interpreter's end, and by no program."""
    try:
        sys._getframe(2)
    except ValueError:
        return True
    return False


class Finalizers:
    """`weakref.finalize`'s work for the end, in its place on the list of a recorder."""

    def __init__(self, finalize: Any) -> None:
        self._finalize = finalize
        self._needless: dict[Any, Any] = {}
        self._made: dict[Any, list[tuple[Any, Any]]] = {}  # by module
        for key, info in sorted(finalize._registry.items(), key=lambda item: item[1].index):
            module = getattr(info.func, "__module__", None)
            self._made.setdefault(module, []).append((key, info))
            if (module, getattr(info.func, "__qualname__", None)) in NEEDLESS:
                self._needless[key] = info
        finalize._registry.clear()
        finalize._registered_with_atexit = False
        self._is_last = False

    def give(self, names: set[str], register: Callable[..., Any], is_last: bool) -> None:
        """To a snippet that imports these; `is_last`: no work of its own comes afterwards."""
        finalize, given = self._finalize, [name for name in self._made if name in names]
        for name in given:
            for key, info in self._made.pop(name):
                info.index = next(finalize._index_iter)
                finalize._registry[key] = info
        if given and not finalize._registered_with_atexit:
            self._is_last = is_last
            finalize._registered_with_atexit = True
            register(self.run)

    def run(self) -> None:
        if self._is_last and not _thread._count() and is_the_end():
            registry = self._finalize._registry
            for key, info in self._needless.items():
                if registry.get(key) is info:
                    del registry[key]
        self._finalize._exitfunc()
