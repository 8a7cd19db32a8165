"""Run log: what the engine logs, in the run folder."""

import logging
import logging.handlers
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

LOG = "log.jsonl"


@asynccontextmanager
async def log_to(folder: Path) -> AsyncIterator[None]:
    """Append what the engine logs to the run folder's log.jsonl, in a thread of its own."""
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    writer = await anyio.to_thread.run_sync(_start_writer, records, folder / LOG)
    logger = logging.getLogger("mlbench_exec")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_stop_writer, writer)


def _start_writer(records: "queue.SimpleQueue[Any]", path: Path) -> logging.handlers.QueueListener:
    writer = logging.handlers.QueueListener(records, logging.FileHandler(path, delay=True))
    writer.start()
    return writer


def _stop_writer(writer: logging.handlers.QueueListener) -> None:
    writer.stop()
    for handler in writer.handlers:
        handler.close()
