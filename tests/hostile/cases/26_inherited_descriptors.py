# What it was born with.
names = sorted(os.listdir("/proc/self/fd"))  # with the one that reads the folder
tell("descriptors", " ".join(name for name in names if os.path.lexists("/proc/self/fd/" + name)))
