"""Rigs: each backend with the environments that the conformance suite wants of it."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.errors import EnvironmentUnusable
from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Backend, Job, Limits, Observation, Sandbox
from mlbench_exec.testing.conformance import LIMITS, Case

PYTHON = "/usr/bin/python3"
OTHER_UID = 1234
WARM_BYTES = 256 << 20
INNER = "/deep_data/extra/more"  # where the mount at /deep_data has no such folder
VARIABLES = {"GREETING": "hello world; $HOME 'x'", "EMPTY": "", "PYTHONHASHSEED": "7"}
ACTIVATE = """\
[ -d {root}/envs/"$1" ] || {{ echo "Could not find conda environment: $1" >&2; return 1; }}
export CONDA_DEFAULT_ENV=$1 CONDA_PREFIX={root}/envs/$1 PATH={root}/envs/$1/bin:$PATH
"""


class Rig:
    """A backend in a thread of its own; `roles` names environments by what is odd in them.

    Sandboxes stay open for the next run; those that serve one snippet are opened ahead.
    """

    def __init__(
        self, backend: Backend, portal: BlockingPortal, roles: Mapping[str, Environment], host: Path
    ) -> None:
        self.backend = backend
        self.portal = portal
        self.roles = roles
        self.host = host  # the folder on this machine that the mounts' sources lie in
        self._ready: dict[str, Future[Sandbox]] = {}
        self._closing: list[Future[None]] = []

    def run(self, case: Case, role: str = "tiny") -> Observation:
        """Run it as one snippet of its own, in a sandbox that others may have used."""
        environment = self.roles[role]
        key = self.backend.key(environment)
        sandbox = (self._ready.pop(key, None) or self._open_soon(environment)).result()
        try:
            seen = self.portal.call(sandbox.run, job_of(case, environment))
        except EnvironmentUnusable:
            self._give_back(sandbox, environment)
            raise
        except BaseException:
            self._closing.append(self.portal.start_task_soon(sandbox.aclose))
            raise
        self._give_back(sandbox, environment)
        return seen

    def bash(self, code: str, role: str = "tiny", *, path: str = "./") -> Observation:
        return self.run(snippet("bash", code, path=path), role)

    def python(self, code: str, role: str = "tiny", *, path: str = "./") -> Observation:
        return self.run(snippet("python", code, path=path), role)

    @contextmanager
    def sandbox(self, role: str = "tiny") -> Iterator[Sandbox]:
        """One that nobody else uses."""
        sandbox = self._open_soon(self.roles[role]).result()
        try:
            yield sandbox
        finally:
            self.portal.call(sandbox.aclose)

    def settle(self) -> None:
        """Wait until nothing is being opened or closed."""
        for opening in self._ready.values():
            opening.result()
        for closing in self._closing:
            closing.result()

    def close(self) -> None:
        ready = [future.result() for future in self._ready.values()]
        self._ready.clear()
        self._closing += [self.portal.start_task_soon(sandbox.aclose) for sandbox in ready]
        for future in self._closing:
            future.result()

    def _give_back(self, sandbox: Sandbox, environment: Environment) -> None:
        key = self.backend.key(environment)
        if sandbox.reusable:
            future: Future[Sandbox] = Future()
            future.set_result(sandbox)
        else:
            self._closing.append(self.portal.start_task_soon(sandbox.aclose))
            future = self._open_soon(environment)
        self._ready[key] = future

    def _open_soon(self, environment: Environment) -> Future[Sandbox]:
        return self.portal.start_task_soon(self.backend.open, environment, 0)


def snippet(language: Language, code: str, *, path: str = "./", time_limit_s: float = 20.0) -> Case:
    """A case whose observation the test itself looks at."""
    return Case(
        name="snippet",
        language=language,
        code=code.encode(),
        check=lambda seen: None,
        path=path,
        time_limit_s=time_limit_s,
    )


def job_of(case: Case, environment: Environment, limits: Limits = LIMITS) -> Job:
    return Job(
        environment=environment,
        path=case.path,
        language=case.language,
        code=case.code,
        time_limit_s=case.time_limit_s,
        limits=msgspec.structs.replace(limits, clock=case.clock),
    )


@contextmanager
def open_rig(kind: str, folder: Path, image: Callable[[], str]) -> Iterator[Rig]:
    """Enter the backend of this kind; `folder` is empty and can be reached by every user."""
    folder.chmod(0o755)
    repo = folder / "read-only" / "repo"
    make_repo(repo)
    if os.geteuid() == 0:
        give_to(repo, OTHER_UID)
    for path in (repo, *(path for path in repo.rglob("*") if path.is_dir())):
        path.chmod(0o555)
    for name in ("data", "out"):
        (folder / name / "sub").mkdir(parents=True)
        (folder / name / "file.txt").write_text("the host's\n")
    with pytest.MonkeyPatch.context() as patch:
        backend: Backend
        if kind.startswith("local"):
            roles = _local_roles(folder, repo)
            patch.setenv("CONDA_EXE", str(folder / "conda" / "bin" / "conda"))
            if kind == "local-warm":  # with something to preload, bash gets a helper too
                roles = {role: _with(one, preload=("json",)) for role, one in roles.items()}
            preload_bytes = WARM_BYTES if kind == "local-warm" else 0
            backend = LocalBackend(limits=LIMITS, preload_bytes=preload_bytes)
        else:
            roles = _docker_roles(folder, repo, image())
            backend = DockerBackend(
                environments=roles.values(),
                limits=LIMITS,
                fresh=kind == "docker-fresh",
                preload_bytes=WARM_BYTES,
            )
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(backend),
        ):
            rig = Rig(backend, portal, roles, folder)
            try:
                yield rig
            finally:
                rig.close()


def make_repo(repo: Path) -> None:
    (repo / "package" / "deep").mkdir(parents=True)
    (repo / "README.md").write_text("a small repository\n")
    (repo / "main.py").write_text("print('main')\n")
    (repo / "package" / "__init__.py").write_text("NAME = 'package'\n")
    (repo / "package" / "deep" / "data.txt").write_text("data\n")
    (repo / "package" / "deep" / "link").symlink_to("data.txt")


def give_to(folder: Path, uid: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, uid, uid)


def _with(base: Environment, **changes: object) -> Environment:
    return msgspec.structs.replace(base, **changes)


def _variants(tiny: Environment, folder: Path) -> dict[str, Environment]:
    """The roles that only differ in a field from `tiny`, whatever the backend."""
    missing = f"{tiny.workdir}-missing"
    return {
        "tiny": tiny,
        "conda": _with(tiny, python=None, conda_env="tiny_conda", env={"EXTRA": "mine"}),
        "unknown-conda": _with(tiny, python=None, conda_env="no_such_env"),
        "variables": _with(tiny, env=VARIABLES),
        "no-workdir": _with(tiny, workdir=missing),
        "no-python": _with(tiny, python="/usr/bin/no-such-python"),
    }


def _named(roles: Mapping[str, Environment]) -> dict[str, Environment]:
    return {role: _with(environment, name=role) for role, environment in roles.items()}


def _docker_roles(folder: Path, repo: Path, image: str) -> dict[str, Environment]:
    tiny = Environment(
        name="tiny",
        github_ids=(1,),
        repo="tiny",
        workdir="/repos/tiny",
        python=PYTHON,
        image=image,
    )
    data = str(folder / "data")
    mounts = (
        Mount(source=data, target="/deep_data"),
        Mount(source=data, target="/repos/tiny/weights/model"),
        Mount(source=f"{data}/file.txt", target="/repos/tiny/package/weights.bin"),
        Mount(source=str(folder / "out"), target="/out", mode="rw"),
    )
    return _named(
        _variants(tiny, folder)
        | {
            "mixed-owners": _with(tiny, workdir="/repos/owned"),
            # Alone in its container, so that the agent has the owner's user id.
            "other-owner": _with(
                tiny, workdir="/repos/owned", mounts=(Mount(source=data, target="/unused"),)
            ),
            "read-only": _with(
                tiny, workdir="/srv/repo", mounts=(Mount(source=str(repo), target="/srv/repo"),)
            ),
            "mounts": _with(tiny, mounts=mounts),
            "mount-in-mount": _with(tiny, mounts=(*mounts, Mount(source=data, target=INNER))),
        }
    )


def _local_roles(folder: Path, repo: Path) -> dict[str, Environment]:
    """With the local backend paths are the host's: mounts say what is to be visible, and where."""
    for name in ("tiny", "mixed", "other"):
        make_repo(folder / name)
    if os.geteuid() == 0:
        give_to(folder / "other", OTHER_UID)
        give_to(folder / "mixed" / "package", OTHER_UID)
        os.chown(folder / "mixed" / "package" / "deep" / "data.txt", 0, 0)
    _make_conda(folder / "conda")
    data, repository = str(folder / "data"), str(folder / "tiny")
    tiny = Environment(name="tiny", github_ids=(1,), repo="tiny", workdir=repository, python=PYTHON)
    mounts = (
        Mount(source=data, target="/deep_data"),
        Mount(source=data, target=f"{repository}/weights/model"),
        Mount(source=f"{data}/file.txt", target=f"{repository}/package/weights.bin"),
        Mount(source=str(folder / "out"), target="/out", mode="rw"),
    )
    return _named(
        _variants(tiny, folder)
        | {
            "mixed-owners": _with(tiny, workdir=str(folder / "mixed")),
            "other-owner": _with(tiny, workdir=str(folder / "other")),
            "read-only": _with(tiny, workdir=str(repo)),
            "mounts": _with(tiny, mounts=mounts),
            "mount-in-mount": _with(tiny, mounts=(*mounts, Mount(source=data, target=INNER))),
        }
    )


def _make_conda(root: Path) -> None:
    """As much of a conda installation as activation needs."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "activate").write_text(ACTIVATE.format(root=root))
    (root / "envs" / "tiny_conda" / "bin").mkdir(parents=True)
    shutil.copy(PYTHON, root / "envs" / "tiny_conda" / "bin" / "python")
