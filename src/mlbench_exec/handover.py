"""Handover: what tasks of one owner make, and one consumer elsewhere takes."""

from typing import Generic, Self, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["Handover"]

T = TypeVar("T")


class Handover(Generic[T]):
    """Items as they are made, up to `size` ahead of their consumer. An async iterator.

    The owner's task group runs `drive`; the iterator owns no task, so that it may be left at any
    time (PEP 789). Iterating raises, bare, what making raised, after the items that came before
    it; and `RuntimeError` where `owner` was left before the end.
    """

    def __init__(self, size: int, owner: str) -> None:
        self.size = size
        self._owner = owner
        self._scope = anyio.CancelScope()
        self._failure: Exception | None = None
        self._ended = anyio.Event()
        self._send: MemoryObjectSendStream[T]
        self._receive: MemoryObjectReceiveStream[T]
        self._send, self._receive = anyio.create_memory_object_stream[T](size)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self.discard()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure from None
            raise StopAsyncIteration from None

    async def gathered(self, most: int, within_s: float) -> list[T]:
        """The next items, at most so many: one, and what comes within so long after it.

        None at the end. Raises as iterating does. A cancellation from outside waits for that long:
        what was taken is given.
        """
        try:
            items = [await anext(self)]
        except StopAsyncIteration:
            return []
        with anyio.move_on_after(within_s, shield=True):
            while len(items) < most:
                try:
                    items.append(await self._receive.receive())
                except (anyio.EndOfStream, anyio.ClosedResourceError):
                    break  # the next call tells how it ended
        return items

    async def aclose(self) -> None:
        """Stop early: nothing more is begun, and what is under way is ended."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        self.discard()

    def discard(self) -> None:
        """Let go of what nobody will take any more."""
        self._send.close()
        self._receive.close()

    async def make(self) -> None:
        """Put everything into `_send`; for subclasses."""
        raise NotImplementedError

    async def drive(self) -> None:
        """Run by the owner: make everything, then end the stream."""
        was_left = True
        try:
            with self._scope:
                await self.make()
            was_left = False
        except* Exception as group:  # noqa: BLE001 - handed to the consumer
            self._failure = _first(group)
        finally:
            if was_left and self._failure is None:
                self._failure = RuntimeError(
                    f"the {self._owner} was left before the end of this stream"
                )
            self._send.close()
            self._ended.set()


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first plain exception of a group: what the consumer is told."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
