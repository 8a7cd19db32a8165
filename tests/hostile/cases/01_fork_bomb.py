# Forks 300 children that all stay.
import signal

children = []
try:
    while len(children) < 300:
        children.append(spawn(signal.pause))
    tell("forks", "%d done" % len(children))
except OSError as error:
    tell("forks", "%d %s" % (len(children), name_of(error.errno)))
for child in children:
    os.kill(child, signal.SIGKILL)
