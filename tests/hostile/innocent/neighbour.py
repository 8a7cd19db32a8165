# An innocent program that uses a bit of everything; WHO is its name.
import hashlib, os, socket, subprocess, threading, time
from multiprocessing import shared_memory
until = time.monotonic() + 0.15
with open("README.md", "a") as file: file.write("WHO")
for folder in "/tmp", "/dev/shm", os.environ["HOME"]:
    with open(folder + "/own", "x") as file: file.write("WHO")
server = socket.create_server(("127.0.0.1", 45455))
client = socket.create_connection(("127.0.0.1", 45455))
block = shared_memory.SharedMemory("own_block", create=True, size=1 << 20)
digest = hashlib.sha256()
while time.monotonic() < until:
    digest = hashlib.sha256(b"WHO" * 1000)
    time.sleep(0.01)
worker = threading.Thread(target=digest.update, args=[b"thread"])
worker.start(); worker.join()
said = subprocess.check_output(["sh", "-c", "echo $((6 * 7)); cat README.md"], text=True)
block.close(); block.unlink()
print(digest.hexdigest()[:16], said, sorted(os.listdir("/dev/shm")), os.getcwd())
