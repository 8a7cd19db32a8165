# A survivor that listens on a port for whoever comes next.
import socket
import time

server = socket.create_server(("127.0.0.1", GIVEN["next_port"]))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\0" + GIVEN["next_name"])
abstract.listen()


def serve():
    os.setsid()
    time.sleep(1000)


spawn(serve)
tell("listening", "done")
