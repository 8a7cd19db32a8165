"""A model server on loopback: chat completions as scripted, delays and faults included."""

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import msgspec

PIECE = 16  # characters of a streamed chunk
BODY_LIMIT_BYTES = 64 << 20
# Everybody's path, and Azure's, which names the model.
PATH = re.compile(
    r"/v1/chat/completions|/openai/deployments/[^/?]+/chat/completions\?api-version=.+"
)


class Asked(msgspec.Struct, kw_only=True):
    """One request, as the log keeps it."""

    prompt: str
    count: int
    attempt: int  # of this very prompt, from 1
    path: str  # with the query
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float  # time.monotonic()
    answered: int = 0  # answers that were sent, to their last byte


class Good(msgspec.Struct, frozen=True, kw_only=True):
    """Answers, as many as were asked for unless there are fewer texts; the last one is repeated."""

    texts: Sequence[str]
    delay_s: float = 0.0
    finish_reason: str | None = "stop"
    refusal: str | None = None
    at_most: int | None = None  # answers to one request
    usage: bool = True
    model: str = "scripted-1"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A status that is no success."""

    status: int
    headers: Mapping[str, str] = {}
    message: str = "scripted"
    param: str | None = None
    code: str | None = None


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """The connection ends after so much of a good reply's body."""

    good: Good
    share: float = 0.5
    politely: bool = False  # the stream just ends, as if all were said


class Hang(msgspec.Struct, frozen=True, kw_only=True):
    """No reply."""

    seconds: float = 60.0


class Raw(msgspec.Struct, frozen=True, kw_only=True):
    """A body of any form under status 200; when streaming it is one event."""

    body: bytes
    content_type: str = "application/json"


Response = Good | Fault | Cut | Hang | Raw
Script = Callable[[Asked], Response]


class ModelServer:
    """Serves in a thread of its own while the block lasts. `log` holds every request so far."""

    def __init__(self, script: Script) -> None:
        self.log: list[Asked] = []
        self.most_at_once = 0
        self._script = script
        self._attempts: Counter[str] = Counter()
        self._at_once = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def asked(self) -> Counter[str]:
        """How often each prompt was asked."""
        return Counter(one.prompt for one in list(self.log))

    def _serve(self) -> None:
        self._loop.run_until_complete(self._until_stopped())
        self._loop.close()

    async def _until_stopped(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the other side, or this one, has gone
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1000)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _read_request(reader)) is not None:
            path, headers, body = request
            if not PATH.fullmatch(path):
                await _write(writer, 404, b'{"error": {"message": "no such path"}}')
                continue
            asked = self._note(path, headers, body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                is_open = await self._respond(self._script(asked), asked, writer)
            finally:
                self._at_once -= 1
            if not is_open:
                return

    def _note(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Asked:
        prompt = body["messages"][-1]["content"]
        self._attempts[prompt] += 1
        asked = Asked(
            prompt=prompt,
            count=body.get("n", 1),
            attempt=self._attempts[prompt],
            path=path,
            headers=headers,
            body=body,
            at=time.monotonic(),
        )
        self.log.append(asked)
        return asked

    async def _respond(
        self, response: Response, asked: Asked, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; whether the connection is still good."""
        streams = bool(asked.body.get("stream"))
        match response:
            case Good():
                await asyncio.sleep(response.delay_s)
                await _send(writer, response, asked, streams)
                asked.answered = len(_texts(response, asked.count))
                return True
            case Cut():
                await asyncio.sleep(response.good.delay_s)
                await _send(writer, response.good, asked, streams, cut=response)
                return False
            case Fault():
                error = {
                    "message": response.message,
                    "param": response.param,
                    "code": response.code,
                }
                content = json.dumps({"error": error}).encode()
                await _write(writer, response.status, content, headers=response.headers)
                return True
            case Hang():
                await asyncio.sleep(response.seconds)
                return False
            case Raw():
                content = b"data: " + response.body + b"\n\n" if streams else response.body
                kind = "text/event-stream" if streams else response.content_type
                await _write(writer, 200, content, content_type=kind)
                return True


async def _read_request(
    reader: asyncio.StreamReader,
) -> tuple[str, dict[str, str], dict[str, Any]] | None:
    head = await reader.readline()
    if not head:
        return None
    path = head.split()[1].decode()
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    size = int(headers.get("content-length", 0))
    if size > BODY_LIMIT_BYTES:
        return None
    content = await reader.readexactly(size)
    return path, headers, json.loads(content) if content else {}


async def _write(
    writer: asyncio.StreamWriter,
    status: int,
    content: bytes,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    writer.write(
        _head(status, content_type, {"Content-Length": str(len(content)), **(headers or {})})
    )
    writer.write(content)
    await writer.drain()


def _head(status: int, content_type: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send(
    writer: asyncio.StreamWriter,
    good: Good,
    asked: Asked,
    streams: bool,
    *,
    cut: Cut | None = None,
) -> None:
    if streams:
        await _send_stream(writer, good, asked, cut)
        return
    content = json.dumps(_whole(good, asked)).encode()
    if cut is None:
        await _write(writer, 200, content)
        return
    writer.write(_head(200, "application/json", {"Content-Length": str(len(content))}))
    writer.write(content[: int(len(content) * cut.share)])
    await writer.drain()


async def _send_stream(
    writer: asyncio.StreamWriter, good: Good, asked: Asked, cut: Cut | None
) -> None:
    events = [f"data: {json.dumps(one)}\n\n".encode() for one in _chunks(good, asked)]
    events.append(b"data: [DONE]\n\n")
    if cut is not None:
        events = events[: max(1, int(len(events) * cut.share))]
    writer.write(_head(200, "text/event-stream", {"Transfer-Encoding": "chunked"}))
    for event in events:
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        await writer.drain()
    if cut is None or cut.politely:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _texts(good: Good, count: int) -> list[str]:
    count = min(count, good.at_most or count)
    return [good.texts[min(place, len(good.texts) - 1)] for place in range(count)]


def _whole(good: Good, asked: Asked) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "finish_reason": good.finish_reason,
            "message": {"role": "assistant", "content": text, "refusal": good.refusal},
        }
        for index, text in enumerate(_texts(good, asked.count))
    ]
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": good.model}
    usage = _usage(good, asked) if good.usage else None
    return {**whole, "choices": choices, "usage": usage}


def _chunks(good: Good, asked: Asked) -> Iterator[dict[str, Any]]:
    """As OpenAI does it: the choices' pieces in turn, then their ends, then the usage."""
    base = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": good.model}
    texts = _texts(good, asked.count)
    for start in range(0, max(map(len, texts), default=0) or 1, PIECE):
        for index, text in enumerate(texts):
            delta = {"content": text[start : start + PIECE], "refusal": good.refusal}
            yield {**base, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
    for index in range(len(texts)):
        end = {"index": index, "delta": {}, "finish_reason": good.finish_reason}
        yield {**base, "choices": [end]}
    if good.usage and (asked.body.get("stream_options") or {}).get("include_usage"):
        yield {**base, "choices": [], "usage": _usage(good, asked)}


def _usage(good: Good, asked: Asked) -> dict[str, int]:
    written = sum(len(text.split()) for text in _texts(good, asked.count))
    read = len(asked.prompt.split())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def gold_script(rows: Sequence[Mapping[str, Any]], delay_s: float = 0.2) -> Script:
    """Answers a prompt with the output of the row whose instruction stands in it."""

    def script(asked: Asked) -> Response:
        for row in rows:
            if row["instruction"] in asked.prompt:
                tag = "bash" if row["type"] == "Bash Script" else "python"
                return Good(texts=[f"```{tag}\n{row['output']}\n```"], delay_s=delay_s)
        return Good(texts=["I can't tell which row that is."], finish_reason="stop")

    return script
