# An abstract unix socket of somebody else's, by its name.
import socket

with socket.socket(socket.AF_UNIX) as caller:
    attempt("connect", caller.connect, "\0" + GIVEN["abstract"])
with open("/proc/net/unix") as table:
    tell("listed", "yes" if GIVEN["abstract"] in table.read() else "no")
