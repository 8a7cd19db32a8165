"""Output: lines into stdout as fast as its reader takes them, and no faster."""

import os
import stat

import anyio
import anyio.to_thread

from mlbench_exec import InputError

__all__ = ["Output"]

PIPE_BUF_BYTES = 4096  # a pipe that is writable takes so many without blocking


class Output:
    """A file descriptor to write to from an event loop. A thread that waits for a pipe's reader
    could not be cancelled: the event loop does the waiting."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def write(self, line: bytes) -> None:
        """Write it all. Raises `InputError` where nobody reads any more."""
        rest = memoryview(line)
        try:
            while rest:
                if self._waits:
                    await self._wait_writable()
                chunk = rest[:PIPE_BUF_BYTES] if self._waits else rest
                written = await anyio.to_thread.run_sync(os.write, self._descriptor, chunk)
                rest = rest[written:]
        except BlockingIOError:
            await self.write(bytes(rest))
        except BrokenPipeError:
            raise InputError(
                "nobody reads stdout any more. What was answered is kept: the same command goes on"
            ) from None

    async def _wait_writable(self) -> None:
        try:
            await anyio.wait_writable(self._descriptor)
        except PermissionError:  # epoll refuses what never blocks, such as /dev/null
            self._waits = False
