# 700 MiB in files that have no name.
for _ in range(14):
    memory = os.memfd_create("bomb")
    os.write(memory, b"x" * (50 << 20))
tell("MiB", "700")
