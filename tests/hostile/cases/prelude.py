# Stands before every Python case. GIVEN is what the test lets the program know.
import ctypes
import errno
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def tell(what, result):
    sys.stdout.write("%s\t%s\n" % (what, result))
    sys.stdout.flush()


def name_of(number):
    return errno.errorcode.get(number, "errno %s" % number)


def attempt(what, call, *arguments):
    """Tell how a call ends: `done`, or its errno."""
    try:
        value = call(*arguments)
    except OSError as error:
        tell(what, name_of(error.errno))
        return None
    tell(what, "done")
    return value


def syscall(number, *arguments):
    """A raw system call; raises OSError."""
    words = [
        argument if isinstance(argument, bytes) else ctypes.c_long(argument)
        for argument in arguments
    ]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "system call %d" % number)
    return result


def spawn(work):
    """A child that does `work` and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child
