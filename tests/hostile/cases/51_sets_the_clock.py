# Sets the clock: to what it says.
import time

attempt("clock_settime", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))


class Timeval(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("microseconds", ctypes.c_long)]


now = time.time()
value = Timeval(int(now), int(now % 1 * 1e6))
attempt(
    "settimeofday",
    lambda: (
        None
        if libc.settimeofday(ctypes.byref(value), None) == 0
        else (_ for _ in ()).throw(OSError(ctypes.get_errno(), ""))
    ),
)
