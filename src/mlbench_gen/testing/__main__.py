"""python -m mlbench_gen.testing ROWS: the dataset's own answers, to try things without a key.

Prints its address, and serves until interrupted.
"""

import contextlib
import sys
import threading

from mlbench_exec import read_rows
from mlbench_gen.testing.server import ModelServer, gold_script

if len(sys.argv) != 2:
    sys.exit("usage: python -m mlbench_gen.testing ROWS")
with ModelServer(gold_script(list(read_rows(sys.argv[1])))) as server:
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
