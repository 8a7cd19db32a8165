# Writes 200 MiB to /tmp, then to /dev/shm, where half the memory's limit fits.
for folder in "/tmp", "/dev/shm":
    path = "%s/hostile-%d" % (folder, os.getpid())
    written = 0
    try:
        with open(path, "wb", 0) as file:
            while written < 200 << 20:
                written += file.write(bytes(1 << 20))
        tell(folder, "%d done" % (written >> 20))
    except OSError as error:
        tell(folder, "%d %s" % (written >> 20, name_of(error.errno)))
    if not GIVEN["confined"]:
        os.unlink(path)
