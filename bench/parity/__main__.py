"""python -m bench.parity: judge the corpus in several ways; count the verdicts that flip."""

import argparse
import asyncio
import os
import platform
import sys
from pathlib import Path
from typing import get_args

import msgspec

from bench.parity.corpus import corpus, short
from bench.parity.hogs import cores
from bench.parity.judging import Setting, judge, turns_per_s
from bench.parity.table import Report, describe, table
from mlbench_exec.sandbox import Clock

HELP = "Without --torch-python the local backend leaves the torch cases out."


def main() -> int:
    arguments = _arguments()
    if arguments.merge:
        reports = [
            msgspec.json.decode(Path(path).read_bytes(), type=Report) for path in arguments.merge
        ]
        report = Report(
            machine=reports[0].machine,
            corpus=reports[0].corpus,
            passes=[one for each in reports for one in each.passes],
        )
    else:
        report = asyncio.run(_run(arguments))
    if arguments.json:
        Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(table(report, with_flips=arguments.show))  # noqa: T201
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.parity", description=__doc__, epilog=HELP)
    parser.add_argument("--backend", nargs="+", default=["local"], choices=["local", "docker"])
    parser.add_argument("--clock", nargs="+", default=["fair", "wall"], choices=get_args(Clock))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 2, 8, 32])
    parser.add_argument("--hog", nargs="+", type=int, default=[0], help="busy processes a core")
    parser.add_argument("--times", type=int, default=1, help="how often")
    parser.add_argument("--limit", type=float, default=1.5, help="time limit, seconds")
    parser.add_argument("--torch-limit", type=float, default=8.0)
    parser.add_argument("--torch-python", default=os.environ.get("MLBENCH_EAP_PYTHON", ""))
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--json", default="", help="write everything to this file")
    parser.add_argument("--merge", nargs="+", default=[], help="show what these files hold")
    parser.add_argument("--short", action="store_true", help="a dozen of the snippets")
    parser.add_argument("--show", action="store_true", help="name every flip")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> Report:
    passes = []
    cases = []
    for backend in arguments.backend:
        setting = Setting(
            backend=backend,
            concurrency=1,
            limit_s=arguments.limit,
            torch_limit_s=arguments.torch_limit,
            torch_python=arguments.torch_python,
        )
        has_torch = backend == "docker" or bool(arguments.torch_python)
        cases = [
            case
            for case in corpus(arguments.limit, arguments.torch_limit, await turns_per_s(setting))
            if arguments.only in case.kind and (has_torch or not case.needs_torch)
        ]
        cases = short(cases) if arguments.short else cases
        ways = [
            (hog, clock, concurrency)
            for _ in range(arguments.times)
            for hog in arguments.hog
            for clock in arguments.clock
            for concurrency in arguments.concurrency
        ]
        for hog, clock, concurrency in ways:
            way = msgspec.structs.replace(
                setting, hogs=hog * cores(), clock=clock, concurrency=concurrency
            )
            print(f"{backend}, {clock}, {concurrency}, {way.hogs} hogs …", file=sys.stderr)  # noqa: T201
            passes.append(await judge(cases, way))
    return Report(machine=_machine(), corpus=describe(cases), passes=passes)


def _machine() -> dict[str, str | int]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "cores": cores(),
        "cpu": model,
        "kernel": platform.release(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
    }


sys.exit(main())
