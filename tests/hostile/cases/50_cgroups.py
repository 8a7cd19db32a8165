# The files by which a cgroup's limits are set, and what runs as root when one ends.
writable = []
for folder, folders, files in os.walk("/sys/fs/cgroup", followlinks=True):
    for name in files:
        if name in (
            "release_agent",
            "cgroup.procs",
            "tasks",
            "memory.max",
            "pids.max",
            "memory.limit_in_bytes",
            "cgroup.subtree_control",
            "notify_on_release",
        ):
            try:
                os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                writable.append(name)
            except OSError:
                continue
    if folder.count("/") > 5:
        folders.clear()
tell("writable", "some" if writable else "none")
attempt("new group", os.mkdir, "/sys/fs/cgroup/hostile-" + str(os.getpid()))
