# TCP to listeners that the test holds, and the way to anywhere: asking for a route sends nothing.
import socket

for address in GIVEN["addresses"]:
    attempt("tcp", lambda: socket.create_connection((address, GIVEN["port"]), 5).close())
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    attempt("route", probe.connect, ("127.0.0.1" if not GIVEN["confined"] else "192.0.2.1", 9))
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
    attempt("route 6", probe.connect, ("::1" if not GIVEN["confined"] else "2001:db8::1", 9))
tell("interfaces", " ".join(name for _, name in socket.if_nameindex()))
if GIVEN["confined"]:
    try:
        socket.getaddrinfo("example.invalid", 80)
    except socket.gaierror as error:
        tell("dns", "EAI %d" % error.errno)
