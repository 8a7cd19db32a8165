"""GPUs: which sandbox has which, whether it is free again, and one that breaks. With stand-ins."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

import mlbench_exec.backends.choice
from mlbench_exec.backends import gpus
from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.backends.gpus import Gpu, GpuSlots, Nvml, choose, slots_for
from mlbench_exec.cli import main
from mlbench_exec.environments import Environment
from mlbench_exec.errors import InputError, SlotBroken
from mlbench_exec.pool import Pool
from mlbench_exec.sandbox import Job, Limits, Sandbox
from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox, observation

EXECUTABLE = sysconfig.get_path("scripts") + "/mlbench-exec"
MIB = 1 << 20
THREE = tuple(
    Gpu(index=n, uuid=f"GPU-{n}", name="Test", memory_bytes=80 << 30, minor=2 - n) for n in range(3)
)
ONE = Environment(name="one", github_ids=(1,), repo="one", workdir="/srv/one", image="i")


class FakeInventory:
    """Memory in use by device; a function gives what the next look sees, or fails."""

    def __init__(self) -> None:
        self.used: dict[int, Callable[[], int]] = {}
        self.looks = 0

    def devices(self) -> tuple[Gpu, ...]:
        return THREE

    def used_bytes(self, gpu: Gpu) -> int:
        self.looks += 1
        return self.used.get(gpu.index, lambda: 500 * MIB)()


def lost() -> int:
    raise SlotBroken("GPU 1 (Test) doesn't answer: GPU is lost")


# Pure.


def test_devices_are_chosen_by_their_numbers() -> None:
    """In the order given; where nobody knows which there are, they are taken at their word."""
    assert choose("all", THREE) == THREE
    assert [gpu.index for gpu in choose("2,0", THREE)] == [2, 0]
    assert choose("7", None) == (Gpu(index=7),)


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ("0,3,4", THREE, "there is no 3 and no 4: there are 0, 1, 2"),
        ("1,1", THREE, "name each device once"),
        ("all", (), "no device is known here"),
        ("all", None, "no device is known here"),
    ],
)
def test_devices_that_arent_there_are_refused(
    text: str, devices: tuple[Gpu, ...] | None, message: str
) -> None:
    """By number, with those that are."""
    with pytest.raises(InputError, match=message):
        choose(text, devices)


def test_a_sandbox_gets_the_request_and_the_nodes_of_its_slots_device_alone() -> None:
    """Docker by its id; /dev by its minor number, which need not be its index."""
    slots = GpuSlots(choose("2,0", THREE), None)
    assert slots.device(0).request["DeviceIDs"] == ["GPU-2"]
    assert slots.device(0).nodes[0] == "nvidia0"
    assert Gpu(index=5).request["DeviceIDs"] == ["5"]
    assert Gpu(index=5).nodes == (
        "nvidia5",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
    )
    backend = DockerBackend(environments=[ONE], limits=Limits(), gpus=slots)
    for slot, wanted in ((0, "GPU-2"), (1, "GPU-0")):
        config = backend._config(ONE, slot, nested=True, user="0:0")
        (request,) = config["HostConfig"]["DeviceRequests"]
        assert request["DeviceIDs"] == [wanted]
        assert request["Capabilities"] == [["gpu"]]
        assert config["Env"] == ["CUDA_VISIBLE_DEVICES=0"]
    plain = DockerBackend(environments=[ONE], limits=Limits())
    assert "DeviceRequests" not in plain._config(ONE, 0, nested=True, user="0:0")["HostConfig"]


# The library, by a stand-in for its module.


class NvmlFailure(Exception):
    pass


def a_module(used: Callable[[str], int]) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NvmlFailure,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: f"GPU-{index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid.decode(),
        nvmlDeviceGetUUID=lambda handle: handle.encode(),
        nvmlDeviceGetName=lambda handle: "H100",
        nvmlDeviceGetMinorNumber=lambda handle: int(handle[-1]) + 4,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 << 30, used=used(handle)),
    )


def test_the_inventory_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, memory and minor numbers; a device that is lost is left out, and named in use."""
    broken: set[str] = set()

    def used(handle: str) -> int:
        if handle in broken:
            raise NvmlFailure("GPU is lost")
        return 3 * MIB

    monkeypatch.setitem(sys.modules, "pynvml", a_module(used))
    nvml = Nvml()
    first, second = nvml.devices()
    assert (first.uuid, first.minor, str(first)) == ("GPU-0", 4, "0: H100, 80 GiB")
    assert nvml.used_bytes(second) == 3 * MIB
    broken.add("GPU-1")
    assert [gpu.index for gpu in nvml.devices()] == [0]
    with pytest.raises(SlotBroken, match=r"GPU 1 \(H100\) doesn't answer: GPU is lost"):
        nvml.used_bytes(second)


def test_without_the_library_devices_are_asked_for_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`all` says what to install; a daemon elsewhere has devices of its own."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InputError, match=r'pip install "mlbench-exec\[gpu\]"'):
        slots_for("all", is_local=True)
    slots = slots_for("0,1", is_local=True)
    assert slots is not None
    assert (len(slots.devices), slots.is_checked) == (2, False)
    monkeypatch.setitem(sys.modules, "pynvml", a_module(lambda handle: 0))
    there = slots_for("all", is_local=True)
    assert there is not None
    assert there.is_checked
    with pytest.raises(InputError, match="name them, --gpus 0,1"):
        slots_for("all", is_local=False)
    assert slots_for("none", is_local=True) is None


# Between snippets.


def slots_of(inventory: FakeInventory, *, patience_s: float = 0.05) -> GpuSlots:
    return GpuSlots(THREE[:2], inventory, free_within_s=patience_s)


def test_a_device_is_waited_for_until_its_memory_is_free_again() -> None:
    """As free as in the beginning, but for what a driver keeps: what others had then is theirs."""
    inventory = FakeInventory()
    slots = slots_of(inventory, patience_s=5.0)
    left = iter([9000, 3000, 500 + 64])  # 500 MiB in the beginning
    inventory.used[0] = lambda: next(left) * MIB
    anyio.run(slots.wait_ready, 0)
    assert inventory.looks == 2 + 3
    assert slots.broken == {}


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda: 2000 * MIB, "GPU 1: 1500 MiB of its memory stay in use .*taken out"),
        (lost, "GPU 1 .* doesn't answer: GPU is lost; it was taken out"),
    ],
)
def test_a_device_that_doesnt_come_back_is_taken_out(look: Callable[[], int], message: str) -> None:
    """For good, and it is said why; the others stay."""
    inventory = FakeInventory()
    slots = slots_of(inventory)
    inventory.used[1] = look
    with pytest.raises(SlotBroken, match=message):
        anyio.run(slots.wait_ready, 1)
    inventory.used.clear()
    with pytest.raises(SlotBroken, match="taken out"):
        anyio.run(slots.wait_ready, 1)
    anyio.run(slots.wait_ready, 0)
    assert list(slots.broken) == [1]


def a_job() -> Job:
    return Job(
        environment=ONE, path="", language="python", code=b"", time_limit_s=1.0, limits=Limits()
    )


def test_a_snippet_that_leaves_memory_costs_its_sandbox_and_not_its_verdict() -> None:
    """What it did is answered; the sandbox isn't used again."""
    inventory = FakeInventory()
    slots = slots_of(inventory)

    async def work() -> None:
        backend = FakeBackend(lambda job: observation())
        async with backend:
            watched = slots.watched(await backend.open(ONE, 0), 0)
            assert (await watched.run(a_job())).exit_code == 0
            assert watched.reusable
            inventory.used[0] = lambda: 2000 * MIB
            assert (await watched.run(a_job())).exit_code == 0
            assert not watched.reusable
            await watched.aclose()

    anyio.run(work)


class GpuBackend(FakeBackend):
    """A fake backend whose sandboxes have devices, as the real ones do it."""

    def __init__(self, slots: GpuSlots, script: Any = lambda job: observation()) -> None:
        super().__init__(script)
        self.slots = slots
        self.used: list[int] = []

    async def open(self, environment: Environment, slot: int) -> FakeSandbox:
        await self.slots.wait_ready(slot)
        self.used.append(self.slots.device(slot).index)
        sandbox: Sandbox = self.slots.watched(await super().open(environment, slot), slot)
        return sandbox  # type: ignore[return-value]


def test_a_pool_goes_on_with_the_devices_that_are_left() -> None:
    """Borrowers wait for those; without any, they are told so at once."""
    inventory = FakeInventory()
    slots = slots_of(inventory)

    async def work() -> None:
        backend = GpuBackend(slots)
        served: list[int] = []
        refused: list[str] = []

        async def borrow(pool: Pool) -> None:
            for _ in range(3):
                try:
                    async with pool.lend(ONE) as lease:
                        await lease.sandbox.run(a_job())
                        served.append(lease.slot)
                    return
                except SlotBroken as error:
                    refused.append(str(error))

        async with backend, Pool(backend, 2, spares=0) as pool:
            inventory.used[0] = lost
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    for _ in range(4):
                        tasks.start_soon(borrow, pool)
                assert served == [1, 1, 1, 1]
                assert len(refused) == 1
                inventory.used[1] = lost
                async with pool.lend(ONE) as lease:  # the idle one is as good as before
                    await lease.sandbox.run(a_job())
                for _ in range(2):
                    with pytest.raises(SlotBroken):
                        async with pool.lend(ONE, fresh=True):
                            pass
                with pytest.raises(SlotBroken, match="no slot is left"):
                    async with pool.lend(ONE):
                        pass

    anyio.run(work)


def test_a_run_has_as_many_sandboxes_as_devices_and_says_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its header and at its end; every output is judged on the device that is left."""
    inventory = FakeInventory()
    slots = GpuSlots(THREE[:2], inventory, free_within_s=0.05)
    backend = GpuBackend(slots)
    inventory.used[0] = lost
    monkeypatch.setattr(mlbench_exec.backends.choice, "slots_for", lambda text, is_local: slots)
    monkeypatch.setattr(mlbench_exec.backends.choice, "LocalBackend", lambda **_: backend)
    row = {"github_id": 1, "type": "Python Code", "path": "./", "arguments": "{}"}
    rows = [{**row, "id": n, "output": f"print({n})"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "e.toml").write_text('[environments.one]\ngithub_ids = [1]\nworkdir = "/srv"\n')
    options = ["--gold", f"--dataset={tmp_path}/rows.jsonl", f"--environments={tmp_path}/e.toml"]
    options += ["--backend=local", "--gpus=0,1", "--concurrency=8", f"--out={tmp_path}/run"]
    result = CliRunner().invoke(main, ["run", *options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["statuses"]["passed"] == 6
    said = " ".join(result.stderr.split())
    assert "2 at once" in said
    assert "0, 1: one for each sandbox, which sees it as device 0" in said
    assert "GPU 1 (Test) doesn't answer: GPU is lost; it was taken out" in said
    assert set(backend.used) == {1}


# Real daemons and kernels, without a device.


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.skipif(os.path.exists(gpus.DRIVER), reason="there is a GPU here")
def test_a_daemon_without_gpus_says_so_and_what_is_missing(
    conformance_image: str, tmp_path: Path
) -> None:
    """The device request reaches the daemon, whose refusal names the toolkit to install."""
    (tmp_path / "rows.jsonl").write_text(
        '{"github_id": 1, "id": 1, "type": "Python Code", "path": "./", "arguments": "{}", '
        '"output": "print(1)"}'
    )
    (tmp_path / "e.toml").write_text(
        f'[environments.tiny]\ngithub_ids = [1]\nworkdir = "/repos/tiny"\n'
        f'python = "/usr/bin/python3"\nimage = "{conformance_image}"\n'
    )
    options = ["--gold", f"--dataset={tmp_path}/rows.jsonl", f"--environments={tmp_path}/e.toml"]
    options += ["--backend=docker", "--gpus=0", "--memory=256m", f"--out={tmp_path}/run"]
    result = CliRunner().invoke(main, ["run", *options])
    assert result.exit_code == 3
    assert "could not select device driver" in result.stderr
    assert "sudo nvidia-ctk runtime configure --runtime=docker" in result.stderr


DEVICES = """\
set -e
dev=$1; shift
mount -t tmpfs dev "$dev"
for name in null zero full random urandom tty; do
    touch "$dev/$name"; mount --bind "/dev/$name" "$dev/$name"
done
mkdir "$dev/pts" "$dev/shm"
mount --rbind /dev/pts "$dev/pts"; mount --rbind /dev/shm "$dev/shm"
ln -s pts/ptmx "$dev/ptmx"; ln -s /proc/self/fd "$dev/fd"
for name in nvidia0 nvidia1 nvidiactl nvidia-uvm; do mknod -m 666 "$dev/$name" c 1 3; done
mount --rbind "$dev" /dev
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_a_program_sees_the_nodes_of_its_own_device_alone(tmp_path: Path) -> None:
    """In a real sandbox, over a /dev with nodes of two devices that lead nowhere."""
    tmp_path.chmod(0o755)
    for name in ("repo", "dev"):
        (tmp_path / name).mkdir()
    (tmp_path / "e.toml").write_text(
        f'[environments.one]\ngithub_ids = [1]\nworkdir = "{tmp_path}/repo"\n'
        'python = "/usr/bin/python3"\n'
    )
    code = (
        "import os\n"
        "print(sorted(n for n in os.listdir('/dev') if n.startswith('nvidia')), "
        "os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "open('/dev/nvidia1', 'w').write('x')"
    )
    row = {"github_id": 1, "id": 1, "type": "Python Code", "path": "./", "arguments": "{}"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "output": code}))
    command = [EXECUTABLE, "run", "--gold", f"--dataset={tmp_path}/rows.jsonl", "--gpus=1"]
    command += [f"--environments={tmp_path}/e.toml", "--backend=local", "--memory=256m"]
    command += [f"--out={tmp_path}/run"]
    within = ["unshare", "--mount", "bash", "-c", DEVICES, "bash", str(tmp_path / "dev")]
    result = subprocess.run(
        [*within, *command], capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    verdict = json.loads(line)
    assert verdict["stdout"] == "['nvidia-uvm', 'nvidia1', 'nvidiactl'] 0\n"
    assert verdict["status"] == "passed", verdict["stderr"]
