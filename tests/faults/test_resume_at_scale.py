"""A run of 105,000 outputs, killed and continued: how long until it goes on, and in what memory.

    python -m pytest -s tests/faults/test_resume_at_scale.py

prints the figures. 100,000 outputs fail a static check; 5,000 are executed, by a backend that does
nothing, since what is measured is the engine's own part.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from acceptance.command import Command, Line
from faults.scene import driver

STATIC, EXECUTED = 100_000, 5_000
OUTPUTS = 5
FEW = 10_000  # lines of the shorter journal
STARTS_WITHIN_S = 5.0  # of the processor's time: a busy machine takes longer by the clock
MORE_MIB = 16  # that ten times the journal may need; a verdict's line alone has 0.5 KiB
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(900)]
ENVIRONMENT = '[environments.tiny]\ngithub_ids = [1]\nworkdir = "/srv/tiny"\n'


def make(home: Path) -> Command:
    rows = (STATIC + EXECUTED) // OUTPUTS
    with (home / "rows.jsonl").open("w") as file:
        for number in range(rows):
            row: Line = {"github_id": 1, "github": "https://example.org/r", "id": number}
            row |= {"path": "./", "arguments": "{'name': 'number'}", "type": "Python Code"}
            file.write(json.dumps(row) + "\n")
    with (home / "outputs.jsonl").open("w") as file:
        for number in range(rows):
            named = "number" if number >= STATIC // OUTPUTS else "nothing"
            code = [f"{named} = {number}\nprint({index!r})\n" * 8 for index in range(OUTPUTS)]
            file.write(json.dumps({"github_id": 1, "id": number, "output": code}) + "\n")
    (home / "environments.toml").write_text(ENVIRONMENT)
    return Command(
        home / "command",
        home / "outputs.jsonl",
        *("--dataset", home / "rows.jsonl", "--environments", home / "environments.toml"),
        *("--memory", "256m", "--time-limit", "1", "--backend", "local"),
        program=driver("--fake"),
    )


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def until_it_grows(command: Command) -> tuple["subprocess.Popen[bytes]", float, float, float]:
    """Start it; the process, with its seconds, processor seconds and MiB at its first verdict."""
    journal = command.folder / "verdicts.jsonl"
    size = journal.stat().st_size if journal.exists() else 0
    began = time.monotonic()
    process = command.start()
    while not journal.exists() or journal.stat().st_size <= size:
        assert process.poll() is None, command.said()
        assert time.monotonic() < began + 300, command.said()
        time.sleep(0.01)
    took_s = time.monotonic() - began
    return process, took_s, processor_s(process.pid), memory_mib(process.pid)


def lines_in(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def test_a_run_of_105000_outputs_is_resumed_at_once(tmp_path: Path) -> None:
    """After kill -9, in under 5 s, in the memory that a tenth of the journal needs."""
    command = make(tmp_path)
    journal = command.folder / "verdicts.jsonl"
    process, *fresh = until_it_grows(command)
    while lines_in(journal) < STATIC + EXECUTED // 2:
        assert process.poll() is None, command.said()
        time.sleep(0.2)
    kill(process)
    known = lines_in(journal)
    assert known < STATIC + EXECUTED
    process, *many = until_it_grows(command)
    kill(process)
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:FEW]))
    process, *few = until_it_grows(command)
    kill(process)
    for what, (took_s, cpu_s, mib) in (
        ("fresh", fresh),
        (f"after {FEW} verdicts", few),
        (f"after {known} verdicts", many),
    ):
        print(f"{what}: {took_s:.2f} s, {cpu_s:.2f} s of CPU, {mib:.0f} MiB at its peak")  # noqa: T201
    assert many[1] < STARTS_WITHIN_S
    assert many[2] < few[2] + MORE_MIB
    journal.write_bytes(whole)
    assert command.run(within_s=300) == 0, command.said()
    verdicts = [(line["id"], line["index"]) for line in command.verdicts()]
    assert len(verdicts) == len(set(verdicts)) == STATIC + EXECUTED
