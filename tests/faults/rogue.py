"""In an agent's place: passes everything on between engine and agent, until its plan says not to.

Started as the interpreter would be. A token `NNN-MODE` in the folder `plan` beside it is used up
by one start; `NNN-always-MODE` is never used up. An engine's first start only probes the machine,
and is left alone.
"""

import os
import struct
import subprocess
import sys
import threading
import time

FOLDER = os.path.dirname(os.path.abspath(sys.argv[0]))
PLAN = os.path.join(FOLDER, "plan")
PYTHON = "/usr/bin/python3"
ANSWERS_BEFORE = 2  # its greeting and its readiness
LATER = "later-"  # a mode that begins so: after so many good results
GOOD_RESULTS = 3


def take_mode() -> str | None:
    try:
        probed = os.path.join(FOLDER, f"probed-{os.getppid()}")
        os.close(os.open(probed, os.O_CREAT | os.O_EXCL))
        return None
    except FileExistsError:
        pass
    for name in sorted(os.listdir(PLAN)):
        mode = name.split("-", 1)[1]
        if mode.startswith("always-"):
            return mode[len("always-") :]
        try:
            os.rename(os.path.join(PLAN, name), os.path.join(FOLDER, "used-" + name))
            return mode
        except FileNotFoundError:  # another start was faster
            continue
    return None


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            sys.exit(1)
        data += chunk
    return data


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def pass_on(target: int) -> None:
    while True:
        data = os.read(0, 65536)
        if not data:
            break
        while data:
            data = data[os.write(target, data) :]
    os.close(target)


def misbehave(mode: str, answer: bytes) -> None:
    length, body = answer[:4], answer[4:]
    if mode == "garbage":
        write(b"\xfe\xed" * 5000)
    elif mode == "long":
        write(struct.pack(">I", 0xFFFFFFF0))
        while True:
            write(bytes(65536))
    elif mode == "endless":  # within the limit for a frame, and never whole
        write(struct.pack(">I", 4 << 20))
        time.sleep(3600)
    elif mode == "silent":
        time.sleep(3600)
    elif mode == "dies":
        sys.exit(1)
    elif mode == "torn":
        write(length + body[: len(body) // 2])
        sys.exit(1)
    elif mode == "twice":
        write(answer + answer)
    elif mode == "forged":  # a result with a class to make of it
        forged = body[:-1] + b',"__class__":"os.system"}'
        write(struct.pack(">I", len(forged)) + forged)
    elif mode == "nonsense":
        forged = b'{"type":"hello","machine":"x","python":"3","called":"","uid":0,"kernel":"k"}'
        write(struct.pack(">I", len(forged)) + forged)
    elif mode == "bytes":
        forged = b'{"type":"result","observation":"\xff\xfe"}'
        write(struct.pack(">I", len(forged)) + forged)
    time.sleep(3600)


def main() -> None:
    mode = take_mode()
    if mode is None:
        os.execv(PYTHON, [PYTHON, *sys.argv[1:]])
    if mode == "mute":  # not even a greeting
        time.sleep(3600)
    if mode == "absent":
        sys.exit("no such agent")
    agent = subprocess.Popen(
        [PYTHON, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    threading.Thread(target=pass_on, args=(agent.stdin.fileno(),), daemon=True).start()
    answers, before = 0, ANSWERS_BEFORE
    if mode.startswith(LATER):
        mode, before = mode[len(LATER) :], before + GOOD_RESULTS
    while True:
        length = read_exactly(agent.stdout.fileno(), 4)
        answer = length + read_exactly(agent.stdout.fileno(), struct.unpack(">I", length)[0])
        answers += 1
        if answers > before:
            misbehave(mode, answer)
        write(answer)


main()
