"""Page: report.html, a run in one file that opens offline and runs nothing but its own script.

What programs, models and datasets wrote is in it as JSON alone, in blocks that no browser runs,
and its script shows it as text. The policy in its head refuses every other script and every
request. Its size is bounded, however long the run was.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec.errors import RunFolderBroken
from mlbench_exec.failures import Failure, classify
from mlbench_exec.journal import Manifest, load_run, read_unjudged, read_verdicts
from mlbench_exec.report import charts
from mlbench_exec.report.details import highlighted, shortened
from mlbench_exec.report.explain import why
from mlbench_exec.report.failed import KINDS, about, by_kind, ranked
from mlbench_exec.report.sources import Samples, read_programs, read_samples
from mlbench_exec.report.templates import generate
from mlbench_exec.report.terminal import plain
from mlbench_exec.report.words import duration, size
from mlbench_exec.samples import Key, Sample
from mlbench_exec.scores import summarize
from mlbench_exec.summary import STATUSES, FailureCount, Summary
from mlbench_exec.verdicts import Status, Unjudged, Verdict

__all__ = ["PAGE", "embedded", "write_page"]

PAGE = "report.html"
ROWS = 5000  # outputs in the table: the first ones
CODE_CHARS = 8000  # of one program
STREAM_CHARS = 3000  # of stdout, and of stderr
INSTRUCTION_CHARS = 3000
DETAILS_CHARS = 8_000_000  # of all together; what comes after has figures alone
HIGHLIGHTED_CHARS = 2_000_000
UNJUDGED = -1  # in the place of a status's number
FAILURES = 12
SHELL = frozenset({"CommandNotFound", "NoSuchFile", "PermissionDenied"})  # the kind says it
REASONS = 30

WORDS: Mapping[Status, str] = {
    "passed": "passed",
    "passed_at_limit": "passed at limit",
    "failed": "failed",
    "wrong_arguments": "wrong arguments",
    "wrong_type": "wrong type",
    "out_of_memory": "out of memory",
    "killed": "killed",
    "skipped": "skipped",
}
COLUMNS = (
    *("github_id", "id", "index", "status", "repo", "exit_code", "signal", "limit", "wall_s"),
    *("counted_s", "cpu_s", "stalled_s", "peak_memory_bytes", "failure", "slot", "attempts"),
    *("contended", "warm", "started_at", "stdout_bytes", "stderr_bytes"),
)


def write_page(folder: Path, samples: Samples | None = None) -> list[str]:
    """Write the run's report.html from its folder; what could not be shown in it, in words.

    `samples` are the dataset's rows, where the caller has them; else they are read again. Blocks.
    Raises `RunFolderError`, and `RunFolderBroken` where it can't be written.
    """
    loaded = load_run(folder)
    manifest, facts = loaded.manifest, loaded.manifest.dataset
    summary = summarize(loaded.tally, split_rows=facts.split_rows, names=facts.names)
    problems: list[str] = []
    if samples is None:
        found = read_samples(manifest)
        samples = found.found
        problems += [f"Instructions are missing: {found.problem}."] if found.problem else []
    content = _Content(manifest, samples)
    for verdict in read_verdicts(folder):
        content.add(verdict)
    for unjudged in read_unjudged(folder):
        content.add_unjudged(unjudged)
    programs = read_programs(folder, manifest, content.hashes, samples)
    if programs.problem:
        problems.append(f"Some code is missing: {programs.problem}.")
    if content.outputs > ROWS:
        problems.append(
            f"The table below holds the first {ROWS:,} of {content.outputs:,} outputs; "
            "verdicts.jsonl holds all of them."
        )
    details, tasks = content.details(programs.found)
    if content.cut:
        problems.append(
            f"{content.cut:,} outputs are in the table with their figures alone, to keep this "
            "page small; verdicts.jsonl holds what they printed."
        )
    data = {
        "columns": COLUMNS,
        "rows": content.rows,
        "repos": content.repos,
        "kinds": KINDS,
        "failures": [
            [one.kind, plain(about(one.error, one.detail), limit=80).plain]
            for one in content.failures
        ],
        "statuses": {status: WORDS[status] for status in STATUSES},
    }
    text = generate(
        "report.html.j2",
        script="report.js",
        **_context(folder, manifest, summary, content),
        problems=problems,
        data=embedded(data),
        details=embedded({"outputs": details, "tasks": tasks}),
    )
    _write(folder / PAGE, text)
    return problems


class _Content:
    """What the page takes of each verdict, gathered in one pass."""

    def __init__(self, manifest: Manifest, samples: Samples) -> None:
        self.outputs = 0
        self.rows: list[list[Any]] = []
        self.repos: dict[int, str] = {}
        self.failures: dict[Failure, int] = {}  # numbered, as rows name them
        self.hashes: set[str] = set()
        self.cut = 0
        self.times = charts.Histogram(base=10, per_bin=0.1)
        self.memory = charts.Histogram(base=2, per_bin=0.5)
        self.timeline = charts.Timeline()
        self._samples = samples
        self._names = manifest.dataset.names
        self._shown: list[Verdict | Unjudged] = []

    def add(self, verdict: Verdict) -> None:
        self.outputs += 1
        if verdict.wall_s is not None:
            self.times.add(verdict.wall_s, verdict.status)
            self.memory.add(verdict.peak_memory_bytes, verdict.status)
            started = _seconds(verdict.started_at)
            if started is not None and verdict.slot is not None:
                self.timeline.add(started, verdict.wall_s, verdict.slot, verdict.status)
        if len(self.rows) < ROWS:
            self._show(verdict)

    def add_unjudged(self, unjudged: Unjudged) -> None:
        """Outputs alone: rejected lines are told among the reasons."""
        if unjudged.github_id is None or unjudged.id is None or unjudged.index is None:
            return
        self.outputs += 1
        if len(self.rows) < ROWS:
            self._name_repo(unjudged.github_id)
            known = {
                **dict.fromkeys(COLUMNS),
                **{"github_id": unjudged.github_id, "id": unjudged.id, "index": unjudged.index},
                **{"status": UNJUDGED, "repo": unjudged.github_id},
            }
            self.rows.append([known[column] for column in COLUMNS])
            self._shown.append(unjudged)

    def _name_repo(self, github_id: int) -> None:
        name = self._names.get(github_id, f"github_id {github_id}")
        self.repos[github_id] = plain(name).plain

    def _show(self, verdict: Verdict) -> None:
        self._name_repo(verdict.github_id)
        fields = msgspec.structs.asdict(verdict)
        fields["repo"] = verdict.github_id
        failure = classify(verdict)
        fields["failure"] = failure and self.failures.setdefault(failure, len(self.failures))
        fields["status"] = STATUSES.index(verdict.status)
        for field in ("wall_s", "counted_s", "cpu_s", "stalled_s"):
            fields[field] = None if fields[field] is None else round(fields[field], 4)
        self.rows.append([fields[column] for column in COLUMNS])
        self.hashes.add(verdict.output_hash)
        self._shown.append(
            msgspec.structs.replace(
                verdict,
                stdout=shortened(verdict.stdout, STREAM_CHARS),
                stderr=shortened(verdict.stderr, STREAM_CHARS),
            )
        )

    def details(self, programs: Mapping[str, str]) -> tuple[list[Any], dict[str, Any]]:
        """What an opened row shows, in the order of `rows`; and the rows of the dataset."""
        room, bright = DETAILS_CHARS, HIGHLIGHTED_CHARS
        found: list[Any] = []
        tasks: dict[str, Any] = {}
        for verdict in self._shown:
            if isinstance(verdict, Unjudged):
                found.append({"why": shortened(verdict.reason, 2000)})
                continue
            sample = self._samples.get(verdict.key)
            code = programs.get(verdict.output_hash)
            detail: dict[str, Any] = {"why": shortened(why(verdict, sample, code), 2000)}
            size = len(verdict.stdout) + len(verdict.stderr) + min(len(code or ""), CODE_CHARS)
            room -= size
            if room < 0:
                self.cut += 1
                found.append(detail)
                continue
            if code is not None:
                bright -= len(code)
                if bright > 0:
                    language = sample.wants if sample else "python"
                    detail["code"] = highlighted(code, language, CODE_CHARS)
                else:
                    detail["code"] = ["", shortened(code, CODE_CHARS)]
            detail["stdout"], detail["stderr"] = verdict.stdout, verdict.stderr
            found.append(detail)
            if sample is not None:
                tasks[_name(verdict.key)] = _task(sample)
        return found, tasks


def _task(sample: Sample) -> dict[str, Any]:
    return {
        "instruction": shortened(sample.instruction, INSTRUCTION_CHARS),
        "wants": sample.wants,
        "path": plain(sample.path).plain,
        "arguments": [
            [plain(name).plain, plain(value).plain]
            for name, value in list(sample.arguments.items())[:50]
        ],
    }


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _context(
    folder: Path, manifest: Manifest, summary: Summary, content: _Content
) -> dict[str, Any]:
    verdict_settings = manifest.verdict_settings
    failures = ranked(summary)
    return {
        "title": plain(folder.resolve().name or str(folder)).plain,
        "summary": summary,
        "labels": WORDS,
        "ks": ("1", "2", "5"),
        "facts": _facts(manifest, verdict_settings),
        "created": manifest.created_at[:16].replace("T", " "),
        "version": manifest.versions.get("mlbench-exec", ""),
        "intervals": {
            name: charts.interval(one, summary.submitted[name].rate)
            for name, one in (summary.unbiased or {}).items()
            if one is not None
        },
        "bar": charts.stacked_bar(summary.statuses, summary.unjudged, height=22),
        "bars": {
            name: charts.stacked_bar(repo.statuses, repo.unjudged)
            for name, repo in summary.repos.items()
        },
        "names": {name: plain(name, limit=80).plain for name in summary.repos},
        "kinds": [
            (kind, KINDS.get(kind, kind), count, charts.share(count, by_kind(summary)[0][1]))
            for kind, count in by_kind(summary)
        ],
        "failures": [_way(summary, name, one, content) for name, one in failures[:FAILURES]],
        "more_failures": max(0, len(failures) - FAILURES),
        "reasons": [
            (one.count, one.kind, plain(one.reason, limit=500).plain, plain(one.place or "").plain)
            for one in summary.unjudged_reasons[:REASONS]
        ],
        "times": content.times.svg("Time of an execution", _time_words),
        "memory": content.memory.svg("Peak memory of an execution", size),
        "timeline": content.timeline.svg(),
        "took": duration(summary.timings.wall_s) if summary.timings.wall_s else None,
    }


def _way(summary: Summary, repo: str, one: FailureCount, content: _Content) -> dict[str, Any]:
    """One way to fail in one repository; `number` where outputs in the table show it."""
    failure = Failure(kind=one.kind, error=one.error, detail=one.detail)  # type: ignore[arg-type]
    return {
        "kind": KINDS.get(failure.kind, one.kind),
        "error": plain(one.error or "", limit=60).plain if one.error not in SHELL else "",
        "detail": plain(one.detail or "", limit=80).plain,
        "repo": repo,
        "github_id": summary.repos[repo].github_ids[0] if repo in summary.repos else None,
        "count": one.count,
        "number": content.failures.get(failure),
    }


def _facts(manifest: Manifest, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was made of, for its last section."""
    inputs = ", ".join(
        one.path if one.sha256 is None else f"{one.path} (SHA-256 {one.sha256[:16]}…)"
        for one in manifest.inputs
    )
    limits = settings.get("limits", {})
    host = manifest.host
    memory = host.get("memory_bytes")
    facts = {
        "outputs": "standard input" if inputs == "-" else inputs,
        "dataset": f"{manifest.dataset.source}, split {manifest.dataset.split}, "
        f"digest {manifest.dataset.digest[:16]}…",
        "started": manifest.created_at,
        "continued": ", ".join(manifest.resumed_at),
        "backend": settings.get("backend"),
        "limits": ", ".join(_limit_words(name, value) for name, value in limits.items()),
        "time limit": settings.get("time_limit_s") or "each environment's own",
        "network": settings.get("network"),
        "until pass": "yes" if manifest.until_pass else "no",
        "versions": ", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
        "machine": f"{host.get('system', '')} {host.get('machine', '')}, "
        f"{host.get('cores', '?')} cores"
        + (f", {memory / (1 << 30):.0f} GiB" if isinstance(memory, int) else ""),
        "images": ", ".join(f"{name} ({digest})" for name, digest in manifest.images.items()),
    }
    return [(name, plain(value, limit=600).plain) for name, value in facts.items() if value]


def _limit_words(name: str, value: object) -> str:
    words = name.removesuffix("_bytes").replace("_", " ")
    if value is None:
        return f"{words} unlimited"
    return f"{words} {size(value) if name.endswith('_bytes') and isinstance(value, int) else value}"


def embedded(value: object) -> str:
    """JSON for the inside of a `script` element: nothing in it can end the element."""
    text = msgspec.json.encode(value).decode()
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _seconds(moment: str | None) -> float | None:
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except ValueError:
        return None


def _time_words(seconds: float) -> str:
    if seconds < 0.995:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _write(path: Path, parts: Iterator[str]) -> None:
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunFolderBroken(
            f"can't write {path}: {error.strerror or error}; the verdicts are safe, and "
            "`mlbench-exec report` makes the same page from them"
        ) from error
