"""Inside a warm interpreter: how a program's Python ends sooner, to the same effect.

An interpreter's end takes apart all that was ever made in it. In a fork each page that it writes to
is copied first, and most of what is there is the warm interpreter's. So three things are left out:
modules that every program has, where this one didn't change them; what is left of the interpreter
once the program's own objects are gone; and libraries loaded before. docs/warm.md says what of that
could be seen.
"""

from __future__ import annotations

import _thread
import _weakref
import atexit
import codecs
import ctypes
import gc
import io
import sys

from mlbench_exec.agent import finalizers

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Callable

NEVER_SHARED = {"__main__", "sys", "builtins", "site"}
NOTHING: tuple[Any, int, int] = (None, 0, 0)
BEHIND_ALL = "__behind_all__"
REFERENCES = 3  # to a module that only sys.modules has, and to its namespace, when we count them
EXTENSION = ".so"
PYTHONS_OWN = "lib-dynload"  # the folder of the extensions that come with Python
PLACES_AT_END = 32  # for functions in C that Python calls at its very end
LAST_COLLECTION = (3, 10)  # from here on an interpreter collects once more than its modules' end
# With these, more than one interpreter may have to end.
INTERPRETERS = {"_interpreters", "_xxsubinterpreters"}


class Ending:
    """Made where the modules are hidden, before there is a program."""

    def __init__(self, ahead: Any, version_at: Callable[[int], int] | None) -> None:
        self._ahead = ahead
        self._shared = _Shared(version_at)
        self._main: Any = None  # a weak reference: it is to end when it would have
        self._loader: Any = None
        self.is_exotic = False
        self._streams: tuple[int, ...] = ()
        modules = dict(ahead.hidden, **sys.modules)  # a .pth file may have imported some, too
        self._known = frozenset(modules)
        own = ctypes.PyDLL(None)  # the usual one is the program's as well
        self._ask, self._harmless = own.Py_AtExit, own.Py_IsInitialized
        # To what nothing else may hold.
        self._said: dict[str, Any] = {"is_all": False, "is_alone": False, "streams": ()}
        atexit.register(self.prepare)  # the first, so that it runs last
        leave = ctypes.PyDLL(None).exit
        codecs.register(_Last(self._said, leave))  # ends when the program's objects are gone

    def begin(self, is_exotic: bool) -> None:
        """A program begins here or in a fork; see `terms.is_exotic`."""
        main = sys.modules["__main__"]
        self._main, self._loader = _weakref.ref(main), vars(main).get("__loader__")
        self._streams = id(sys.stdout), id(sys.stderr)
        streams = [one for one in (sys.stdout, sys.stderr) if isinstance(one, io.TextIOWrapper)]
        self._said["streams"] += tuple(_weakref.ref(one) for one in streams)
        self.is_exotic = is_exotic

    def prepare(self) -> None:
        """At the end of a program, after its own work for the end."""
        if not finalizers.is_the_end():
            return  # the program calls it
        self._ahead.let_go()
        self._shared.prepare(self._ahead.unchanged())
        self._said["is_alone"] = not _thread._count()
        self._said["is_all"] = self._succeeds() and self._is_plain()

    def _succeeds(self) -> bool:
        """Whether the exit status is known to be 0.

        A script that was run has another `__loader__`. If it came to its end, or raised, it has no
        `__file__` any more; one that was left by SystemExit has. One that raised leaves what it
        raised in `sys`.
        """
        module = self._main() if self._main is not None else None
        main = vars(module) if module is not None else {}
        if self.is_exotic or "__file__" in main:
            return False
        loader = main.get("__loader__")
        if loader is None or loader is self._loader or hasattr(sys, "last_type"):
            return False
        return self._flushes()

    def _flushes(self) -> bool:
        """What can't be written makes the status another."""
        streams = getattr(sys, "stdout", None), getattr(sys, "stderr", None)
        if tuple(id(stream) for stream in streams) != self._streams:
            return False  # to flush one of its own could be seen
        try:
            for stream in streams:
                if stream is not None and not stream.closed:
                    stream.flush()
        except Exception:  # noqa: BLE001 - it can be a program's own
            return False
        return True

    def _is_plain(self) -> bool:
        """Whether nothing waits for the interpreter's last breath: no thread, no code in C."""
        if not self._said["is_alone"] or gc.get_debug() or gc.callbacks:
            return False
        if sys.gettrace() is not None or sys.getprofile() is not None:
            return False
        modules = sys.modules
        own = [name for name in list(modules) if name not in self._known]
        if not INTERPRETERS.isdisjoint(own):
            return False
        if any(_is_extension_of_others(modules[name]) for name in own):
            return False
        return self._places_at_end() == PLACES_AT_END

    def _places_at_end(self) -> int:
        """How many functions in C could still ask to be called at Python's end: now none."""
        count = 0
        while count < PLACES_AT_END and self._ask(self._harmless) == 0:
            count += 1
        return count


class _Shared:
    """The modules that every program has from its start, and those that were imported ahead.

    When modules end, Python puts None in the place of one after the other, in the order of their
    imports, and takes apart what is left of them later. What is None already, it passes over. So
    ours become None at the moment at which they would have: those before `__main__` before its
    objects go, those behind it afterwards.
    """

    def __init__(self, version_at: Callable[[int], int] | None) -> None:
        self._modules: dict[str, Any] = sys.modules
        self._version_at = version_at
        names = [name for name in sys.modules if name not in NEVER_SHARED]
        at = list(sys.modules).index("__main__")
        before = set(list(sys.modules)[:at])
        self._before = [name for name in names if name in before]
        self._after = [name for name in names if name not in before]
        self._known = {}
        if version_at is not None:
            for name in names:
                module, address = sys.modules[name], id(vars(sys.modules[name]))
                self._known[name] = module, address, version_at(address)
        self._main = 0  # the address of its namespace, which we may not keep
        self._watch: Any = None

    def prepare(self, ahead: list[str]) -> None:
        """Have `__main__` end before what it shares. Those of `ahead` are as they were imported."""
        modules = self._modules
        main = modules.get("__main__")
        if type(main) is not type(sys) or sys.getrefcount(main) > REFERENCES:
            return  # it would end later
        self._ahead = ahead
        self._before = [name for name in self._before if self._is_shared(name)]
        for name in self._before:
            modules[name] = modules.pop(name)
        self._main = id(main.__dict__)
        self._watch = _weakref.ref(main, self._main_ends)

    def _main_ends(self, _: object) -> None:
        """The module is gone, and its namespace about to."""
        for name in self._before:
            self._modules[name] = None
        main = ctypes.cast(self._main, ctypes.py_object).value
        if sys.getrefcount(main) > REFERENCES:
            self.forget_rest()  # its objects stay for now
        else:
            main[BEHIND_ALL] = _Then(self)

    def forget_rest(self) -> None:
        for name in self._after:
            if self._is_shared(name):
                self._modules[name] = None
        for name in self._ahead:
            self._modules[name] = None

    def _is_shared(self, name: str) -> bool:
        """Whether it is there, and as it was."""
        module, address, version = self._known.get(name, NOTHING)
        if module is None or self._modules.get(name) is not module:
            return False
        return self._version_at is not None and self._version_at(address) == version


class _Then:
    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    def __del__(self) -> None:
        self._shared.forget_rest()


class _Last:
    """What Python looks encodings up in, in vain; its own end is the interpreter's."""

    def __init__(self, said: dict[str, Any], leave: Callable[[int], object]) -> None:
        self._said, self._leave = said, leave
        self._files = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
        self._objects, self._type = gc.get_objects, type
        self._collect = gc.collect if sys.version_info >= LAST_COLLECTION else None

    def __call__(self, encoding: str) -> None: ...

    def __del__(self) -> None:
        # Names of builtins have no meaning any more.
        if self._said["is_all"] and self._collect is not None:
            self._collect()
        self._flush_what_is_kept()
        if self._said["is_all"]:
            self._leave(0)

    def _flush_what_is_kept(self) -> None:
        """Files that would have gone by now, if a module imported ahead didn't hold them.

        What a thread that is left holds, Python leaves alone, and it may be locked for good.
        """
        files = [one() for one in self._said["streams"]]
        text, written, both = self._files
        try:
            for one in self._objects() if self._said["is_alone"] else ():
                kind = self._type(one)  # compared by identity: `==` may be a program's own
                if kind is text or kind is written or kind is both:
                    files.append(one)
        except:  # noqa: E722 - no memory
            pass
        for file in files:
            try:
                file.flush()
            except:  # noqa: E722 - closed, gone, or not to be written to
                pass


def _is_extension_of_others(module: Any) -> bool:
    """Whether it is code in C that may have asked Python to be called at the very end."""
    kind = type(module)
    if issubclass(kind, type):
        return False  # a class in a module's place, as typing has them
    if not issubclass(kind, type(sys)):
        return True  # nobody knows, and to ask could be seen
    path = object.__getattribute__(module, "__dict__").get("__file__")
    return isinstance(path, str) and path.endswith(EXTENSION) and PYTHONS_OWN not in path


def skip_libraries() -> None:
    """Let a program's exit stop before it takes apart the libraries that are loaded by now.

    Those that it loads itself are taken apart before, as their turn comes first. It flushes C's
    streams as an exit does.
    """
    libc = ctypes.CDLL(None)
    if all(hasattr(libc, name) for name in ("on_exit", "__cxa_atexit", "_exit", "fflush")):
        getattr(libc, "on_exit")(libc._exit, None)  # noqa: B009 - called with the exit status
        getattr(libc, "__cxa_atexit")(libc.fflush, None, None)
