"""What a benchmark's programs do works in a sandbox, filter and all."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hostile.house import LIMITS, PYTHON
from mlbench_exec import Engine, Environment, Environments, Sample, Settings, Snippet, Verdict

pytestmark = pytest.mark.slow

MULTIPROCESSING = """
import multiprocessing, operator, os
from multiprocessing import shared_memory
if __name__ == "__main__":
    for method in "fork", "spawn", "forkserver":
        context = multiprocessing.get_context(method)
        lock, value, queue = context.Lock(), context.Value("i", 0), context.Queue()
        with context.Pool(2) as pool:
            assert sum(pool.map(operator.neg, range(10))) == -45
        process = context.Process(target=queue.put, args=[1])
        process.start()
        assert queue.get(timeout=30) == 1
        process.join()
        with lock, value.get_lock():
            value.value += 1
        semaphore = context.Semaphore(2)
        assert semaphore.acquire() and semaphore.acquire() and not semaphore.acquire(False)
        block = shared_memory.SharedMemory(create=True, size=4096)
        block.close(); block.unlink()
        print(method)
"""
SUBPROCESS = """
import os, pty, subprocess
assert subprocess.check_output(["sh", "-c", "echo $((6 * 7)) | cat"]) == b"42\\n"
done = subprocess.run(["python", "-c", "import sys; sys.exit(3)"], start_new_session=True)
assert done.returncode == 3
assert os.posix_spawn("/bin/true", ["true"], os.environ) > 0
pid, fd = pty.fork()
if pid == 0: os.execvp("echo", ["echo", "terminal"])
assert os.read(fd, 100).startswith(b"terminal")
print("subprocess")
"""
SQLITE = """
import sqlite3
for mode in "delete", "wal", "memory":
    database = sqlite3.connect("own-%s.db" % mode)
    database.execute("pragma journal_mode=" + mode)
    with database:
        database.execute("create table t (n)")
        database.executemany("insert into t values (?)", [(n,) for n in range(1000)])
    other = sqlite3.connect("own-%s.db" % mode)
    assert other.execute("select sum(n) from t").fetchone() == (499500,)
print("sqlite")
"""
GIT = """
# git.sh \nset -e
git init -q own && cd own
git config user.email a@b.c && git config user.name me
echo one >file && git add file && git commit -qm one
git branch other && echo two >file && git commit -qam two
git merge -q other && git gc -q && git fsck 2>/dev/null && git clone -q . ../clone
git -C ../clone log --oneline | wc -l
"""
MATPLOTLIB = """
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2, 3], label="line"); axes.legend(); axes.set_title("$x^2$")
figure.savefig("plot.png"); figure.savefig("plot.pdf")
assert open("plot.png", "rb").read(4) == b"\\x89PNG"
print("matplotlib")
"""
TORCH = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters())
for x, y in DataLoader(data, batch_size=16, num_workers=2):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
torch.save(model.state_dict(), "model.pt")
model.load_state_dict(torch.load("model.pt"))
x = torch.randn(4, 3, 16, 16)
torch.nn.Conv2d(3, 4, 3)(x).sum().item()
shared = torch.zeros(1 << 18).share_memory_()
torch.set_num_threads(2)
print("torch", model(torch.zeros(1, 8)).shape[1])
"""


def environment(python: str, folder: Path, image: str | None) -> Environment:
    return Environment(
        name="own",
        github_ids=(1,),
        repo="own",
        workdir=str(folder) if image is None else "/repos/tiny",
        python=python,
        image=image,
        time_limit_s={"python": 60.0, "bash": 60.0},
    )


async def judge(one: Environment, codes: list[str]) -> list[Verdict]:
    samples = {
        (1, row): Sample(
            github_id=1, id=row, repository="own", path="./", arguments={},
            type="Bash Script" if row == 2 else "Python",
        )
        for row in (1, 2)
    }  # fmt: skip
    settings = Settings(
        backend="local" if one.image is None else "docker",
        concurrency=1,
        limits=msgspec.structs.replace(LIMITS, memory_bytes=2 << 30, disk_bytes=256 << 20),
    )
    async with Engine(settings, samples=samples, environments=Environments((one,))) as engine:
        return [
            await engine.run(Snippet(github_id=1, id=2 if ".sh " in code else 1, output=code))
            for code in codes
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "repo").mkdir()
    yield tmp_path / "repo"
    shutil.rmtree(tmp_path)


COMMON = {
    "multiprocessing": (MULTIPROCESSING, "fork\nspawn\nforkserver\n"),
    "subprocess": (SUBPROCESS, "subprocess\n"),
    "sqlite": (SQLITE, "sqlite\n"),
    "git": (GIT, "2\n"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["local", pytest.param("docker", marks=pytest.mark.docker)])
async def test_common_programs_work(
    backend: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Processes by every start method, shared memory, semaphores, terminals, databases, git."""
    image = request.getfixturevalue("conformance_image") if backend == "docker" else None
    codes = [code for code, _ in COMMON.values()]
    verdicts = await judge(environment(PYTHON, folder, image), codes)
    for verdict, (_, said) in zip(verdicts, COMMON.values(), strict=True):
        assert (verdict.status, verdict.stdout) == ("passed", said), verdict


@pytest.mark.asyncio
async def test_matplotlib_works(folder: Path) -> None:
    """A plot is drawn, with fonts and mathematics, and written in two formats."""
    (verdict,) = await judge(environment(sys.executable, folder, None), [MATPLOTLIB])
    assert (verdict.status, verdict.stdout) == ("passed", "matplotlib\n"), verdict


@pytest.mark.asyncio
@pytest.mark.skipif("MLBENCH_EAP_PYTHON" not in os.environ, reason="needs a Python with torch")
async def test_torch_works(folder: Path) -> None:
    """A model is trained with data loaders in processes of their own, saved and loaded."""
    python = os.environ["MLBENCH_EAP_PYTHON"]
    (verdict,) = await judge(environment(python, folder, None), [TORCH])
    assert (verdict.status, verdict.stdout) == ("passed", "torch 2\n"), verdict
