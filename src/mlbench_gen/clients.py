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
from mlbench_gen.replies import Collector, Reply, parse_completion
from mlbench_gen.settings import Sampling, Service

if TYPE_CHECKING:
    import openai

__all__ = ["ChatServer", "Message", "Server", "open_server"]

Message = Mapping[str, str]  # {"role", "content"}

_PASSING = {408, 409, 425, 429}
_NEVER = {401, 402, 403, 404, 405}
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
    key = service.key()
    module = await anyio.to_thread.run_sync(_import_openai)
    client = module.AsyncOpenAI(
        api_key=key,
        base_url=service.base_url,
        max_retries=0,  # ours are counted
        timeout=service.timeout_s,
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

    @property
    def base_url(self) -> str:
        return str(self._client.base_url)

    async def ask(self, messages: Sequence[Message], count: int) -> Reply:
        """See `Server`. A parameter that the server doesn't know is left out from then on."""
        while True:
            request = self._request(messages, count)
            try:
                return await self._ask(request)
            except RowRefused as error:
                learned = error.names & request.keys() - self._refused
                if not learned:
                    raise
                self._refused |= learned

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
            raise self._of_status(error) from None
        except (openai.APITimeoutError, TimeoutError):
            message = f"no whole reply within {self._service.timeout_s:g} s"
            raise Passing(message, cause="timeout") from None
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            message = self._plain(f"the connection failed ({type(why).__name__}: {why})")
            raise Passing(message, cause="connection") from None
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            # The last two are what the client makes of JSON of an unexpected form.
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
        raw = await self._client.chat.completions.with_raw_response.create(**_named(request))
        return parse_completion(json.loads(raw.http_response.content))

    async def _ask_streaming(self, request: dict[str, Any]) -> Reply:
        collector = Collector()
        stream: Any = await self._client.chat.completions.create(**_named(request))
        async with stream:
            async for chunk in stream:
                collector.add(chunk.to_dict())
        return collector.finish()

    def _of_status(self, error: "openai.APIStatusError") -> AskFailed:
        status, said = error.status_code, self._plain(_said(error))
        message = f"status {status}: {said}"
        if status == 429 and error.code == "insufficient_quota":
            return ServerRefused(f"{message}; the account's quota is used up")
        if status in _PASSING or status >= 500:
            wait = _retry_after_s(error.response.headers)
            return Passing(message, cause=str(status), retry_after_s=wait)
        if status in _NEVER:
            asked = f"model {self._sampling.model!r} at {self.base_url}"
            return ServerRefused(
                f"the server refuses every request for {asked} ({message}): "
                f"check the model, --base-url and the key in {self._service.key_env}"
            )
        return RowRefused(message, names=_complained(error.param, said))

    def _plain(self, text: str) -> str:
        """Some servers repeat the key in their errors."""
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        return shown.replace(self._secret, "…") if len(self._secret) > 4 else shown


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
