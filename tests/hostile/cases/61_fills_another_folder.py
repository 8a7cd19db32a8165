# Fills the disk beside its working folder, and with files that have no name any more.
import time

written = 0
folder = GIVEN["elsewhere"] or os.environ["HOME"]
try:
    for number in range(14):
        path = "%s/fill-%d" % (folder, number)
        with open(path, "wb", 0) as file:
            for _ in range(50):
                written += file.write(bytes(1 << 20))
    tell("MiB", "%d done" % (written >> 20))
except OSError as error:
    tell("MiB", "%d %s" % (written >> 20, name_of(error.errno)))
time.sleep(GIVEN["confined"] and 1)
