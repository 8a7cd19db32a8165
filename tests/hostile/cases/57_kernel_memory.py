# Lets the kernel keep 1,200 MiB for it: bytes in sockets that nobody reads.
import signal
import socket


def fill():
    kept, total = [], 0
    while total < 100 << 20:
        one, other = socket.socketpair()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        one.setblocking(False)
        kept.append((one, other))
        try:
            while True:
                total += one.send(bytes(65536))
        except BlockingIOError:
            continue
        except OSError:
            break
    return kept, total


def hold():
    kept, total = fill()
    os.write(ready[1], b"%d\n" % (total >> 20))
    signal.pause()


ready = os.pipe()
tell("begun", "done")
children = [spawn(hold) for _ in range(12)]
seen = b""
while seen.count(b"\n") < len(children):
    seen += os.read(ready[0], 1000)
for child in children:
    os.kill(child, signal.SIGKILL)
tell("MiB", str(sum(map(int, seen.split()))))
