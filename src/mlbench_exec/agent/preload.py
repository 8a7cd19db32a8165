"""Inside a warm interpreter: modules imported ahead, hidden, and given back when they are imported.

A snippet finds `sys.modules` as a fresh interpreter has it. When it imports a module that was
imported ahead, it gets that one, with every module that importing it would have imported, if
nothing has happened in between that could have made the import come out differently. If something
has, the snippet is run again without a warm interpreter.
"""

from __future__ import annotations

import sys
import time

from mlbench_exec.agent import aspects

TYPE_CHECKING = False  # nothing is imported here that a recorder should see
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

ROOT = ""  # what is executed while no module is
# Of `sys`: what every import, starting a program, or its last exception changes.
SYS_CHANGES = {"argv", "orig_argv", "modules", "path", "path_importer_cache"}
SYS_CHANGES |= {"last_exc", "last_type", "last_value", "last_traceback"}
STREAMS = {"stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"}
# Of importlib's own modules: what `import importlib` changes, and what we replace meanwhile.
IMPORTLIB = ("_frozen_importlib", "_frozen_importlib_external")
IMPORTLIB_CHANGES = {"__name__", "__package__", "__file__", "__loader__", "_find_and_load"}
REPLACED = {"_load_unlocked", "_gcd_import", "_find_spec", "__import__"}
REPLACED_IN = ("builtins", "importlib.util", *IMPORTLIB)
REFRESHED = {"numpy.random", "torch", "multiprocessing.process", "logging"}
UNFINISHED = {
    "__main__",
    "__mp_main__",
    "site",
}  # still being executed while a warm interpreter waits
# Of any module: what importing or warning leaves in it.
ANY_CHANGES = {"__warningregistry__", "__spec__"}

_modules: dict[str, Any] = sys.modules  # not to be asked what is in them
_bootstrap: Any = sys.modules["_frozen_importlib"]
# Named as importlib's own, so that a traceback leaves its frame out as it does importlib's.
_WRAPPER = compile(
    """
def find_and_load(name, import_):
    if name in hidden:
        give_back(name)
        if name in modules:
            return modules[name]
    return original(name, import_)
""",
    "<frozen importlib._bootstrap>",
    "exec",
)


class AtExit:
    """What a module registered to be called at the end."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs

    def give(self, names: set[str], register: Callable[..., Any], is_last: bool) -> None:
        """To a snippet that imports these; `is_last`: no work of its own comes afterwards."""
        if self.name in names:
            register(*self.args, **self.kwargs)


class Recorder:
    """Sees which module imports which, and how long each takes by itself."""

    def __init__(self) -> None:
        self.edges: dict[str, dict[str, None]] = {}  # a module, and what it imported, in order
        self.own_s: dict[str, float] = {}
        self.at_exit: list[Any] = []  # AtExit, or finalizers in the place of one
        self._finalizers_seen = 0
        self.missed: dict[str, set[str]] = {}  # a module, and what it imported in vain
        self._stack = [ROOT]
        self.finalizers: dict[Any, str] = {}  # of weakref's, by which module each was made
        self._last = 0.0
        self._registered = 0

    def start(self) -> None:
        builtins = _modules["builtins"]
        self._import = builtins.__import__
        self._load, self._gcd = _bootstrap._load_unlocked, _bootstrap._gcd_import
        self._find, self._seeing = _bootstrap._find_spec, self._see_find
        builtins.__import__ = self._see_import
        _bootstrap._load_unlocked, _bootstrap._gcd_import = self._see_load, self._see_gcd
        for name in ("_frozen_importlib", "importlib.util"):
            if name in _modules:
                _modules[name]._find_spec = self._seeing
        __import__("atexit")
        self._atexit = _modules["atexit"]
        self._register = self._atexit.register
        self._atexit.register = self._see_register
        self._last = time.perf_counter()

    def stop(self) -> None:
        self._atexit.register = self._register
        self._stack = []
        builtins = _modules["builtins"]
        builtins.__import__ = self._import
        _bootstrap._load_unlocked, _bootstrap._gcd_import = self._load, self._gcd
        for module in list(_modules.values()):  # importlib.util has it, and others may
            if _namespace(module).get("_find_spec") is self._seeing:
                module._find_spec = self._find

    def lap(self) -> None:
        now = time.perf_counter()
        top = self._stack[-1]
        self.own_s[top] = self.own_s.get(top, 0.0) + now - self._last
        self._last = now
        self._note_finalizers(top)

    def _note_finalizers(self, name: str) -> None:
        finalize = getattr(_modules.get("weakref"), "finalize", None)  # it may be half imported
        if finalize is not None and len(finalize._registry) != self._finalizers_seen:
            for key in finalize._registry.copy():
                self.finalizers.setdefault(key, name)
            self._finalizers_seen = len(finalize._registry)

    def _note(self, name: str) -> None:
        if not self._stack:
            return  # a module kept what is only there to record
        self.edges.setdefault(self._stack[-1], {})[name] = None

    def _see_find(self, name: str, *args: Any, **kwargs: Any) -> Any:
        spec = self._find(name, *args, **kwargs)
        if spec is None:
            self._note_missed(name)
        return spec

    def _note_missed(self, name: str) -> None:
        if self._stack and "." not in name:
            self.missed.setdefault(self._stack[-1], set()).add(name)

    def _see_import(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        result = self._import(name, globals, locals, fromlist, level)
        if level > 0:
            name = _bootstrap._resolve_name(name, _bootstrap._calc___package__(globals), level)
        self._note(name)
        for part in fromlist or ():
            if isinstance(part, str) and "%s.%s" % (name, part) in sys.modules:
                self._note("%s.%s" % (name, part))
        return result

    def _see_register(self, *args: Any, **kwargs: Any) -> Any:
        """A module's work for the end is its program's, if that imports the module at all."""
        if not self._stack:
            return self._register(*args, **kwargs)
        self.at_exit.append(AtExit(self._stack[-1], args, kwargs))
        return args[0]

    def begin(self) -> None:
        """Programs begin: what is registered so far is not their own."""
        self._registered = self._atexit._ncallbacks()

    def register_for(self, names: list[str]) -> None:
        wanted = set(names)
        for one in self.at_exit:
            before = self._atexit._ncallbacks()
            one.give(wanted, self._register, before == self._registered)
            self._registered += self._atexit._ncallbacks() - before

    def _see_gcd(self, name: str, package: Any = None, level: int = 0) -> Any:
        module = self._gcd(name, package, level)
        self._note(_bootstrap._resolve_name(name, package, level) if level > 0 else name)
        return module

    def _see_load(self, spec: Any) -> Any:
        self.lap()
        self._stack.append(spec.name)
        try:
            module = self._load(spec)
        except BaseException:
            self.lap()
            self._stack.pop()
            # What it did import stays imported, and what it looked for may be why it failed.
            self.edges.setdefault(self._stack[-1], {}).update(self.edges.pop(spec.name, {}))
            self.missed.setdefault(self._stack[-1], set()).update(self.missed.pop(spec.name, ()))
            self._note_missed(spec.name)  # another of that name may not fail
            raise
        self.lap()
        self._stack.pop()
        self._note(spec.name)
        return module


class Ahead:
    """The modules imported ahead. Made before anything else is imported; `baseline` is what was."""

    def __init__(self, baseline: dict[str, Any]) -> None:
        self.recorder = Recorder()
        self.hidden: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self._baseline = {name: (one, dict(_namespace(one))) for name, one in baseline.items()}
        self._first_filters = list(_filters())
        self._first_folders = set(sys.path_importer_cache)
        self._own_filters: dict[str, list[Any]] = {}  # by the module that was being executed
        self._seen: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, tuple[int, int, int]] = {}
        self._kept: list[Any] = []
        self._version_at: Callable[[int], int] | None = None
        self._children: dict[str, list[str]] = {}
        self._closures: dict[str, tuple[str, ...]] = {}
        self._detached: set[str] = set()
        self._path: list[str] = []
        self._finders: list[list[Any]] = []
        self._tops: set[str] = set()
        self._asked: set[str] = set()  # what was preloaded, with all that it imports
        self._variables: dict[Any, Any] = {}
        self._over: tuple[dict[str, Any], ...] = ()
        self._lent: list[str] = []  # of `sys`: what a program uses, and its end takes apart

    # While warming.

    def load(self, name: str) -> list[str]:
        """Import a module; return what speaks against having imported it ahead."""
        before, filters = self._look(), list(_filters())
        names, costs = set(sys.modules), dict(self.recorder.own_s)
        started, waited = time.perf_counter(), _run_delay_s()
        try:
            _modules["builtins"].__import__(name)
        except BaseException as error:  # noqa: BLE001 - whatever it raises, it can't be preloaded
            return ["can't be imported: %s: %s" % (type(error).__name__, error)]
        finally:
            self._correct(costs, time.perf_counter() - started, _run_delay_s() - waited)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or every fork would print what a module left in the buffer
        after = self._look()
        problems = [
            "%s%s" % (what, told(before[what], after[what]))
            for what, told in aspects.ASPECTS.items()
            if before[what] != after[what]
        ]
        problems += self._changed_modules()
        # Names that nobody was seen to import were put into sys.modules by what was imported.
        for other in set(sys.modules) - names - set(self.recorder.own_s):
            parent = other.rpartition(".")[0]
            self.recorder.edges.setdefault(parent if parent in sys.modules else name, {})[other] = (
                None
            )
        added = [one for one in _filters() if one not in filters]
        if added:
            self._own_filters[name] = added
        return problems

    def _correct(self, before: dict[str, float], wall_s: float, waited_s: float) -> None:
        """Take out what the CPU was not there for: the time limit doesn't count it either."""
        share = max(0.0, wall_s - waited_s) / wall_s if wall_s > 0 else 1.0
        own_s = self.recorder.own_s
        for name, seconds in own_s.items():
            own_s[name] = before.get(name, 0.0) + (seconds - before.get(name, 0.0)) * share

    def cost_s(self, name: str) -> float:
        """What importing a hidden module would take."""
        return sum(self.recorder.own_s.get(one, 0.0) for one in self.closure(name))

    def _look(self) -> dict[str, Any]:
        return {what: aspects.STATE[what]() for what in aspects.ASPECTS}

    def _changed_modules(self) -> list[str]:
        problems = []
        for name, (module, before) in self._baseline.items():
            for key in _changes(name, before, _namespace(module)):
                is_ours = key in REPLACED and name in REPLACED_IN
                if not is_ours and sys.modules.get("%s.%s" % (name, key)) is None:
                    problems.append("changes %s.%s" % (name, key))
        return problems

    def hide(self) -> None:
        """Make `sys.modules` and the modules of the baseline look as they did."""
        for name, module in list(sys.modules.items()):
            if name in self._baseline:
                continue
            del sys.modules[name]
            if name.split(".")[0] != __name__.split(".")[0]:
                self.hidden[name] = module
        for name in self.hidden:
            parent, _, child = name.rpartition(".")
            self._children.setdefault(parent, []).append(name)
            if parent in self._baseline:
                module, before = self._baseline[parent]
                if child not in before and child in _namespace(module):
                    delattr(module, child)
                    self._detached.add(name)
        _filters()[:] = self._first_filters
        _filters_mutated()
        for folder in set(sys.path_importer_cache) - self._first_folders:
            del sys.path_importer_cache[folder]
        self._tops = {name.partition(".")[0] for name in self.hidden}
        modules = {name: one for name, (one, _) in self._baseline.items()}
        modules.update(self.hidden)
        self._seen = {name: dict(_namespace(one)) for name, one in modules.items()}
        self._path = list(sys.path)
        self._finders = [list(sys.meta_path), list(sys.path_hooks)]

    def prepare(self, names: Iterable[str], version_at: Callable[[int], int] | None = None) -> None:
        """Find out now what these modules bring with them.

        `version_at` tells the version of the mapping at an address, without touching the mapping.
        """
        for name in names:
            self._closures[name] = self.closure(name)
            self._asked.update(self._closures[name])
        self._kept = list(self.hidden.values())  # nor are they taken apart once they are let go
        self._version_at = version_at
        if version_at is not None:
            for name, module in self.hidden.items():
                address = id(_namespace(module))
                self._versions[name] = id(module), address, version_at(address)

    def closure(self, name: str) -> tuple[str, ...]:
        """A hidden module and every hidden one that importing it imports."""
        found: dict[str, None] = {}
        self._follow([name], found, self.hidden)
        return tuple(found)

    def _follow(
        self, names: list[str], found: dict[str, None], among: dict[str, Any] | None = None
    ) -> None:
        """Add modules, and all that importing them imports, to those that were found before."""
        todo = list(names)
        while todo:
            one = todo.pop()
            if one in found or (among is not None and one not in among):
                continue
            found[one] = None
            parent = one.rpartition(".")[0]
            if parent:
                todo.append(parent)
            todo += self.recorder.edges.get(one, ())

    def show(self, name: str, shown: bool) -> None:
        """Let what imports a hidden module here find it, or no longer."""
        if name not in self.hidden:
            return  # it is there anyway
        if shown:
            sys.modules[name] = self.hidden[name]
        else:
            del sys.modules[name]

    def arm(self, charge: Callable[[float], None], refuse: Callable[[str], None]) -> None:
        """Have programs that are forked from now on given modules back. `refuse` doesn't return."""
        self._charge, self._refuse = charge, refuse
        self.recorder.begin()
        main = type(sys)("__main__")  # one that the collector sees: the old one is frozen
        main.__dict__.clear()
        main.__dict__.update(_namespace(sys.modules["__main__"]))
        sys.modules["__main__"] = main
        self.look_again()
        scope = {
            "hidden": self.hidden,
            "give_back": self.give_back,
            "original": _bootstrap._find_and_load,
            "modules": sys.modules,
        }
        exec(_WRAPPER, scope)
        _bootstrap._find_and_load = scope["find_and_load"]

    def look_again(self) -> None:
        """At what differs from program to program and isn't its doing: streams and variables."""
        self._seen["sys"] = seen = dict(vars(sys))
        self._lent = [
            name
            for name, value in seen.items()
            if name in STREAMS or type(value) in (dict, list, set) or hasattr(value, "__dict__")
        ]
        self._variables = dict(_modules["os"].environ._data)

    # In a snippet.

    def give_back(self, name: str) -> None:
        if sys.meta_path is None:
            return  # nothing can be imported any more
        locks: Any = _bootstrap._imp
        locks.acquire_lock()  # other threads may import at the same time
        try:
            if name in self.hidden:
                self._give_back(name)
        finally:
            locks.release_lock()

    def _give_back(self, name: str) -> None:
        # Not only what is hidden: what was given before may be gone.
        wanted = self._closures.get(name) or self._reached([name])
        names = [one for one in wanted if one in self.hidden]
        reason = self._loss(wanted) or self._objection(names)
        if reason is not None:
            self._refuse("import %s: %s" % (name, reason))
            return
        hidden, modules = self.hidden, sys.modules
        self._charge(sum(self.recorder.own_s.get(one, 0.0) for one in names))
        found = {one: hidden.pop(one) for one in names}
        for one in names:
            self._attach(one, found)
        modules.update(found)  # at once: whoever finds one of them finds the others
        self.given.update(found)
        added = [item for one in names for item in self._own_filters.get(one, ())]
        if added:
            _filters()[:0] = added
            _filters_mutated()
        self.recorder.register_for(names)
        _refresh(names)
        for one in names:
            if one in REFRESHED:
                self._seen[one] = dict(_namespace(modules[one]))

    def let_go(self) -> None:
        """At the end of a program: hold nothing that is to go with it.

        What holds a stream for good keeps it from being flushed when it goes; and a list of `sys`,
        what the program put into it. The rest of `sys` stays remembered, out of the way: to forget
        it would write to each object's page.
        """
        self._over = self._seen.pop("sys", {}), self._baseline.pop("sys", (None, {}))[1]
        for name in self._lent:
            for names in self._over:
                names.pop(name, None)

    def unchanged(self) -> list[str]:
        """What a program was given and left as it was."""
        modules = ((name, sys.modules.get(name)) for name in self.given)
        return [
            name
            for name, module in modules
            if module is not None
            and (
                self._is_as_it_was(name, module)
                or not _changes(name, self._seen[name], _namespace(module))
            )
        ]

    def _is_as_it_was(self, name: str, module: Any) -> bool:
        """Whether its namespace is known to be unchanged without a look at what is in it.

        A look counts references, which is writing: a page for almost everything in torch.
        """
        if self._version_at is None or name not in self._versions:
            return False
        known, address, version = self._versions[name]
        return id(module) == known and self._version_at(address) == version

    def _attach(self, name: str, found: dict[str, Any]) -> None:
        """A package shows those of its modules that are imported, and no others."""
        module = found[name]
        for child in self._children.get(name, ()):
            short = child.rpartition(".")[2]
            if child in self.hidden and _namespace(module).get(short) is self.hidden[child]:
                delattr(module, short)
                self._detached.add(child)
        if name in self._detached:
            parent, _, short = name.rpartition(".")
            owner = found[parent] if parent in found else sys.modules.get(parent)
            if owner is not None:
                setattr(owner, short, module)
            self._detached.discard(name)

    def _loss(self, names: Iterable[str]) -> str | None:
        """What was given back before, and is no longer there for these to find."""
        for name in names:
            if name in self.given and sys.modules.get(name) is not self.given[name]:
                return "%s was taken out of sys.modules before" % name
        return None

    def _objection(self, names: list[str]) -> str | None:
        """What has happened that might have made this import come out differently."""
        is_asked = bool(self._asked.intersection(names))
        if self._has_other_finders(is_asked):
            return "import hooks were changed before"
        if sys.gettrace() is not None or sys.getprofile() is not None:
            return "a trace function was set before"
        for name in names:
            if name in sys.modules:
                return "a module %s of its own was put into sys.modules before" % name
        missed = self.recorder.missed
        shadow = self._shadow(set().union(*[missed[name] for name in names if name in missed]))
        if shadow is not None:
            return "%s would be found first" % shadow
        # The agent's own modules are Python's, which look at no variables and warn of nothing.
        if is_asked:  # libraries in C import without anybody seeing it
            return self._asked_objection() or self._change(list(sys.modules))
        return self._change(list(self._reached(names)))

    def _has_other_finders(self, is_asked: bool) -> bool:
        """Whether something else may find these modules, or what they looked for in vain.

        The agent's own are all there, and Python's: they are found by its own finders, if nothing
        is asked before these, whatever finders of others came last or have gone.
        """
        finders, hooks = self._finders
        if is_asked:
            return [list(sys.meta_path), list(sys.path_hooks)] != self._finders
        left = [one for one in sys.meta_path if one in finders]
        kept = [one for one in finders if one in left or _is_pythons(one)]
        return sys.path_hooks != hooks or sys.meta_path[: len(left)] != kept

    def _asked_objection(self) -> str | None:
        """The same, of what only other people's modules look at while they are imported."""
        if self._variables != _modules["os"].environ._data:
            return "environment variables were changed before"
        added = list(_filters())[: len(_filters()) - len(self._first_filters)]
        known = {id(item) for items in self._own_filters.values() for item in items}
        if list(_filters())[len(added) :] != self._first_filters or any(
            item[0] != "ignore" for item in added if id(item) not in known
        ):
            return "warnings filters were changed before"
        return None

    def _change(self, names: list[str]) -> str | None:
        """What was changed in these modules since."""
        for name in names:
            module, before = sys.modules.get(name), self._seen.get(name)
            if module is None or before is None or name in UNFINISHED:
                continue
            for key in _changes(name, before, _namespace(module)):
                full = "%s.%s" % (name, key)
                if full not in sys.modules and full not in self.hidden:
                    return "%s.%s was changed before" % (name, key)
        return None

    def _reached(self, names: list[str]) -> dict[str, None]:
        """What importing these may look at: what it imports, and what every program has."""
        found = dict.fromkeys(self._baseline)
        self._follow(names, found)
        return found

    def _shadow(self, missed: set[str]) -> str | None:
        """What the import path has now that would be found for a hidden name or a missed one.

        A folder without `__init__.py` comes after everything else: of missed names alone it is one.
        """
        extra, known = [], iter(self._path)
        wanted = next(known, None)
        for entry in sys.path:
            if entry == wanted:
                wanted = next(known, None)
            else:
                extra.append(entry)
        if wanted is not None:
            return "a changed sys.path"
        os: Any = _modules["os"]
        for folder in extra:
            try:
                found = list(os.scandir(folder or "."))
            except FileNotFoundError:
                continue
            except OSError:
                return "%s on sys.path" % folder
            for entry in found:
                top = entry.name.partition(".")[0]
                if top not in missed:
                    if top not in self._tops:
                        continue
                    if entry.name == top and not os.path.lexists(entry.path + "/__init__.py"):
                        continue
                return str(entry.path)
        return None


def _is_pythons(finder: Any) -> bool:
    return getattr(finder, "__module__", "") in IMPORTLIB


def _run_delay_s() -> float:
    """How long this thread was ready to run and had no CPU."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _namespace(module: Any) -> dict[str, Any]:
    return getattr(module, "__dict__", {})


def _changes(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names in a module that are new, gone, or mean something else."""
    changed = [key for key, value in after.items() if before.get(key, before) is not value]
    changed += [key for key in before if key not in after]
    ignored = ANY_CHANGES | (SYS_CHANGES if name == "sys" else set())
    if name in IMPORTLIB or name.startswith("importlib._bootstrap"):
        ignored = ignored | IMPORTLIB_CHANGES
    if name == "threading":  # it makes its locks anew after a fork
        changed = [key for key in changed if not key.startswith("_")]
    return [key for key in changed if key not in ignored]


def _filters() -> Any:
    return sys.modules["_warnings"].filters


def _filters_mutated() -> None:
    module = sys.modules["_warnings"]
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if hasattr(module, name):
            try:
                getattr(module, name)()
            except RuntimeError:  # it wants its lock
                continue
            return


def _refresh(names: list[str]) -> None:
    """Give modules that remember the moment of their import the present one."""
    modules = sys.modules
    for name in names:
        module: Any = modules[name]
        if name == "numpy.random":
            module.seed()
        elif name == "torch" and hasattr(module, "default_generator"):
            module.default_generator.seed()
        elif name == "multiprocessing.process":
            module.ORIGINAL_DIR = modules["os"].path.abspath(modules["os"].getcwd())
            module._current_process._config["authkey"] = module.AuthenticationString(
                modules["os"].urandom(32)
            )
        elif name == "logging":
            module._startTime = (
                modules["time"].time_ns()
                if isinstance(module._startTime, int)
                else modules["time"].time()
            )
