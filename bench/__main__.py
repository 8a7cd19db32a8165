"""Measure, side by side in one run: `python -m bench [NAME…] [--quick] [--out DIR]`.

Writes DIR/bench.json (what was measured, figures, targets), DIR/table.md and a plot for each
measurement. Names: overhead, torch, slots, scale, startup, corpus; all of them by default.
`--quick` takes seconds and shows only that everything works: its figures mean nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench import corpus, machine, overhead, scale, show, slots, startup, torch_rows
from bench.figures import Summary

RESULTS = Path(__file__).parent / "results"


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What bench.json holds."""

    machine: machine.Machine
    quick: bool
    measured: dict[str, Any]
    summaries: dict[str, Summary]


def measurements(
    cores: int, quick: bool
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Summary]]]:
    """By name: what measures, and what sums up what that found."""
    return {
        "overhead": (partial(overhead.measure, cores, quick=quick), overhead.summarize),
        "torch": (partial(torch_rows.measure, quick=quick), torch_rows.summarize),
        "slots": (partial(slots.measure, quick=quick), slots.summarize),
        "scale": (partial(scale.measure, quick=quick), scale.summarize),
        "startup": (partial(startup.measure, quick=quick), startup.summarize),
        "corpus": (partial(corpus.measure, quick=quick), corpus.summarize),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    here = machine.describe()
    known = measurements(here.cores, asked.quick)
    names = asked.names or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{', '.join(unknown)}: the names are {', '.join(known)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    summaries: dict[str, Summary] = {}
    for name in names:
        started = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)  # noqa: T201
        measure, summarize = known[name]
        measured[name] = measure()
        summaries[name] = summarize(measured[name])
        took = time.monotonic() - started
        print(f"{name}: measured in {took:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
        written = Written(machine=here, quick=asked.quick, measured=measured, summaries=summaries)
        write(asked.out, written)
    print(show.table(here, summaries))  # noqa: T201
    return 0


def write(folder: Path, written: Written) -> None:
    """Whole files, after each measurement: one that fails leaves those before it."""
    (folder / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(written)) + b"\n")
    (folder / "table.md").write_text(show.table(written.machine, written.summaries))
    show.plots(folder, written.summaries)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
