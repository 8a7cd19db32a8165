# Spoils the interpreter for whoever comes after it in the same process.
import builtins
import json
import random
import signal

builtins.sum = lambda *arguments: -1
builtins.hostile = True
json.dumps = lambda *arguments, **fields: "forged"
sys.path.insert(0, "/hostile")
os.environ["HOSTILE"] = "1"
os.umask(0o777)
os.chdir("/")
random.seed(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.modules["sqlite3"] = json
sys.setrecursionlimit(200)
tell("patched", "done")
