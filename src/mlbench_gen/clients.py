"""Clients: chat completions over the wire. The only file that knows openai.

openai (with pydantic-core and jiter, which are Rust) is imported when a server is opened.
"""

import importlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread

from mlbench_exec import InputError
from mlbench_gen.errors import AskFailed, Passing, RowRefused, ServerRefused
from mlbench_gen.replies import (
    LONGEST_REPLY_BYTES,
    Answer,
    Collector,
    MalformedReply,
    Reply,
    parse_completion,
)
from mlbench_gen.settings import Sampling, Service

if TYPE_CHECKING:
    import openai

__all__ = ["ChatServer", "Message", "Server", "open_server"]

Message = Mapping[str, str]  # {"role", "content"}

_PASSING = {408, 409, 425, 429}
_ACCOUNT = {401, 402}
_ADDRESS = {403, 404, 405}  # from a server that has answered before, they concern one prompt
_OPTIONAL = ("n", "stream_options")  # what some servers don't take
_SHOWN = 300


class Server(Protocol):
    """Something that answers prompts."""

    async def ask(self, messages: Sequence[Message], count: int) -> Reply:
        """Ask for so many answers in one request; fewer may come. Raises `AskFailed`."""
        ...


@asynccontextmanager
async def open_server(sampling: Sampling, service: Service) -> AsyncIterator["ChatServer"]:
    """Connect as the settings say. Raises `InputError` where the key or the extra is missing."""
    key, address = service.key(), service.address()
    module = await anyio.to_thread.run_sync(_import_openai)
    common: dict[str, Any] = {
        "api_key": key,
        "base_url": address,
        "max_retries": 0,  # ours are counted
        "timeout": service.timeout_s,
    }
    client = (
        module.AsyncOpenAI(**common)
        if service.api_version is None
        else module.AsyncAzureOpenAI(**common, api_version=service.api_version)
    )
    try:
        yield ChatServer(module, client, sampling, service, secret=key)
    finally:
        with anyio.move_on_after(2, shield=True):
            await client.close()


class ChatServer:
    """One server that speaks chat completions, and what has been learned of it."""

    def __init__(
        self,
        module: Any,
        client: "openai.AsyncOpenAI",
        sampling: Sampling,
        service: Service,
        *,
        secret: str,
    ) -> None:
        self._openai = module
        self._client = client
        self._sampling = sampling
        self._service = service
        self._secret = secret
        self._refused: set[str] = set()  # of _OPTIONAL
        self._has_answered = False

    @property
    def base_url(self) -> str:
        return str(self._client.base_url)

    async def ask(self, messages: Sequence[Message], count: int) -> Reply:
        """See `Server`. A parameter that the server doesn't know is left out from then on."""
        while True:
            request = self._request(messages, count)
            try:
                reply = await self._ask(request)
            except RowRefused as error:
                if not error.names & request.keys():
                    raise
                self._refused |= error.names
            else:
                self._has_answered = True
                return reply

    def _request(self, messages: Sequence[Message], count: int) -> dict[str, Any]:
        request = {**self._sampling.request(), "messages": list(messages)}
        if count > 1:
            request["n"] = count
        if self._service.stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in request.items() if name not in self._refused}

    async def _ask(self, request: dict[str, Any]) -> Reply:
        openai = self._openai
        try:
            with anyio.fail_after(self._service.timeout_s):
                if self._service.stream:
                    return await self._ask_streaming(request)
                return await self._ask_whole(request)
        except openai.APIStatusError as error:
            if error.status_code == 400 and error.code == "content_filter":
                return _filtered(self._plain(_said(error)), request.get("n", 1))
            raise self._of_status(error) from None
        except (openai.APITimeoutError, TimeoutError):
            message = f"no whole reply within {self._service.timeout_s:g} s"
            raise Passing(message, cause="timeout") from None
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            message = self._plain(f"the connection failed ({type(why).__name__}: {why})")
            raise Passing(message, cause="connection") from None
        except (openai.APIError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # The last three are what the client makes of JSON of an unexpected form.
            message = self._plain(f"the reply can't be used: {error}")
            raise Passing(message, cause="malformed") from None
        except AskFailed:
            raise
        except Exception as error:
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            message = self._plain(f"the connection failed ({type(error).__name__}: {error})")
            raise Passing(message, cause="connection") from None

    async def _ask_whole(self, request: dict[str, Any]) -> Reply:
        content = bytearray()
        create = self._client.chat.completions.with_streaming_response.create
        async with create(**_named(request)) as response:
            async for piece in response.iter_bytes():
                content += piece
                if len(content) > LONGEST_REPLY_BYTES:
                    raise MalformedReply("it is longer than any answer")
        return parse_completion(json.loads(content))

    async def _ask_streaming(self, request: dict[str, Any]) -> Reply:
        collector = Collector()
        stream: Any = await self._client.chat.completions.create(**_named(request))
        async with stream:
            async for chunk in stream:
                collector.add(chunk.to_dict(warnings=False))
        return collector.finish()

    def _of_status(self, error: "openai.APIStatusError") -> AskFailed:
        status, said = error.status_code, self._plain(_said(error))
        message = f"status {status}: {said}"
        if status == 429 and error.code == "insufficient_quota":
            return ServerRefused(f"{message}; the account's quota is used up")
        if status in _PASSING or status >= 500:
            wait = _retry_after_s(error.response.headers)
            return Passing(message, cause=str(status), retry_after_s=wait)
        if status in _ACCOUNT or (status in _ADDRESS and not self._has_answered):
            asked = f"model {self._sampling.model!r} at {self.base_url}"
            return ServerRefused(
                f"the server refuses every request for {asked} ({message}): "
                f"check the model, --base-url and the key in {self._service.key_env}"
            )
        return RowRefused(message, names=_complained(error.param, said))

    def _plain(self, text: str) -> str:
        """A server's words, fit for a terminal: in one line, and without the key, which some
        servers repeat in their errors."""
        if len(self._secret) > 4:
            text = text.replace(self._secret, "…")
        words = " ".join(text.split())
        shown = "".join(letter if letter.isprintable() else "?" for letter in words[: _SHOWN + 1])
        return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"


def _filtered(said: str, count: int) -> Reply:
    """What a filter in front of the model (Azure has one) amounts to: it refuses each answer."""
    answer = Answer(text="", finish_reason="content_filter", refusal=said)
    return Reply(answers=(answer,) * count)


def _said(error: "openai.APIStatusError") -> str:
    """The server's own words, where it has some."""
    said = error.body.get("message") if isinstance(error.body, Mapping) else None
    return str(said or error.message)


def _named(request: dict[str, Any]) -> dict[str, Any]:
    """What the client has no parameter for goes into the body beside the others."""
    known = ("model", "messages", "n", "temperature", "top_p", "max_tokens", "stream")
    body = {name: value for name, value in request.items() if name not in known}
    named = {name: value for name, value in request.items() if name in known}
    return {**named, "extra_body": body} if body else named


def _complained(param: str | None, message: str) -> frozenset[str]:
    """Which of the optional parameters a refusal is about."""
    return frozenset(
        name
        for name in _OPTIONAL
        if param == name or re.search(rf"(?<![\w']){name}(?![\w'])|['\"`]{name}['\"`]", message)
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What Retry-After (seconds or a date) or retry-after-ms ask for."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"[\d.]+", value.strip()):
            return float(value)
        at = parsedate_to_datetime(value)
        sent = headers.get("date")
        now = parsedate_to_datetime(sent) if sent else at.now(at.tzinfo)
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _import_openai() -> Any:
    try:
        module = importlib.import_module("openai")
        importlib.import_module("openai.resources.chat.completions")  # else in the event loop
    except ImportError:
        raise InputError(
            'asking a model needs the gen extra: pip install "mlbench-exec[gen]"'
        ) from None
    return module
