# FIFOs and devices where files are expected.
import stat

for name in "temp.py", "README.md":
    if os.path.lexists(name):
        os.unlink(name)
    attempt("fifo " + name, os.mkfifo, name)
attempt("device", os.mknod, "device", stat.S_IFBLK | 0o666, os.makedev(7, 0))
attempt("memory", os.mknod, "memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))
