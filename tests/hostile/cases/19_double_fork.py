# A grandchild in a session of its own, which nobody waits for.
import time


def leave():
    os.setsid()
    spawn(lambda: time.sleep(1000))


os.waitpid(spawn(leave), 0)
tell("left", "done")
