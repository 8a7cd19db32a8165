# The cloud's metadata address, and the host on its bridge.
import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    attempt("metadata", probe.connect, ("169.254.169.254", 80))
for address in GIVEN["addresses"]:
    attempt("bridge", lambda: socket.create_connection((address, GIVEN["port"]), 5).close())
