# Signals that the kernel sends in its name, to pid 1, its parent and all groups.
import fcntl
import signal
import socket
import time

F_SETSIG = 10
one, other = socket.socketpair()
for who in GIVEN["owners"]:
    for number in 0, signal.SIGKILL, signal.SIGSTOP:
        try:
            fcntl.fcntl(one, fcntl.F_SETOWN, who)
            fcntl.fcntl(one, F_SETSIG, int(number))
            fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            other.send(b"x")
        except OSError:
            continue
time.sleep(0.1)
tell("sent", "done")
