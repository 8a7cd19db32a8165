# Asks for cores without limit, then crashes.
import resource
import signal


class Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong)]


def unlimited():
    if libc.setrlimit(resource.RLIMIT_CORE, ctypes.byref(Limit(-1, -1))) == -1:
        raise OSError(ctypes.get_errno(), "setrlimit")


attempt("no limit", unlimited)
libc.prctl(4, 1, 0, 0, 0)
os.kill(os.getpid(), signal.SIGSEGV)
