# Switches of the kernel in /proc, /sys and /dev.
opened = []
for path in GIVEN["switches"]:
    try:
        os.close(os.open(path, os.O_WRONLY))
        opened.append(path)
    except OSError:
        continue
tell("writable", " ".join(opened) or "none")
