#!/usr/bin/env python3
"""Times generation and execution alone, one after the other, and at the same time."""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from mlbench_gen.testing import Asked, Good, ModelServer, Response

BIN = Path(sysconfig.get_path("scripts"))
KEY = "BENCH_KEY"
GOAL = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=260)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16, help="sandboxes at once")
    parser.add_argument("--requests", type=int, default=8, help="requests at once")
    parser.add_argument("--sleep", type=float, default=0.5, help="seconds that a program sleeps")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piped-") as folder:
        Path(folder).chmod(0o755)
        return Bench(Path(folder), given).run()


class Bench:
    """One comparison, in a folder of its own."""

    def __init__(self, home: Path, given: argparse.Namespace) -> None:
        self.home = home
        self.given = given
        self.delay_s = 0.0
        self._write_rows()

    def run(self) -> int:
        given = self.given
        with ModelServer(self._script) as server:
            self.delay_s = 0.02
            self._timed("a first look", [self._generate(server, "look")], quiet=True)
            execution_s = self._timed("execution alone", [self._execute("look", "alone")])
            # What generation takes beside its waiting is small, and measured all the same.
            self.delay_s = execution_s * given.requests / given.rows
            generation_s = self._timed("generation alone", [self._generate(server, "generated")])
            before = len(server.log)
            piped_s = self._timed(
                "piped",
                [self._generate(server, "piped-answers", "-o", "-"), self._execute("-", "piped")],
            )
            one_s = self._timed("one process", [self._run(server, "one")])
            asked = len(server.log) - before
        longer_s = max(generation_s, execution_s)
        say(f"piped: {piped_s / longer_s:.3f} of the longer of the two alone (goal: {GOAL})")
        say(f"one process: {one_s / longer_s:.3f}")
        say(f"one after the other would be {(generation_s + execution_s) / longer_s:.3f}")
        expected = self._verdicts("alone")
        same = all(self._verdicts(name) == expected for name in ("piped", "one"))
        kinds = {status: list(expected.values()).count(status) for status in set(expected.values())}
        say(f"{len(expected)} verdicts {kinds}: {'equal' if same else 'NOT EQUAL'}")
        say(f"{asked} requests for twice {given.rows} rows")
        is_good = same and asked == 2 * given.rows and len(expected) == given.rows * given.samples
        return 0 if is_good else 1

    def _script(self, asked: Asked) -> Response:
        """Each row's answers sleep; every third row's end with an error."""
        found = re.search(r"thing (\d+)\.", asked.prompt)
        assert found is not None
        number = int(found[1])
        end = "raise SystemExit(1)" if number % 3 == 0 else "print('done')"
        code = f"import time\ntime.sleep({self.given.sleep})\n{end}"
        return Good(texts=[f"```python\n{code}\n```"], delay_s=self.delay_s)

    def _write_rows(self) -> None:
        columns = {"github": "https://example.org/one", "path": "./", "arguments": "{}"}
        columns |= {"type": "Python Code", "oracle": "none"}
        with (self.home / "rows.jsonl").open("w") as file:
            for number in range(self.given.rows):
                row = {"github_id": 1, "id": number, "instruction": f"Do thing {number}."}
                file.write(json.dumps(row | columns) + "\n")
        (self.home / "repository").mkdir()
        (self.home / "environments.toml").write_text(
            f'[environments.one]\ngithub_ids = [1]\nworkdir = "{self.home}/repository"\n'
            'python = "/usr/bin/python3"\n'
        )

    def _generate(self, server: ModelServer, name: str, *more: str) -> list[str]:
        return [str(BIN / "mlbench-gen"), "generate", *self._asking(server), "--out", name, *more]

    def _asking(self, server: ModelServer) -> list[str]:
        options = ["--model", "scripted-1", "--dataset", "rows.jsonl", "--base-url", server.url]
        options += ["--key-env", KEY, "--samples", str(self.given.samples)]
        return [*options, "--requests", str(self.given.requests)]

    def _execute(self, source: str, name: str) -> list[str]:
        outputs = source if source == "-" else f"{source}/outputs.jsonl"
        options = ["--dataset", "rows.jsonl", *self._judging(), "--out", name]
        return [str(BIN / "mlbench-exec"), "run", outputs, *options]

    def _judging(self) -> list[str]:
        options = ["--environments", "environments.toml", "--backend", "local", "--memory", "128m"]
        return [*options, "--concurrency", str(self.given.concurrency)]

    def _run(self, server: ModelServer, name: str) -> list[str]:
        options = [*self._asking(server), *self._judging(), "--out", name]
        return [str(BIN / "mlbench-gen"), "run", *options]

    def _timed(self, what: str, commands: list[list[str]], *, quiet: bool = False) -> float:
        """The seconds that the commands take, each one's stdout the next one's stdin."""
        with (self.home / "log.txt").open("ab") as log:
            started = time.monotonic()
            processes: list[subprocess.Popen[bytes]] = []
            for number, command in enumerate(commands):
                is_last = number == len(commands) - 1
                process = subprocess.Popen(
                    command,
                    cwd=self.home,
                    stdin=processes[-1].stdout if processes else subprocess.DEVNULL,
                    stdout=log if is_last else subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, KEY: "none"},
                )
                processes.append(process)
            for process in processes[:-1]:
                assert process.stdout is not None
                process.stdout.close()
            codes = [process.wait() for process in processes]
            took_s = time.monotonic() - started
        if any(codes):
            say((self.home / "log.txt").read_text()[-2000:])
            sys.exit(f"{what}: exit codes {codes}")
        if not quiet:
            say(f"{what}: {took_s:.1f} s")
        return took_s

    def _verdicts(self, name: str) -> dict[tuple[int, int], str]:
        lines = (self.home / name / "verdicts.jsonl").read_text().splitlines()
        return {(one["id"], one["index"]): one["status"] for one in map(json.loads, lines)}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
