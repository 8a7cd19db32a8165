"""GPUs: which there are, which sandbox has which, and whether one is free again after a snippet.

NVIDIA's alone, by nvidia-ml-py (the `gpu` extra), imported when it is needed. Nothing here touches
CUDA: a process that did could not fork snippets that use it.
"""

import importlib
import os
from typing import Any, Protocol

import msgspec

from mlbench_exec.errors import InputError, SandboxFailed

NO_DRIVER = "/proc/driver/nvidia"
SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
TOLERANCE_BYTES = 64 << 20  # what drivers keep, and NVML rounds
FREE_WITHIN_S = 10.0
POLL_S = 0.1


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    index: int  # as nvidia-smi and --gpus count
    uuid: str = ""  # empty: not asked
    name: str = ""
    memory_bytes: int = 0
    minor: int | None = None  # the number of its /dev/nvidiaN; None: as its index

    def __str__(self) -> str:
        return f"{self.index}: {self.name}, {self.memory_bytes / 2**30:.0f} GiB"

    @property
    def node(self) -> str:
        return f"nvidia{self.index if self.minor is None else self.minor}"


class GpuBroken(SandboxFailed):
    """A device that doesn't answer or isn't free again: its slot is taken out."""


class Inventory(Protocol):
    """What can be asked of the driver; a device that fails raises `GpuBroken`."""

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
            raise GpuBroken(f"GPU {gpu.index} ({gpu.name}) doesn't answer: {error}") from None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def look() -> tuple[tuple[Gpu, ...], str | None]:
    """The devices of this machine, or in words why there are none to use. Blocks."""
    if not os.path.exists(NO_DRIVER):
        return (), "none: NVIDIA's driver is not loaded"
    try:
        devices = Nvml().devices()
    except InputError as error:
        return (), str(error)
    return devices, None if devices else "none: the driver is loaded, but has no device"
