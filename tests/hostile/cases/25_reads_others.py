# Reads memory, environment and descriptors of every process that it sees, and of one it is told.
own = {os.getpid()}
seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
readable = 0
for pid in {*seen, GIVEN["victim"]} - own:
    for name in "mem", "environ", "fd", "root", "maps":
        path = "/proc/%d/%s" % (pid, name)
        try:
            if name == "fd":  # their numbers may be listed, what they are may not
                found = [os.readlink(path + "/" + fd) for fd in os.listdir(path)]
            elif name == "root":
                found = os.listdir(path)
            else:
                with open(path, "rb", 0) as file:
                    if name == "mem":
                        file.seek(0x400000)
                    found = file.read(1)
            readable += bool(found)
        except OSError:
            continue
tell("others readable", "some" if readable else "none")
tell("host's process", "seen" if GIVEN["victim"] in seen else "not seen")
tell("secret", "there" if GIVEN["secret"] in os.environ else "not there")
