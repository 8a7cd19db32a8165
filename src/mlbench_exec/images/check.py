"""Check: whether an environment answers, from its folder to one of its dataset's own answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from mlbench_exec import rules
from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, MLBenchExecError
from mlbench_exec.samples import Key, Language, Sample
from mlbench_exec.sandbox import Backend, Job, Limits, Observation, Sandbox

PATIENCE_S = 120.0  # for imports; the smoke row has the environment's own limit
INTERPRETER = b"import platform, sys; print(platform.python_version(), sys.executable)"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment answered to one question."""

    environment: str
    about: Literal["image", "folder", "activation", "interpreter", "preload", "smoke row"]
    ok: bool | None  # None: not asked
    text: str


async def check_environment(
    backend: Backend,
    environment: Environment,
    limits: Limits,
    smoke: Sequence[Sample] | str,
    time_limit_s: float | None = None,
) -> list[Answer]:
    """Ask everything, in one sandbox where one serves several; what is missing first ends it.

    `smoke` are the rows whose own answers are executed, or why there is none; each within
    `time_limit_s`, or the environment's own limit.
    """
    asked, place = _Asked(environment), _Place(backend, environment, limits)
    try:
        backend.check(environment)
        await place.open()
    except MLBenchExecError as error:
        return [asked.answer("image", False, str(error))]
    asked.answer("image", True, environment.image or "on this machine")
    try:
        await _ask(asked, place, smoke, time_limit_s)
    except EnvironmentUnusable as error:
        asked.answer(_missing_part(str(error)), False, str(error))
    except MLBenchExecError as error:
        asked.answer("image", False, str(error))
    finally:
        await place.aclose()
    return asked.answers


class _Place:
    """A sandbox, and another one where that serves one snippet only."""

    def __init__(self, backend: Backend, environment: Environment, limits: Limits) -> None:
        self._backend, self._environment, self._limits = backend, environment, limits
        self._sandbox: Sandbox | None = None

    async def open(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = await self._backend.open(self._environment, 0)
        return self._sandbox

    async def run(self, language: Language, code: bytes, path: str, limit_s: float) -> Observation:
        sandbox = await self.open()
        job = Job(
            environment=self._environment,
            path=path,
            language=language,
            code=code,
            time_limit_s=limit_s,
            limits=self._limits,
        )
        seen = await sandbox.run(job)
        if not sandbox.reusable:
            await self.aclose()
        return seen

    async def aclose(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.aclose()
            self._sandbox = None


class _Asked:
    """The answers so far."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.answers: list[Answer] = []

    def answer(self, about: str, ok: bool | None, text: str) -> Answer:
        given = {"environment": self.environment.name, "about": about, "ok": ok, "text": text}
        self.answers.append(msgspec.convert(given, Answer))
        return self.answers[-1]


async def _ask(
    asked: _Asked, place: _Place, smoke: Sequence[Sample] | str, time_limit_s: float | None
) -> None:
    environment, run = asked.environment, place.run
    seen = await run("bash", b"pwd", "./", PATIENCE_S)
    asked.answer("folder", seen.exit_code == 0, _said(seen))
    if environment.conda_env:
        seen = await run("bash", b'echo "$CONDA_PREFIX"', "./", PATIENCE_S)
        asked.answer("activation", bool(seen.stdout.strip()), f"conda's: {_said(seen)}")
    seen = await run("python", INTERPRETER, "./", PATIENCE_S)
    asked.answer("interpreter", seen.exit_code == 0, _said(seen))
    for module in environment.preload:
        code = f"import importlib; importlib.import_module({module!r})".encode()
        seen = await run("python", code, "./", PATIENCE_S)
        took = f"{module}, in {seen.wall_s:.1f} s"
        asked.answer("preload", seen.exit_code == 0, took if not seen.exit_code else _said(seen))
    if isinstance(smoke, str):
        asked.answer("smoke row", None, smoke)
        return
    for row in smoke:
        limit_s = time_limit_s or environment.time_limit_s[row.wants]
        seen = await run(row.wants, row.gold.encode(), row.path, limit_s)
        passed = seen.exit_code == 0 or seen.limit == "time"
        how = f"passed in {seen.wall_s:.1f} s" if passed else f"failed: {_said(seen)}"
        asked.answer("smoke row", passed, f"{row.github_id}/{row.id}: {how}")


def _missing_part(reason: str) -> str:
    if "conda" in reason or "activat" in reason:
        return "activation"
    if "interpreter" in reason or "python" in reason.lower():
        return "interpreter"
    return "folder"


def _said(seen: Observation) -> str:
    """The last line it printed, or how it ended."""
    lines = (seen.stdout if seen.exit_code == 0 else seen.stderr).strip().splitlines()
    if lines:
        return lines[-1][:300]
    return f"exit code {seen.exit_code}" if seen.limit is None else f"met its {seen.limit} limit"


def rows_to_try(
    environment: Environment,
    samples: Mapping[Key, Sample],
    quick: Mapping[int, int],
    *,
    every: bool = False,
) -> Sequence[Sample] | str:
    """The row whose answer to try: a quick one, else the first that passes the checks; or why none.

    With `every` all rows that have an answer, whether or not it would pass the checks.
    """
    rows = [row for row in samples.values() if row.github_id in environment.github_ids]
    if not rows:
        return "not tried: the dataset has no row for it"
    rows = [row for row in rows if row.gold and (every or rules.check(row, row.gold).ok)]
    if not rows:
        return "not tried: no row has an answer"
    return rows if every else sorted(rows, key=lambda row: quick.get(row.github_id) != row.id)[:1]


def chosen(environments: Iterable[Environment], names: Iterable[str]) -> list[Environment]:
    """Those of these names, or all."""
    wanted = set(names)
    return [one for one in environments if not wanted or one.name in wanted]
