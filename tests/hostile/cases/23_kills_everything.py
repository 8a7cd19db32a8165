# kill(-1): all that it can reach; a child of its own is among them.
import signal

child = spawn(signal.pause)
attempt("kill -1", os.kill, -1, signal.SIGKILL)
_, status = os.waitpid(child, 0)
tell("own child", os.WTERMSIG(status))
