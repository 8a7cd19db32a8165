"""Inside a warm interpreter: finalizers of modules imported ahead that need not run at the end.

torch, for one, takes its table of operators apart there, entry by entry, which costs half of what a
program that imports it does. The process's end does the same. Only what runs between the two could
see a difference; so where there is anything of the program's own, they run as ever.
"""

from __future__ import annotations

import _thread
import _weakref
import gc
import sys

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Callable

# By module and name: they change nothing but this process's memory.
NEEDLESS = {("torch.library", "_del_library")}
MOST_COLLECTIONS = 1000  # a program that made more objects than go with these isn't looked through
GENERATORS = {"generator", "coroutine", "async_generator"}
CALLBACK = vars(_weakref.ref)["__callback__"]  # of any reference
FUNCTION, BUILTIN = type(lambda: None), type(len)


def find(ahead: Any) -> None:
    """Take the place of their work for the end, where a module imported ahead has made any."""
    weakref = ahead.hidden.get("weakref") or sys.modules.get("weakref")
    finalize = getattr(weakref, "finalize", None)
    at_exit = ahead.recorder.at_exit
    for index, one in enumerate(at_exit):
        if finalize is not None and one.args[:1] == (finalize._exitfunc,):
            known = frozenset([*ahead.hidden, *sys.modules]) - {"__main__"}
            at_exit[index] = Finalizers(one.name, finalize, known)


class Finalizers:
    """`weakref.finalize`'s work for the end, in its place on the list of a recorder."""

    def __init__(self, name: str, finalize: Any, known: frozenset[str]) -> None:
        """`name` is the module that made the first one; code of `known` ones isn't a program's."""
        self.name = name
        self._finalize = finalize
        self._known = known
        self._needless = {
            key: info for key, info in finalize._registry.items() if _name_of(info) in NEEDLESS
        }
        finalize._registered_with_atexit = False  # for a program that doesn't import that module
        self._is_last = False
        self._collections = _collections()

    def register(self, register: Callable[..., Any], is_last: bool) -> None:
        """In a snippet; `is_last` says that nothing of the program's own comes afterwards."""
        self._is_last = is_last
        self._finalize._registered_with_atexit = True
        register(self.run)

    def run(self) -> None:
        if self._needless and self._is_unseen():
            registry = self._finalize._registry
            for key, info in self._needless.items():
                if registry.get(key) is info:
                    del registry[key]
        self._finalize._exitfunc()

    def _is_unseen(self) -> bool:
        if not self._is_last or _thread._count() or gc.callbacks:
            return False
        if sys.gettrace() is not None or sys.getprofile() is not None:
            return False
        if _collections() - self._collections > MOST_COLLECTIONS:
            return False
        # Those that were made since the interpreter froze its own.
        return not any(self._may_run(one) for one in gc.get_objects())

    def _may_run(self, one: Any) -> bool:
        """Whether an object's end may run code of the program's."""
        kind = type(one)
        if issubclass(kind, type):
            return _has_destructor(one)
        if issubclass(kind, _weakref.ref):
            return not self._is_known(CALLBACK.__get__(one))
        return kind.__name__ in GENERATORS

    def _is_known(self, callback: Any) -> bool:
        if type(callback) is FUNCTION:
            return callback.__globals__.get("__name__") in self._known
        return callback is None or type(callback) is BUILTIN


def _name_of(info: Any) -> tuple[Any, Any]:
    function = info.func
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def _collections() -> int:
    return int(gc.get_stats()[0]["collections"])


def _has_destructor(one: Any) -> bool:
    try:
        type.__getattribute__(one, "__del__")
    except AttributeError:
        return False
    return True
