"""Pool: lends each sandbox to one snippet at a time; replaces those that can't be trusted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from mlbench_exec.admission import WHILE_OPENING, Admission, Ticket
from mlbench_exec.changes import Changes
from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, MLBenchExecError, SlotBroken
from mlbench_exec.sandbox import Backend, Sandbox, Tell

SPARES = 4  # single-use sandboxes kept ready beyond those in use
LEFT = "the engine or pool was left: its sandboxes are gone"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot executes at this moment; `since_s` is on the clock of `time.monotonic`."""

    slot: int
    github_id: int
    id: int
    index: int
    since_s: float


class Statistics(msgspec.Struct, frozen=True):
    """How the pool stands. A slot is in one of these states, or free."""

    lent: int  # also while it is being opened for its borrower, or closed after a failed one
    idle: int
    refilling: int
    opened: int  # ever
    opening: int = 0  # at this moment, of those that are lent or refilled
    waiting: int = 0  # borrowers, for the CPUs to have time
    running: tuple[Running, ...] = ()  # of those that are lent; only the engine knows what


class Lease(msgspec.Struct, frozen=True):
    sandbox: Sandbox
    slot: int
    tell: Tell | None = None  # how many CPUs its snippet could use now


class _Idle(msgspec.Struct, frozen=True):
    key: str
    lease: Lease


class Pool:
    """At most `size` sandboxes in use, one a slot; idle ones wait for their environment's next.

    Single-use sandboxes are replaced in the background, in some spare slots beyond `size`.
    Invariant: whoever holds a permit finds an idle sandbox, a free slot, or a slot that is being
    refilled and will become one of these; or, once slots have broken, waits for another's.
    """

    def __init__(
        self, backend: Backend, size: int, *, spares: int = SPARES, cores: int | None = None
    ) -> None:
        self.size = size
        self._backend = backend
        self._permits = anyio.Semaphore(size, fast_acquire=True)
        self._gathering = anyio.Lock()
        self._free = list(range(size + spares - 1, -1, -1))  # slot numbers, the lowest last
        self._idle: list[_Idle] = []  # least recently used first
        self._admission = Admission(cores)
        self._served: dict[int, set[str]] = {}  # by slot: environments that its sandbox has served
        self._lent = 0
        self._ordinary = 0  # borrowers that don't want to be alone, waiting ones included
        self._refilling = 0
        self._opened = self._opening = 0
        self._coming: list[str] = []  # keys of the spare ones that are being opened
        self._slots = len(self._free)  # that aren't broken
        self._why_none = ""
        self._is_single_use = False
        self._changes = Changes()
        self._borrowers: set[anyio.CancelScope] = set()
        self._is_closed = False
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Pool of {self.size} {self._backend.name}: {self.statistics()}>"

    def statistics(self) -> Statistics:
        return Statistics(
            lent=self._lent,
            idle=len(self._idle),
            refilling=self._refilling,
            opened=self._opened,
            opening=self._opening,
            waiting=self._admission.waiting,
        )

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the borrowers that are left, and close every sandbox."""
        assert self._tasks is not None
        self._is_closed = True
        for scope in self._borrowers:
            scope.cancel()
        try:
            with anyio.CancelScope(shield=True):
                while self._borrowers:
                    await self._changes.wait()
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as closing:
                    for idle in self._idle:
                        closing.start_soon(idle.lease.sandbox.aclose)
            self._idle.clear()

    @asynccontextmanager
    async def lend(
        self, environment: Environment, *, fresh: bool = False, alone: bool = False
    ) -> AsyncIterator[Lease]:
        """Borrow a pristine sandbox for this environment.

        A `fresh` one served nobody before; while one is lent `alone`, no other is in use. Who
        wants to be alone waits until nobody else wants a sandbox: all of them are then served one
        after the other, and the pool has to be empty only once.

        Raises what `Backend.open` raises, and `RuntimeError` once the pool is left, which ends
        the borrowers. A borrower that raises anything but `EnvironmentUnusable`, or is
        cancelled, condemns its sandbox.
        """
        if self._is_closed:
            raise RuntimeError(LEFT)
        with anyio.CancelScope() as scope:
            self._borrowers.add(scope)
            try:
                self._ordinary += not alone
                while alone and self._ordinary:
                    await self._changes.wait()
                permits = await self._gather(self.size if alone else 1)
                try:
                    async with self._borrow(environment, fresh) as lease:
                        yield lease
                finally:
                    self._return(permits)
            finally:
                self._ordinary -= not alone
                self._borrowers.discard(scope)
                self._changes.tell()
        if scope.cancelled_caught:
            raise RuntimeError(LEFT)

    async def _gather(self, permits: int) -> int:
        """Hold so many permits; one borrower at a time gathers several, or none would get all."""
        if permits == 1:
            await self._permits.acquire()
            return 1
        held = 0
        try:
            async with self._gathering:
                while held < permits:
                    await self._permits.acquire()
                    held += 1
        except BaseException:
            self._return(held)
            raise
        return held

    def _return(self, permits: int) -> None:
        for _ in range(permits):
            self._permits.release()

    @asynccontextmanager
    async def _borrow(self, environment: Environment, fresh: bool) -> AsyncIterator[Lease]:
        """For a holder of a permit, who counts as lending until its sandbox is seen to."""
        key = self._backend.key(environment)
        ticket = await self._admission.enter()
        self._lent += 1
        try:
            lease = await self._take(key, environment, fresh, ticket)
            try:
                await self._admission.start(ticket)
                yield msgspec.structs.replace(lease, tell=partial(self._admission.tell, ticket))
            except EnvironmentUnusable:
                self._give_back(key, environment, lease)
                raise
            except BaseException:
                await self._close(lease)
                raise
            self._give_back(key, environment, lease)
        finally:
            self._lent -= 1
            self._admission.leave(ticket)

    def _give_back(self, key: str, environment: Environment, lease: Lease) -> None:
        if lease.sandbox.reusable:
            self._served.setdefault(lease.slot, set()).add(environment.name)
            self._put_back(key, lease)
        else:
            self._refilling += 1
            assert self._tasks is not None
            self._tasks.start_soon(self._replace, key, environment, lease)

    async def _close(self, lease: Lease) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await lease.sandbox.aclose()
        finally:
            self._release(lease.slot)

    async def _take(self, key: str, environment: Environment, fresh: bool, ticket: Ticket) -> Lease:
        """An idle sandbox or a new one; while that is made, the ticket wants next to nothing."""
        while True:
            if self._why_none:
                raise SlotBroken(self._why_none)
            if not fresh and (position := self._idle_one(key, environment.name)) is not None:
                return self._idle.pop(position).lease
            slot = self._free_slot()
            if slot is not None or self._idle:
                self._admission.step_back(ticket, WHILE_OPENING)
            if slot is None and self._idle:  # the least recently used one makes room
                slot = await self._evict()
            if slot is not None:
                return await self._open(environment, slot)
            self._admission.step_back(ticket)
            await self._changes.wait()

    def _idle_one(self, key: str, name: str) -> int | None:
        """Where the last used sandbox is that has served this environment, or else could."""
        fitting = [n for n, idle in enumerate(self._idle) if idle.key == key]
        known = [n for n in fitting if name in self._served.get(self._idle[n].lease.slot, ())]
        return max(known or fitting, default=None)

    def _free_slot(self) -> int | None:
        """A slot for the caller, who counts as lent; spare ones are for single-use sandboxes."""
        others = self._lent - 1 + len(self._idle)
        if not self._free or (others >= self.size and not self._is_single_use):
            return None
        return self._free.pop()

    async def _evict(self) -> int:
        lease = self._idle.pop(0).lease
        try:
            with anyio.CancelScope(shield=True):
                await lease.sandbox.aclose()
            await anyio.lowlevel.checkpoint()
        except BaseException:
            self._release(lease.slot)
            raise
        return lease.slot

    async def _open(self, environment: Environment, slot: int) -> Lease:
        self._opening += 1
        try:
            sandbox = await self._backend.open(environment, slot)
        except SlotBroken as error:  # not given back: whoever waits gets another's
            self._slots -= 1
            if not self._slots:
                self._why_none = f"no slot is left: {error}"
            self._changes.tell()
            raise
        except BaseException:
            self._release(slot)
            raise
        finally:
            self._opening -= 1
        self._opened += 1
        self._served.pop(slot, None)
        return Lease(sandbox, slot)

    async def _replace(self, key: str, environment: Environment, lease: Lease) -> None:
        """In the background: throw a used sandbox away and make the next one ready."""
        self._is_single_use = True
        try:
            with anyio.CancelScope(shield=True):
                await lease.sandbox.aclose()
            spares = [idle.key for idle in self._idle] + self._coming
            if spares.count(key) >= SPARES:
                self._release(lease.slot)
                return
            self._coming.append(key)
            try:
                self._put_back(key, await self._open(environment, lease.slot))
            finally:
                self._coming.remove(key)
        except MLBenchExecError:
            pass  # whoever needs one meets the error in its own task; `_open` freed the slot
        finally:
            self._refilling -= 1
            self._changes.tell()

    def _put_back(self, key: str, lease: Lease) -> None:
        self._idle.append(_Idle(key, lease))
        self._changes.tell()

    def _release(self, slot: int) -> None:
        self._free.append(slot)
        self._free.sort(reverse=True)
        self._changes.tell()
