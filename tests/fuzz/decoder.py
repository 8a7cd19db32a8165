"""Fuzz the frame decoder with atheris, by hand: `make fuzz`.

    python tests/fuzz/decoder.py -max_total_time=60

The inputs follow what they reach in the code, from some real frames on.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mlbench_exec"]):
    import msgspec

    from mlbench_exec import wire
    from mlbench_exec.testing import observation
    from mlbench_exec.wire import FrameBuffer, ProtocolError


def one_input(data: bytes) -> None:
    """Cut at the place that its first byte says; a message, nothing yet, or a `ProtocolError`."""
    frames = FrameBuffer()
    at = data[0] if data else 0
    for chunk in (data[1 : 1 + at], data[1 + at :]):
        frames.feed(chunk)
        try:
            message = frames.next_message()
        except ProtocolError:
            return
        if message is not None:
            wire.frame(msgspec.json.encode(message))


def main() -> None:
    with tempfile.TemporaryDirectory() as corpus:
        seeds = (
            wire.Hello(
                machine="x86_64",
                python="3.11.2",
                called="/usr/bin/python3",
                uid=0,
                kernel="6.1",
            ),
            wire.Ready(home="/root", owner=(0, 0)),
            wire.Refused(reason="no"),
            wire.Unusable(reason="no"),
            wire.Broken(reason="no", busy=True),
            wire.Result(observation=observation(stdout="é\0")),
        )
        for number, seed in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(b"\x05" + wire.frame(msgspec.json.encode(seed)))
        atheris.Setup([sys.argv[0], corpus, *sys.argv[1:]], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
