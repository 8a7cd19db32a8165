# 700 MiB of anonymous shared memory.
import mmap

kept = []
for _ in range(14):
    kept.append(mmap.mmap(-1, 50 << 20))
    kept[-1].write(b"x" * (50 << 20))
tell("MiB", "700")
