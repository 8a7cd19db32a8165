# The way from a virtual machine to its host, and other families.
import socket

for name, family, kind in (
    ("vsock", 40, socket.SOCK_STREAM),
    ("packet", 17, socket.SOCK_RAW),
    ("raw", socket.AF_INET, socket.SOCK_RAW),
    ("alg", 38, socket.SOCK_SEQPACKET),
    ("netlink audit", 16, socket.SOCK_RAW),
):
    protocol = {"raw": socket.IPPROTO_ICMP, "netlink audit": 9}.get(name, 0)
    attempt(name, lambda: socket.socket(family, kind, protocol).close())
