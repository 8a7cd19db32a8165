"""Replies: what a chat completions server sent, read with no belief in its form."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = [
    "LONGEST_REPLY_BYTES",
    "Answer",
    "Collector",
    "Kind",
    "MalformedReply",
    "Reply",
    "Usage",
    "parse_completion",
]

Kind = Literal["answered", "truncated", "refused", "empty"]

# Servers end an answer so when they fail in the middle of it.
_BROKEN_OFF = {"abort", "error", "insufficient_system_resource"}
LONGEST_REPLY_BYTES = 64 << 20
_MOST_TOKENS = 1 << 40  # counts above are no counts


class MalformedReply(ValueError):
    """A reply that isn't what chat completions look like, or that ends too early."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. The text is what the model wrote, whole; empty where it wrote none."""

    text: str
    finish_reason: str | None = None
    refusal: str | None = None

    @property
    def kind(self) -> Kind:
        """`refused` by the model or a content filter; `truncated` at the token limit."""
        if self.refusal or self.finish_reason == "content_filter":
            return "refused"
        if self.finish_reason == "length":
            return "truncated"
        return "answered" if self.text.strip() else "empty"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to one request, at least one, by their index. No usage: the server gave none."""

    answers: tuple[Answer, ...]
    usage: Usage | None = None
    model: str | None = None


def parse_completion(body: object) -> Reply:
    """Read the body of a reply that came in one piece. Raises `MalformedReply`."""
    content = _mapping(body, "the reply")
    _refuse_error(content)
    choices = _choices(content)
    if not choices:
        raise MalformedReply("the reply holds no choices")
    numbered = [(_index(choice, place), _answer(choice)) for place, choice in enumerate(choices)]
    return Reply(
        answers=tuple(answer for _, answer in sorted(numbered, key=lambda pair: pair[0])),
        usage=_usage(content.get("usage")),
        model=_text(content.get("model")),
    )


class Collector:
    """Puts a streamed reply together, chunk by chunk."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._refusals: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._length = 0
        self._usage: Usage | None = None
        self._model: str | None = None

    def add(self, chunk: object) -> None:
        """Take the next chunk. Raises `MalformedReply`."""
        content = _mapping(chunk, "a chunk")
        _refuse_error(content)
        self._usage = _usage(content.get("usage")) or self._usage
        self._model = _text(content.get("model")) or self._model
        for choice in _choices(content):
            index = _index(choice, 0)
            delta = _mapping(choice.get("delta") or {}, "a delta")
            text = _content(delta.get("content"))
            self._length += len(text)
            if self._length > LONGEST_REPLY_BYTES:
                raise MalformedReply("the stream is longer than any answer")
            if text and index in self._reasons:
                raise MalformedReply("the stream mixes answers: one went on after its end")
            self._texts.setdefault(index, []).append(text)
            self._refusals.setdefault(index, []).append(_text(delta.get("refusal")) or "")
            if reason := _reason(choice):
                self._reasons[index] = reason

    def finish(self) -> Reply:
        """The whole reply. Raises `MalformedReply` where the stream ended before an answer did."""
        if not self._texts:
            raise MalformedReply("the stream held no choices")
        if cut := self._texts.keys() - self._reasons.keys():
            raise MalformedReply(f"the stream ended before {len(cut)} of its answers did")
        answers = (
            Answer(
                text="".join(self._texts[index]),
                finish_reason=self._reasons[index],
                refusal="".join(self._refusals[index]) or None,
            )
            for index in sorted(self._texts)
        )
        return Reply(answers=tuple(answers), usage=self._usage, model=self._model)


def _answer(choice: Mapping[str, Any]) -> Answer:
    message = _mapping(choice.get("message"), "a message")
    return Answer(
        text=_content(message.get("content")),
        finish_reason=_reason(choice),
        refusal=_text(message.get("refusal")) or None,
    )


def _content(content: object) -> str:
    """A text, nothing, or a list of parts of which some are texts."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            parts = (part.get("text") for part in content if isinstance(part, Mapping))
            return "".join(part for part in parts if isinstance(part, str))
        case _:
            raise MalformedReply(f"a content is a {type(content).__name__}, not a text")


def _refuse_error(content: Mapping[str, Any]) -> None:
    """Some servers send an error under status 200."""
    if error := content.get("error"):
        message = error.get("message") if isinstance(error, Mapping) else error
        raise MalformedReply(f"the reply is an error: {message}")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MalformedReply(f"{what} is a {type(value).__name__}, not an object")
    return value


def _choices(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = content.get("choices") or []
    if not isinstance(choices, list):
        raise MalformedReply(f"choices are a {type(choices).__name__}, not a list")
    return [_mapping(choice, "a choice") for choice in choices]


def _reason(choice: Mapping[str, Any]) -> str | None:
    reason = _text(choice.get("finish_reason"))
    if reason in _BROKEN_OFF:
        raise MalformedReply(f"the server broke an answer off (finish_reason {reason})")
    return reason


def _index(choice: Mapping[str, Any], default: int) -> int:
    index = choice.get("index")
    return index if type(index) is int else default


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _usage(value: object) -> Usage | None:
    if not isinstance(value, Mapping):
        return None
    counts = {
        name: count
        for name in ("prompt_tokens", "completion_tokens")
        if type(count := value.get(name)) is int and 0 <= count < _MOST_TOKENS
    }
    return Usage(**counts) if counts else None
