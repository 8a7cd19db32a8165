# Stops itself, and a child that would go on.
import signal

tell("stops", "done")
os.kill(os.getpid(), signal.SIGSTOP)
tell("went on", "done")
