"""Generation: one model, one task, one folder: what the commands `generate` and `run` do."""

import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from mlbench_exec import Evaluation, InputError, Settings, Submission
from mlbench_exec.command import Outcome
from mlbench_gen.generate import AnswerStream, Client
from mlbench_gen.options import sampling_from, service_from, template_from
from mlbench_gen.output import Output
from mlbench_gen.progress import last_words, print_line, shown
from mlbench_gen.record import Record, open_record, output_line_of
from mlbench_gen.rows import Rows
from mlbench_gen.tally import load_prices

__all__ = ["Generation"]

STDOUT = "-"


class Generation:
    """What was asked for on the command line. Raises `InputError` for what can't be asked."""

    def __init__(self, given: Mapping[str, Any], dataset: str, split: str) -> None:
        self.sampling = sampling_from(given)
        self.service = service_from(given)
        self.template = template_from(given)
        self.rows = Rows(dataset, split, limit=given["limit"])
        self.prices = load_prices(given["prices"]) if given["prices"] else {}
        self.restart: bool = given["restart"]
        self.service.key()  # before anything is written

    def default_folder(self) -> Path:
        model = re.sub(r"[^\w.-]+", "-", self.sampling.model)
        return Path("runs") / f"{model}-task{self.template.task}-{self.rows.split}"

    async def write(self, folder: Path, output: str | None) -> int:
        """Answer all rows into a folder; `output` is a file for the code, "-" for stdout too.

        Returns the number of rows without an answer.
        """
        path = Path(output) if output not in (None, STDOUT) else None
        to_stdout = Output(sys.stdout.fileno()) if output == STDOUT else None
        async with self._record(folder, path) as record, self._client(record) as client:
            stream = client.generate(self.rows)
            async with shown(client.tally, sys.stderr):
                async for item in stream:
                    if to_stdout is not None and isinstance(item, Submission):
                        await to_stdout.write(output_line_of(item))
            if not stream.order:
                where = f"split {self.rows.split} of {self.rows.source}"
                raise InputError(f"{where} holds no row that can be used: check its columns")
            await self._conclude(record, stream)
        return client.tally.failed

    async def judge(self, folder: Path, settings: Settings) -> Outcome:
        """Answer all rows, and judge each as soon as it is answered."""
        async with (
            self._record(folder / "generation", None) as record,
            self._client(record) as client,
        ):
            stream = client.generate(self.rows)
            evaluation = Evaluation(
                f"{self.sampling.model}, task {self.template.task}",
                folder,
                settings,
                restart=self.restart,
                source=stream,
                beside=client.tally.words,
            )
            outcome = await evaluation.run()
            await self._conclude(record, stream)
        return outcome

    @asynccontextmanager
    async def _record(self, folder: Path, outputs: Path | None) -> AsyncIterator[Record]:
        async with open_record(
            folder,
            self._manifest(),
            samples=self.sampling.samples,
            restart=self.restart,
            outputs=outputs,
        ) as record:
            record.tally.prices = self.prices
            yield record

    def _client(self, record: Record) -> Client:
        return Client(self.sampling, self.service, template=self.template, record=record)

    async def _conclude(self, record: Record, stream: AnswerStream) -> None:
        await anyio.to_thread.run_sync(record.conclude, stream.order)
        words = last_words(record.tally)
        await anyio.to_thread.run_sync(print_line, words, sys.stderr)

    def _manifest(self) -> dict[str, Any]:
        """What must stay as it is while a folder is filled ("asked"), and the rest to read."""
        asked = msgspec.to_builtins(self.sampling)
        del asked["samples"]
        return {
            "asked": {**asked, "task": self.template.task, "template": self.template.digest},
            "template": self.template.text,
            "dataset": self.rows.source,
            "split": self.rows.split,
            "samples": self.sampling.samples,
            "service": msgspec.to_builtins(self.service),
        }
