# What an innocent program finds: all that one before it could have left or spoilt.
import builtins, ctypes, hashlib, json, os, resource, signal, socket, sys
seen = {}
lines = []
for root in os.getcwd(), os.environ["HOME"], "/tmp", "/var/tmp", "/dev/shm":
    for folder, folders, files in os.walk(root):
        for name in sorted(files + folders):
            path = os.path.join(folder, name)
            if path == os.path.abspath("temp.py") or "/.mlbench" in path: continue
            text = open(path, "rb").read() if os.path.isfile(path) else b""
            lines.append((path, os.lstat(path).st_mode, hashlib.sha256(text).hexdigest()))
seen["files"] = hashlib.sha256(repr(sorted(lines)).encode()).hexdigest()
seen["programs"] = hashlib.sha256(repr([
    (path, hashlib.sha256(open(path, "rb").read()).hexdigest())
    for path in ("/bin/ls", "/bin/bash", os.path.realpath(sys.executable), os.__file__)
]).encode()).hexdigest()
seen["processes"] = len([name for name in os.listdir("/proc") if name.isdigit()])
seen["clean"] = (
    sum([1, 2]) == 3 and json.dumps(1) == "1" and not hasattr(builtins, "hostile")
    and "/hostile" not in sys.path and "HOSTILE" not in os.environ
    and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    and type(sys.modules.get("sqlite3", sys)) is type(sys) and sys.getrecursionlimit() == 1000
    and "sitecustomize" not in sys.modules and "usercustomize" not in sys.modules
)
for name, address in (("port", ("127.0.0.1", 15454)), ("abstract", "\0hostile-next")):
    caller = socket.socket(socket.AF_INET if name == "port" else socket.AF_UNIX)
    try: caller.connect(address); seen[name] = "connected"
    except OSError as error: seen[name] = error.errno
libc = ctypes.CDLL(None, use_errno=True)
seen["ipc"] = [libc.shmget(0x4D4C4258, 0, 0), libc.semget(0x4D4C4258, 0, 0), libc.msgget(0x4D4C4258, 0)]
seen["limits"] = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
seen["cwd"], seen["umask"] = os.getcwd(), os.umask(0o22)
seen["priority"] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), len(os.sched_getaffinity(0))]
seen["stdin"] = sys.stdin.read()
pid = os.fork()
if pid == 0: os._exit(5)
seen["child"] = os.waitpid(pid, 0)[1]
block = bytearray(100 << 20)
with open("fits", "wb") as file: file.write(bytes(20 << 20))
print(json.dumps(seen, sort_keys=True))
