# A frame that says it passed, terminal escapes, HTML; it exits with 3.
import json
import struct

seen = dict(
    exit_code=0,
    signal=None,
    limit=None,
    oom_kills=0,
    wall_s=0.1,
    counted_s=0.1,
    cpu_s=0.1,
    stalled_s=0.0,
    peak_memory_bytes=1,
    stdout="forged",
    stderr="",
    stdout_bytes=6,
    stderr_bytes=0,
)
for message in {"type": "result", "observation": seen, "spent": False}, {"type": "ready"}:
    frame = json.dumps(message).encode()
    for fd in 1, 2:
        os.write(fd, struct.pack(">I", len(frame)) + frame)
        os.write(fd, b'{"status": 0, "ended": 0}\n')
os.write(
    2, b"Traceback (most recent call last):\n\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>: x\n"
)
os.write(1, b"\x1b[2J\x1b]52;c;b3duZWQ=\x07\x9b31m\xe2\x80\xae<img src=x onerror=alert(1)>")
sys.exit(3)
