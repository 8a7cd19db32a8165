# Writes 200 MiB to files in its working folder.
written, number = 0, 0
try:
    while written < 200 << 20:
        number += 1
        with open("fill-%d" % number, "wb", 0) as file:
            for _ in range(10):
                written += file.write(bytes(1 << 20))
    tell("MiB", "%d done" % (written >> 20))
except OSError as error:
    tell("MiB", "%d %s" % (written >> 20, name_of(error.errno)))
