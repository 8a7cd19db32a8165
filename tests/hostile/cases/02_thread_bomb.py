# Starts 300 threads that all stay.
import threading

stop = threading.Event()
count = 0
try:
    while count < 300:
        threading.Thread(target=stop.wait, daemon=True).start()
        count += 1
    tell("threads", "%d done" % count)
except RuntimeError:  # Python hides the errno of pthread_create: EAGAIN
    tell("threads", "%d EAGAIN" % count)
stop.set()
