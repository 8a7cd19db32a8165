# Kills its parent, pid 1 and a process of the host's, then exits with 7.
import signal

for what, victim in ("parent", os.getppid()), ("pid 1", 1), ("host's", GIVEN["victim"]):
    if what in GIVEN["targets"]:
        for number in signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL:
            try:
                os.kill(victim, number)
                result = "done"
            except OSError as error:
                result = name_of(error.errno)
        tell(what, result)
sys.exit(7)
