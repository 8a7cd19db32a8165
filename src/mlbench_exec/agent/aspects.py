"""What importing a module may not change if it is to be imported ahead, and what to say of it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # nothing is imported here that a recorder should see
if TYPE_CHECKING:
    from typing import Any, Callable

_modules: dict[str, Any] = sys.modules  # not to be asked what is in them


def _native_threads() -> int:
    """Those that a fork would lose; OpenBLAS starts its own again."""
    os: Any = _modules["os"]
    libraries = {line.split()[-1] for line in _maps() if b"openblas" in line}
    allowed = len(libraries) * (len(os.sched_getaffinity(0)) - 1)
    return max(0, len(os.listdir("/proc/self/task")) - 1 - allowed)


def _maps() -> list[bytes]:
    with open("/proc/self/maps", "rb") as file:
        return file.read().splitlines()


def _gpu() -> bool:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    ready = bool(cuda is not None and getattr(cuda, "is_initialized", bool)())
    return ready or any(b"/dev/nvidia" in line or b"/dev/kfd" in line for line in _maps())


def _shared_memory() -> int:
    """Writable mappings that every fork would share."""
    return sum(line.split()[1].startswith(b"rw") and b"s" in line.split()[1] for line in _maps())


def _open_files() -> dict[str, str]:
    os: Any = _modules["os"]
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue  # the listing's own
    return found


def _handlers() -> list[Any]:
    signal: Any = __import__("_signal")
    return [signal.getsignal(number) for number in range(1, signal.NSIG)]


def _hooks() -> list[Any]:
    names = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")
    return [getattr(sys, name, None) for name in names]


def _streams() -> list[Any]:
    names = ("stdin", "stdout", "stderr")
    return [(getattr(sys, one), getattr(getattr(sys, one), "encoding", None)) for one in names]


def _interpreter() -> list[Any]:
    gc: Any = __import__("gc")
    return [sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()]


def _locale() -> Any:
    module: Any = __import__("_locale")
    return module.setlocale(module.LC_ALL, None)


def _start_method() -> Any:
    context: Any = sys.modules.get("multiprocessing.context")
    chosen = getattr(context, "_default_context", None)
    return getattr(chosen, "_actual_context", None)


def _logging() -> Any:
    logging: Any = sys.modules.get("logging")
    root = getattr(logging, "root", None)
    if root is None:
        return ([], 30, 0)
    return (list(root.handlers), root.level, root.manager.disable)


def _limits() -> Any:
    resource: Any = sys.modules.get("resource")
    return [resource.getrlimit(one) for one in range(16)] if resource else []


def _umask() -> int:
    os: Any = _modules["os"]
    mask = int(os.umask(0o022))
    os.umask(mask)
    return mask


def _written() -> int:
    os: Any = _modules["os"]
    return int(os.statvfs("/tmp").f_ffree)


def _added(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        new = ["%s: %s" % (key, after[key]) for key in after if before.get(key) != after[key]]
        return " (%s)" % ", ".join(str(one)[:80] for one in new) if new else ""
    return ""


def _nothing(before: Any, after: Any) -> str:
    return ""


STATE: dict[str, Callable[[], Any]] = {
    "starts threads": lambda: len(sys._current_frames()),
    "starts threads of a library": _native_threads,
    "touches a GPU": _gpu,
    "keeps files open": _open_files,
    "shares memory": _shared_memory,
    "changes signal handlers": _handlers,
    "changes hooks of sys": _hooks,
    "changes sys.path": lambda: list(sys.path),
    "changes import hooks": lambda: [list(sys.meta_path), list(sys.path_hooks)],
    "changes environment variables": lambda: dict(_modules["os"].environ),
    "changes the umask": _umask,
    "changes the folder": lambda: _modules["os"].getcwd(),
    "changes stdin, stdout or stderr": _streams,
    "changes the interpreter's settings": _interpreter,
    "changes the locale": _locale,
    "changes how multiprocessing starts": _start_method,
    "sets up logging": _logging,
    "changes resource limits": _limits,
    "writes files": _written,
}
ASPECTS: dict[str, Callable[[Any, Any], str]] = {
    what: _added if what in ("keeps files open", "changes environment variables") else _nothing
    for what in STATE
}
