"""Places: the environments that measurements run in, and what of this machine they need."""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

PYTHON = "/usr/bin/python3"  # the same on this machine and in the image
PLAIN_IMAGE = "mlbench-exec-test/conformance:latest"
TORCH_IMAGE = "mlbench-exec-test/external-attention:latest"
ROOT = Path(__file__).parent.parent


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """An environment for both backends."""

    name: str
    github_id: int
    workdir: str
    python: str
    image: str = ""
    preload: tuple[str, ...] = ()
    limit_s: float = 10.0

    @property
    def toml(self) -> str:
        preload = ", ".join(f'"{module}"' for module in self.preload)
        limit = f"time_limit = {{ python = {self.limit_s}, bash = {self.limit_s} }}\n"
        image = f'image = "{self.image}"\n' if self.image else ""
        return (
            f"[environments.{self.name}]\ngithub_ids = [{self.github_id}]\n"
            f'workdir = "{self.workdir}"\npython = "{self.python}"\n{image}{limit}'
            f"preload = [{preload}]\n"
        )


@functools.cache
def why_no_docker(image: str = PLAIN_IMAGE) -> str | None:
    """Why Docker can't be measured here, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return None if found.returncode == 0 else f"Docker or its image {image} isn't here"


def torch_python() -> str | None:
    """An interpreter with torch and fightingcv-attention."""
    return os.environ.get("MLBENCH_EAP_PYTHON")


def data(name: str) -> Path | None:
    folder = os.environ.get("MLBENCH_DATA")
    return Path(folder) / name if folder else None


@contextlib.contextmanager
def plain(backend: str) -> Iterator[Place]:
    """An almost empty folder, and a Python with nothing installed."""
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as folder:
        Path(folder).chmod(0o755)
        workdir = Path(folder) / "repository"
        workdir.mkdir()
        (workdir / "data.txt").write_text("as it was\n")
        yield Place(
            name="plain",
            github_id=1,
            workdir="/repos/tiny" if backend == "docker" else str(workdir),
            python=PYTHON,
            image=PLAIN_IMAGE,
        )


@contextlib.contextmanager
def torch(python: str) -> Iterator[Place]:
    """This machine's copy of github_id 9: `model` is the installed package."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="mlbench-bench-") as folder:
        Path(folder).chmod(0o755)
        workdir = Path(folder) / "External-Attention-pytorch"
        workdir.mkdir()
        (workdir / "model").symlink_to(Path(found.stdout.strip()) / "fightingcv_attention")
        yield Place(
            name="torch",
            github_id=9,
            workdir=str(workdir),
            python=python,
            preload=("torch",),
            limit_s=60.0,
        )
