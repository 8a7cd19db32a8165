"""Clients: what a real server may do to a request, and what becomes of it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from gen.asking import KEY, Item, first_fails, generated, good, lines, outputs, rows, service
from mlbench_exec import InputError, Rejected
from mlbench_gen import Client, Row, Sampling
from mlbench_gen.pacing import LONGEST_HOLD_S, Pacer, backoff_s
from mlbench_gen.testing import Asked, Cut, Fault, Good, Hang, ModelServer, Raw, Response

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
WHOLE = Good(texts=["never whole" * 20])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts are noted instead of made."""
    pauses: list[float] = []
    hold = Pacer.hold

    def noted(failed: int, first_s: float, retry_after_s: float | None) -> float:
        pauses.append(backoff_s(failed, first_s, retry_after_s))
        return 0.0

    def held(self: Pacer, seconds: float) -> None:
        pauses.append(min(seconds, LONGEST_HOLD_S))
        hold(self, 0.0)

    monkeypatch.setattr("mlbench_gen.generate.backoff_s", noted)
    monkeypatch.setattr(Pacer, "hold", held)
    return pauses


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_arrive_whole(stream: bool) -> None:
    """One request brings all samples, in one piece or streamed, with what was asked for in it."""
    with ModelServer(good) as server:
        items = await generated(server, rows(3), samples=4, stream=stream)
    assert outputs(items) == {number: (f"print({number})",) * 4 for number in range(3)}
    assert [asked.count for asked in server.log] == [4] * 3
    body = server.log[0].body
    assert (body["model"], body["temperature"], body["top_p"]) == ("scripted-1", 1.0, 1.0)
    assert server.log[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429),
        Fault(status=500),
        Fault(status=503),
        Fault(status=408),
        Cut(good=WHOLE, share=0.0),
        Cut(good=WHOLE),
        Cut(good=WHOLE, politely=True),
        Raw(body=b'{"choices": [{"mess'),
        Raw(body=b"[]"),
        Raw(body=b'{"choices": []}'),
        Raw(body=b'{"error": {"message": "overloaded"}}'),
        Raw(body=b"<html>busy</html>", content_type="text/html"),
        Raw(body=b"\xff\xfe"),
        Raw(body=b"[" * 100_000),
        Raw(body=b'{"choices": 5}'),
        Good(texts=["half of it"], finish_reason="insufficient_system_resource"),
    ],
    ids=lambda fault: repr(fault)[:60],
)
async def test_passing_failures_are_repeated(fault: Response, stream: bool) -> None:
    """Limits, faults, cut connections and malformed replies cost an attempt, not the row."""
    with ModelServer(first_fails(fault, 2)) as server:
        items = await generated(server, rows(2), stream=stream)
    assert outputs(items) == {number: (f"print({number})",) * 2 for number in range(2)}
    assert set(server.asked().values()) == {3}


async def test_a_reply_that_does_not_come_is_given_up() -> None:
    """A request that takes longer than its time limit is sent again."""
    with ModelServer(first_fails(Hang())) as server:
        items = await generated(server, rows(1), timeout_s=1.0)
    assert outputs(items) == {0: ("print(0)",) * 2}
    assert len(server.log) == 2


@pytest.mark.parametrize(
    "header",
    [
        lambda: {"Retry-After": "1"},
        lambda: {"retry-after-ms": "1000"},
        lambda: {
            "Date": format_datetime(datetime.now(UTC), usegmt=True),
            "Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True),
        },
    ],
    ids=["seconds", "milliseconds", "date"],
)
async def test_retry_after_is_kept(header: Callable[[], dict[str, str]]) -> None:
    """After a 429 nothing is sent before the time that the server named."""
    refused_at: list[float] = []

    def script(asked: Asked) -> Response:
        if not refused_at:
            refused_at.append(asked.at)
            return Fault(status=429, headers=header())
        return good(asked)

    with ModelServer(script) as server:
        items = await generated(server, rows(3), concurrency=1)
    assert len(outputs(items)) == 3
    assert min(asked.at for asked in server.log[1:]) - refused_at[0] >= 0.99


@pytest.mark.parametrize("stream", [False, True])
async def test_servers_that_give_one_answer_are_asked_one_by_one(stream: bool) -> None:
    """Where a server overlooks `n`, what is missing is asked for singly; nothing is thrown away."""
    with ModelServer(lambda asked: Good(texts=["ls"], at_most=1)) as server:
        items = await generated(server, rows(2), samples=3, stream=stream, concurrency=1)
    assert outputs(items) == {0: ("ls",) * 3, 1: ("ls",) * 3}
    assert [asked.count for asked in server.log] == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("name", ["n", "stream_options"])
async def test_parameters_that_a_server_refuses_are_left_out(name: str, concurrency: int) -> None:
    """A 400 about an optional parameter is no failure: the request goes again without it."""

    def script(asked: Asked) -> Response:
        if name in asked.body:
            return Fault(status=400, message=f"Unknown parameter: '{name}'.")
        return good(asked)

    with ModelServer(script) as server:
        items = await generated(
            server, rows(9), stream=name == "stream_options", concurrency=concurrency
        )
    assert len(outputs(items)) == 9
    assert 1 <= sum(name in asked.body for asked in server.log) <= concurrency


async def test_other_refusals_cost_their_row_alone(tmp_path: object) -> None:
    """A prompt that is refused is not sent again; the row is told with the reason."""

    def script(asked: Asked) -> Response:
        if "thing 1." in asked.prompt:
            return Fault(status=400, message="the context is too long")
        return good(asked)

    with ModelServer(script) as server:
        items = await generated(server, rows(3))
    assert max(server.asked().values()) == 1
    [refused] = [item for item in items if isinstance(item, Rejected)]
    assert refused.id == 1
    assert "the context is too long" in refused.reason
    assert len(items) == 3


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401, message=f"Incorrect API key provided: {KEY}"),
        Fault(status=404),
        Fault(status=429, code="insufficient_quota"),
    ],
    ids=["key", "model", "quota"],
)
async def test_a_server_that_refuses_everything_ends_it(fault: Fault) -> None:
    """A wrong key, model or address is said at once, without the key in it, and not repeated."""
    with ModelServer(lambda asked: fault) as server, pytest.raises(InputError) as caught:
        await generated(server, rows(50), concurrency=2)
    assert KEY not in str(caught.value)
    assert str(fault.status) in str(caught.value)
    assert len(server.log) <= 4


@pytest.mark.parametrize("rounds", range(4))
async def test_the_refusal_is_told_also_where_a_row_comes_at_that_moment(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of the last worker and its group's hearing of it, a row finds nobody."""
    reading, refused = threading.Event(), threading.Event()

    class Rows:
        def __iter__(self) -> Iterator[Row]:
            first, second = rows(2)
            yield first
            reading.set()
            assert refused.wait(60)
            yield second

    async def answer(client: Client, row: Row) -> Item:
        assert await anyio.to_thread.run_sync(reading.wait, 60)
        refused.set()
        time.sleep(0.2)  # noqa: ASYNC251 - the loop hears of the second row before this goes on
        for _ in range(rounds):  # which one meets that moment is anyio's business
            await asyncio.sleep(0)
        raise InputError(f"refused at {row.id}")

    monkeypatch.setattr(Client, "answer", answer)
    with ModelServer(good) as server, pytest.raises(InputError, match="refused at 0"):
        async with Client(Sampling(model="scripted-1"), service(server, concurrency=1)) as client:
            [_ async for _ in client.generate(Rows())]


async def test_a_key_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable nothing is asked, and the message says what to export."""
    monkeypatch.delenv("TEST_KEY")
    with ModelServer(good) as server, pytest.raises(InputError, match="export TEST_KEY="):
        await generated(server, rows(1))
    assert server.log == []


async def test_no_more_requests_at_once_than_asked_for() -> None:
    """The concurrency is kept, also where samples are asked for one by one."""
    with ModelServer(lambda asked: Good(texts=["ls"], delay_s=0.02)) as server:
        await generated(server, rows(10), samples=4, concurrency=3, one_at_a_time=True)
    assert len(server.log) == 40
    assert server.most_at_once == 3


async def test_requests_a_minute_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests leave as far apart as the limit asks, whenever they arrive."""
    left_at: list[float] = []
    admit = Pacer.admit

    async def noted(self: Pacer, tokens: float) -> None:
        await admit(self, tokens)
        left_at.append(anyio.current_time())

    monkeypatch.setattr(Pacer, "admit", noted)
    with ModelServer(good) as server:
        await generated(server, rows(6), requests_per_minute=600)
    assert len(server.log) == len(left_at) == 6
    assert left_at[-1] - left_at[0] >= 5 * 0.1 - 0.05


async def test_attempts_come_to_an_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A row that stays without an answer is told with the last reason, and kept for another run."""
    folder = tmp_path_factory.mktemp("answers")
    with ModelServer(lambda asked: Fault(status=502, message="bad gateway")) as server:
        items = await generated(server, rows(1), folder=folder, attempts=3)
    assert len(server.log) == 3
    [item] = items
    assert isinstance(item, Rejected)
    assert "3 attempts failed; the last: status 502: bad gateway" in item.reason
    [failed] = lines(folder / "failed.jsonl")
    assert (failed["id"], "502" in failed["reason"]) == (0, True)


@pytest.mark.parametrize("status", [403, 404])
async def test_what_a_server_that_answers_refuses_is_one_row(status: int) -> None:
    """From a server that has answered others, a status that speaks of addresses or of rights
    costs its row alone."""

    def script(asked: Asked) -> Response:
        return (
            Fault(status=status, message="flagged") if "thing 2." in asked.prompt else good(asked)
        )

    with ModelServer(script) as server:
        items = await generated(server, rows(5), concurrency=1)
    [refused] = [item for item in items if isinstance(item, Rejected)]
    assert (refused.id, "flagged" in refused.reason, len(items)) == (2, True, 5)


async def test_a_filter_in_front_of_the_model_refuses(tmp_path: Path) -> None:
    """A prompt that a content filter stops, as Azure's does, is a refusal like any other: kept
    as one, judged, and not asked again."""
    stopped = Fault(status=400, code="content_filter", message="The prompt was filtered.")
    with ModelServer(lambda asked: stopped) as server:
        for _ in range(2):
            items = await generated(server, rows(1), folder=tmp_path)
            assert outputs(items) == {0: ("", "")}
    assert len(server.log) == 1
    [line] = lines(tmp_path / "answers.jsonl")
    refusal = {"kind": "refused", "finish_reason": "content_filter"}
    assert line["details"] == [{**refusal, "refusal": "The prompt was filtered."}] * 2


async def test_azure_is_asked_as_azure_wants_it() -> None:
    """With an API version, the deployment stands in the path and the key in a header of its own."""
    with ModelServer(good) as server:
        resource = server.url.removesuffix("/v1")
        for address in (resource, f"{resource}/", f"{resource}/openai"):
            items = await generated(server, rows(1), base_url=address, api_version="2024-10-21")
            assert outputs(items) == {0: ("print(0)",) * 2}
    expected = "/openai/deployments/scripted-1/chat/completions?api-version=2024-10-21"
    assert {asked.path for asked in server.log} == {expected}
    assert {asked.headers.get("api-key") for asked in server.log} == {KEY}


async def test_a_servers_words_are_fit_for_a_terminal() -> None:
    """Of an error only the beginning is shown, in one line, without control characters, and
    without the key, also where it is cut in the midst of it."""
    page = "\x1b[2J<html>\n" + "busy " * 56 + KEY
    with ModelServer(lambda asked: Fault(status=502, message=page)) as server:
        [item] = await generated(server, rows(1), attempts=1)
    assert isinstance(item, Rejected)
    assert item.reason.isprintable()
    assert KEY[:6] not in item.reason
    assert len(item.reason) < 400


async def test_a_reply_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than any answer isn't read to its end."""
    monkeypatch.setattr("mlbench_gen.replies.LONGEST_REPLY_BYTES", 2000)
    monkeypatch.setattr("mlbench_gen.clients.LONGEST_REPLY_BYTES", 2000)
    for stream in (False, True):
        with ModelServer(first_fails(Good(texts=["x" * 3000]))) as server:
            items = await generated(server, rows(1), samples=1, stream=stream)
        assert outputs(items) == {0: ("print(0)",)}


@pytest.mark.parametrize("wait", ["-5", "soon", "nan", "Tue, 99 Foo 2020 00:00:00 GMT", "9" * 400])
async def test_a_senseless_retry_after_is_no_obstacle(wait: str, no_waiting: list[float]) -> None:
    """Whatever a server puts there, the request goes again, within ten minutes."""
    with ModelServer(first_fails(Fault(status=429, headers={"Retry-After": wait}))) as server:
        items = await generated(server, rows(1))
    assert len(outputs(items)) == 1
    assert all(seconds <= 660 for seconds in no_waiting)
