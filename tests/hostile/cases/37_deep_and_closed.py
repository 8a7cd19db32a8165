# A tree that is deeper than a path can say, folders that nobody may enter, immutable files.
import fcntl
import struct

here = os.getcwd()
depth = 0
try:
    while depth < 1500:
        os.mkdir("deep-and-deeper")
        os.chdir("deep-and-deeper")
        depth += 1
except OSError as error:
    tell("stopped", name_of(error.errno))
tell("depth", depth)
os.chdir(here)
fd = os.open("immutable", os.O_CREAT | os.O_RDWR)
attempt("immutable", fcntl.ioctl, fd, 0x40086602, struct.pack("l", 0x10))
os.makedirs("closed/inner")
os.chmod("closed/inner", 0)
os.chmod("closed", 0)
os.chmod(".", 0)
os.chmod(os.environ["HOME"], 0)
tell("closed", "done")
