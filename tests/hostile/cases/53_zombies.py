# A thousand children that nobody waits for: first its own, then orphans.
import time

count = 0
try:
    while count < 1000:
        spawn(lambda: None)
        count += 1
    tell("zombies", "%d done" % count)
except OSError as error:
    tell("zombies", "%d %s" % (count, name_of(error.errno)))
try:
    while True:
        os.waitpid(-1, 0)
except OSError:
    pass
orphans, until = 0, time.monotonic() + 60
while orphans < 1000 and time.monotonic() < until:
    try:
        os.waitpid(spawn(lambda: spawn(lambda: None)), 0)
        orphans += 1
    except OSError:
        time.sleep(0.005)
tell("orphans", "%d done" % orphans)
