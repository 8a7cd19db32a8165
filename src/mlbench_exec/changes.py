"""Changes: how tasks wait for a state to be another, without a cost where nobody waits."""

import anyio


class Changes:
    """Whoever waits is woken by the next `tell`, and looks for itself what has changed."""

    def __init__(self) -> None:
        self._next: anyio.Event | None = None

    async def wait(self) -> None:
        """Until something is told from now on."""
        if self._next is None:
            self._next = anyio.Event()
        await self._next.wait()

    def tell(self) -> None:
        if self._next is not None:
            self._next.set()
            self._next = None
