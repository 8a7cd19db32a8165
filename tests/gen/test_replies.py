"""Replies: what becomes of whatever a server sends."""

from typing import Any

import pytest

from mlbench_gen.replies import Answer, Collector, MalformedReply, Usage, parse_completion


def choice(content: Any = "text", index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "message": {"content": content}, "finish_reason": "stop"} | more


def test_answers_come_by_their_index() -> None:
    """A reply may list its choices in any order; usage and model are kept."""
    body = {
        "choices": [choice("b", 1), choice("a", 0)],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        "model": "m-1",
    }
    reply = parse_completion(body)
    assert [answer.text for answer in reply.answers] == ["a", "b"]
    assert (reply.usage, reply.model) == (Usage(prompt_tokens=7, completion_tokens=2), "m-1")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(text="a", finish_reason="stop"), "answered"),
        (Answer(text="a", finish_reason="length"), "truncated"),
        (Answer(text="", finish_reason="length"), "truncated"),
        (Answer(text=" \n", finish_reason="stop"), "empty"),
        (Answer(text="", refusal="I can't", finish_reason="stop"), "refused"),
        (Answer(text="a", finish_reason="content_filter"), "refused"),
    ],
)
def test_answers_are_called_what_they_are(answer: Answer, kind: str) -> None:
    """Refused, truncated and empty answers are told from whole ones."""
    assert answer.kind == kind


def test_content_may_be_missing_or_in_parts() -> None:
    """No content is an empty text, and the texts of parts are put together."""
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    reply = parse_completion({"choices": [choice(None), choice(parts, 1)]})
    assert [answer.text for answer in reply.answers] == ["", "ab"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [1]},
        {"choices": [{"message": None}]},
        {"choices": [choice(3)]},
        {"choices": "text"},
        {"error": {"message": "overloaded"}, "choices": [choice()]},
        {"choices": [choice("half", finish_reason="error")]},
    ],
)
def test_other_forms_are_malformed(body: Any) -> None:
    """Whatever else comes raises one kind of exception."""
    with pytest.raises(MalformedReply):
        parse_completion(body)


def delta(text: str | None, index: int = 0, reason: str | None = None) -> dict[str, Any]:
    end = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return {"choices": [end]}


def test_a_stream_is_put_together() -> None:
    """Pieces of several answers may come in turn, and usage with the last chunk."""
    collector = Collector()
    for chunk in (delta("a"), delta("x", 1), delta("b", 0), delta(None, 1, "length")):
        collector.add(chunk)
    collector.add(delta(None, 0, "stop"))
    collector.add({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}})
    reply = collector.finish()
    assert [(one.text, one.kind) for one in reply.answers] == [
        ("ab", "answered"),
        ("x", "truncated"),
    ]
    assert reply.usage == Usage(prompt_tokens=1, completion_tokens=3)


def test_a_stream_that_ends_early_is_no_answer() -> None:
    """Without a finish reason for each of its answers, a stream was cut."""
    collector = Collector()
    with pytest.raises(MalformedReply, match="no choices"):
        collector.finish()
    collector.add(delta("a", 0, "stop"))
    collector.add(delta("b", 1))
    with pytest.raises(MalformedReply, match="ended before 1 of its answers"):
        collector.finish()


def test_choices_of_one_index_are_as_many_answers() -> None:
    """In a whole reply, several choices that say they are the first are several answers still."""
    reply = parse_completion({"choices": [choice("a"), choice("b"), choice("c", 1)]})
    assert [answer.text for answer in reply.answers] == ["a", "b", "c"]


def test_streams_that_mix_answers_are_malformed() -> None:
    """Where a stream's answers can't be told apart, none is made up from them."""
    collector = Collector()
    collector.add(delta("a", 0, "stop"))
    collector.add(delta("", 0))
    with pytest.raises(MalformedReply, match="mixes answers"):
        collector.add(delta("b", 0))


@pytest.mark.parametrize("count", [-1, 1.5, "7", True, None, 10**400])
def test_counts_that_are_none_are_not_believed(count: object) -> None:
    """Usage is whole numbers of a sensible size, or there is none."""
    reply = parse_completion({"choices": [choice()], "usage": {"prompt_tokens": count}})
    assert reply.usage is None
