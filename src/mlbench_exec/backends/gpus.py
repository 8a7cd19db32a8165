"""GPUs: which there are, which sandbox has which, and whether one is free again after a snippet.

NVIDIA's alone, by nvidia-ml-py (the `gpu` extra), imported when it is needed. Nothing here touches
CUDA: a process that did could not fork snippets that use it.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from mlbench_exec.errors import InputError, SlotBroken
from mlbench_exec.sandbox import Job, Observation, Sandbox, Tell

DRIVER = "/proc/driver/nvidia"
SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
TOLERANCE_BYTES = 64 << 20  # what drivers keep, and NVML rounds
FREE_WITHIN_S = 10.0
POLL_S = 0.1
# In a sandbox its one device is the first, whatever its number on the machine.
VARIABLES = {"CUDA_VISIBLE_DEVICES": "0"}


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    index: int  # as nvidia-smi and --gpus count
    uuid: str = ""  # empty: not asked
    name: str = ""
    memory_bytes: int = 0
    minor: int | None = None  # the number of its /dev/nvidiaN; None: as its index

    def __str__(self) -> str:
        return f"{self.index}: {self.name}, {self.memory_bytes / 2**30:.0f} GiB"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names in /dev that a program with this device alone may see."""
        return (f"nvidia{self.index if self.minor is None else self.minor}", *SHARED_NODES)

    @property
    def request(self) -> dict[str, Any]:
        """Docker's device request for this device alone."""
        chosen = [self.uuid or str(self.index)]
        return {"Driver": "", "Capabilities": [["gpu"]], "DeviceIDs": chosen}


class Inventory(Protocol):
    """What can be asked of the driver; a device that fails raises `SlotBroken`."""

    def devices(self) -> tuple[Gpu, ...]: ...

    def used_bytes(self, gpu: Gpu) -> int: ...


class Nvml:
    """NVIDIA's management library. Raises `InputError` where it or the driver isn't there."""

    def __init__(self) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise InputError(
                'asking for GPUs needs the gpu extra: pip install "mlbench-exec[gpu]"'
            ) from None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise InputError(
                f"NVIDIA's driver doesn't answer here ({error}): check nvidia-smi"
            ) from None

    def devices(self) -> tuple[Gpu, ...]:
        nvml = self._nvml
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found.append(
                    Gpu(
                        index=index,
                        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                        name=_text(nvml.nvmlDeviceGetName(handle)),
                        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                        minor=int(nvml.nvmlDeviceGetMinorNumber(handle)),
                    )
                )
            except nvml.NVMLError:
                continue  # lost: as if it weren't there
        return tuple(found)

    def used_bytes(self, gpu: Gpu) -> int:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid.encode())
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        except nvml.NVMLError as error:
            raise SlotBroken(f"GPU {gpu.index} ({gpu.name}) doesn't answer: {error}") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def look() -> tuple[tuple[Gpu, ...], str | None]:
    """The devices of this machine, or in words why there are none to use. Blocks."""
    if not os.path.exists(DRIVER):
        return (), "none: NVIDIA's driver is not loaded"
    try:
        devices = Nvml().devices()
    except InputError as error:
        return (), str(error)
    return devices, None if devices else "none: the driver is loaded, but has no device"


def choose(text: str, devices: Sequence[Gpu] | None) -> tuple[Gpu, ...]:
    """The devices that `--gpus` names: `all`, or numbers. Pure; None: nobody knows which there are.

    Raises `InputError` for numbers that aren't there or stand twice, and for `all` of none.
    """
    if text == "all":
        if not devices:
            raise InputError("--gpus all: no device is known here: name them, --gpus 0,1")
        return tuple(devices)
    numbers = [int(part) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--gpus {text}: name each device once: each sandbox has one of its own")
    if devices is None:
        return tuple(Gpu(index=number) for number in numbers)
    known = {device.index: device for device in devices}
    if lacking := [str(number) for number in numbers if number not in known]:
        there = ", ".join(map(str, known)) or "none"
        raise InputError(
            f"--gpus {text}: there is no {' and no '.join(lacking)}: there are {there}"
        )
    return tuple(known[number] for number in numbers)


class GpuSlots:
    """One device for each slot, exclusively; a device that breaks takes its slot with it."""

    def __init__(
        self,
        devices: Sequence[Gpu],
        inventory: Inventory | None,
        *,
        free_within_s: float = FREE_WITHIN_S,
    ) -> None:
        self.devices = tuple(devices)
        self.broken: dict[int, str] = {}  # by slot: why it was taken out
        self.is_checked = inventory is not None  # whether memory is looked at
        self._inventory = inventory
        self._free_within_s = free_within_s
        self._before = [inventory.used_bytes(device) if inventory else 0 for device in devices]

    def __repr__(self) -> str:
        return f"<GpuSlots {[device.index for device in self.devices]}, broken: {self.broken}>"

    def device(self, slot: int) -> Gpu:
        return self.devices[slot]

    async def wait_ready(self, slot: int) -> None:
        """Before a sandbox is opened: the device answers, and its memory is free.

        Raises `SlotBroken`, then and from then on.
        """
        if slot in self.broken:
            raise SlotBroken(self.broken[slot])
        try:
            held = await self.wait_free(slot)
        except SlotBroken as error:
            self.broken[slot] = f"{error}; it was taken out"
            raise SlotBroken(self.broken[slot]) from None
        if held:
            self.broken[slot] = (
                f"GPU {self.device(slot).index}: {held / 2**20:.0f} MiB of its memory stay in use "
                f"though no snippet runs on it (nvidia-smi names who has them); it was taken out"
            )
            raise SlotBroken(self.broken[slot])

    async def wait_free(self, slot: int) -> int:
        """Wait for its memory to be as free as in the beginning; bytes that are still held."""
        if self._inventory is None:
            return 0
        device, held = self.device(slot), 0
        with anyio.move_on_after(self._free_within_s):
            while True:
                with anyio.CancelScope(shield=True):
                    used = await anyio.to_thread.run_sync(self._inventory.used_bytes, device)
                held = used - self._before[slot]
                if held <= TOLERANCE_BYTES:
                    return 0
                await anyio.sleep(POLL_S)
        return held

    def watched(self, sandbox: Sandbox, slot: int) -> Sandbox:
        """The sandbox, thrown away after a snippet that left memory on its device."""
        return _Watched(sandbox, self, slot)


class _Watched:
    """A sandbox whose device is looked at after each snippet."""

    def __init__(self, sandbox: Sandbox, slots: GpuSlots, slot: int) -> None:
        self._sandbox = sandbox
        self._slots = slots
        self._slot = slot
        self._is_free = True

    @property
    def reusable(self) -> bool:
        return self._is_free and self._sandbox.reusable

    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        """The snippet's answer stands, whatever its device says afterwards."""
        observation = await self._sandbox.run(job, tell)
        try:
            self._is_free = await self._slots.wait_free(self._slot) == 0
        except SlotBroken:  # said when the next sandbox wants the device
            self._is_free = False
        return observation

    async def aclose(self) -> None:
        await self._sandbox.aclose()


def slots_for(text: str, *, is_local: bool) -> GpuSlots | None:
    """What `--gpus` asks for; `is_local`: the sandboxes will be on this machine. Blocks.

    Raises `InputError` where it can't be had. Devices that are named by number are taken at their
    word where NVIDIA's library isn't there.
    """
    if text == "none":
        return None
    inventory: Inventory | None = None
    if is_local:
        try:
            inventory = Nvml()
        except InputError:
            if text == "all":
                raise
    devices = choose(text, inventory.devices() if inventory else None)
    return GpuSlots(devices, inventory)
