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
    if finalize is None:
        return
    work, recorder = finalize._exitfunc.__func__, ahead.recorder
    for index, one in enumerate(recorder.at_exit):
        if one.args and getattr(one.args[0], "__func__", None) is work:
            makers = {
                key: name if name in ahead.hidden else one.name
                for key, name in recorder.finalizers.items()
            }
            recorder.at_exit[index] = Finalizers(finalize, makers, one.name)


def is_the_end() -> bool:
    """Whether who calls this is called by the interpreter's end, and by no program."""
    try:
        sys._getframe(2)
    except ValueError:
        return True
    return False


class Finalizers:
    """`weakref.finalize`'s work for the end, in its place on the list of a recorder."""

    def __init__(self, finalize: Any, makers: dict[Any, str], first: str) -> None:
        """`makers`: the module that made each; the `first` one, if it isn't known."""
        self._finalize = finalize
        registry = finalize._registry.copy()
        made = [(makers.get(key, first), key, info) for key, info in registry.items()]
        self._made = sorted(made, key=lambda one: one[2].index)
        self._known = frozenset(registry)
        self._needless = {key: info for _, key, info in made if _name_of(info) in NEEDLESS}
        finalize._registry.clear()
        finalize._registered_with_atexit = False
        self._is_last = True

    def give(self, names: set[str], register: Callable[..., Any], is_last: bool) -> None:
        """To a snippet that imports these; `is_last`: no work of its own comes afterwards."""
        finalize, given = self._finalize, [one for one in self._made if one[0] in names]
        if not given:
            return
        self._made = [one for one in self._made if one[0] not in names]
        if not finalize._registry.keys() <= self._known:
            self._is_last = False  # its own come after these
        for _, key, info in given:
            info.index = next(finalize._index_iter)
            finalize._registry[key] = info
        finalize._dirty = True
        if not finalize._registered_with_atexit:
            self._is_last = self._is_last and is_last
            finalize._registered_with_atexit = True
            register(self.run)

    def run(self) -> None:
        if self._is_last and not _thread._count() and is_the_end():
            registry = self._finalize._registry
            for key, info in self._needless.items():
                if registry.get(key) is info:
                    del registry[key]
        self._finalize._exitfunc()


def _name_of(info: Any) -> tuple[Any, Any]:
    function = info.func
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)
