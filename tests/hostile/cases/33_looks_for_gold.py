# Reads every file that isn't the system's, and looks for what the dataset and the journal hold.
needle = "-".join(GIVEN["needle"]).encode()
system = {"/proc", "/sys", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/dev", "/var/lib/dpkg"}
hits = set()
here = os.path.abspath("temp.py")
for folder, folders, files in os.walk(GIVEN["search"]):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in system]
    for name in files:
        path = os.path.join(folder, name)
        try:
            if os.path.isfile(path) and path != here and os.path.getsize(path) < 1 << 20:
                with open(path, "rb") as file:
                    if needle in file.read():
                        hits.add(path)
        except OSError:
            continue
for path in "/proc/1/cmdline", "/proc/self/environ", "/proc/1/environ":
    try:
        with open(path, "rb") as file:
            if needle in file.read():
                hits.add(path)
    except OSError:
        continue
tell("gold", "found" if hits else "not there")
