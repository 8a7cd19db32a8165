"""What stands before mlbench-exec: from the dataset's rows to the outputs that are executed.

async with Client(Sampling(model="…")) as client, Engine(Settings()) as engine:
    async for outcome in engine.stream(client.generate(Rows("rows.jsonl", "full"))):
        ...
"""

from mlbench_gen.extraction import extract
from mlbench_gen.generate import AnswerStream, Client
from mlbench_gen.prompts import Template, load_template, template_of
from mlbench_gen.record import Record, open_record
from mlbench_gen.replies import Answer, Reply, Usage
from mlbench_gen.rows import Row, Rows
from mlbench_gen.settings import Sampling, Service

__all__ = [
    "Answer",
    "AnswerStream",
    "Client",
    "Record",
    "Reply",
    "Row",
    "Rows",
    "Sampling",
    "Service",
    "Template",
    "Usage",
    "extract",
    "load_template",
    "open_record",
    "template_of",
]
