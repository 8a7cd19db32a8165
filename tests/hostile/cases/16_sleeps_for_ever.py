# Sleeps for ever.
import time

tell("sleeps", "done")
while True:
    time.sleep(1000)
