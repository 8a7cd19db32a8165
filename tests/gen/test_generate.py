"""Generate: what is answered is kept, what is missing is asked for, and engines judge it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gen.asking import KEY, answer_to, chance, generated, good, lines, outputs, rows, service
from mlbench_exec import Engine, InputError, RunFolderError, Settings, Verdict
from mlbench_exec.testing.fakes import FakeBackend, observation
from mlbench_gen import Answer, Client, Reply, Row, Sampling, open_record
from mlbench_gen.testing import Asked, Cut, Fault, Good, ModelServer, Raw, Response

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
PARTIAL = (
    b'{"github_id": 1, "id": 0, "answers": ["one 1"], "details": [{"kind": "answered"}], '
    b'"model": "scripted-1", "usage": [3, 2], "requests": 1, "prompt": "", "finished_before": 0}\n'
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def failing(asked: Asked) -> Response:
    """30 of 100 requests fail, each in another way."""
    draw = chance(asked)
    if draw >= 0.3:
        return good(asked)
    cut = Cut(good=good(asked), share=draw)
    return (Fault(status=429), Fault(status=500), cut, Raw(body=b'{"a'))[int(draw * 1000) % 4]


async def test_a_third_of_failures_loses_no_row(tmp_path: Path) -> None:
    """With 30 % of the requests failing, all 260 rows are answered, each asked until it was."""
    with ModelServer(failing) as server:
        items = await generated(server, rows(260), folder=tmp_path, samples=5)
    assert outputs(items) == {number: (f"print({number})",) * 5 for number in range(260)}
    repeated = len(server.log) - 260
    assert 0.2 < repeated / len(server.log) < 0.4
    assert not (tmp_path / "failed.jsonl").exists()
    answered = [asked for asked in server.log if asked.answered]
    assert len(answered) == len({asked.prompt for asked in answered}) == 260


async def test_a_second_run_asks_for_what_is_missing(tmp_path: Path) -> None:
    """Rows that the record holds come first and aren't asked again; failed ones are."""

    def script(asked: Asked) -> Response:
        is_bad = "thing 2." in asked.prompt and asked.attempt <= 1
        return Fault(status=400) if is_bad else good(asked)

    with ModelServer(script) as server:
        first = await generated(server, rows(4), folder=tmp_path)
        assert len(server.log) == 4
        second = await generated(server, rows(6), folder=tmp_path)
        assert len(server.log) == 7
    assert len(first) == 4
    assert {item.id for item in second[:3]} == {0, 1, 3}
    assert outputs(second).keys() == set(range(6))
    assert not (tmp_path / "failed.jsonl").exists()
    assert [line["id"] for line in lines(tmp_path / "outputs.jsonl")] == list(range(6))


async def test_samples_that_are_there_are_not_asked_again(tmp_path: Path) -> None:
    """Where only some samples of a row were had, the next run asks for the others alone."""

    def script(asked: Asked) -> Response:
        if asked.attempt > 3:
            return Fault(status=400)
        return Good(texts=[f"sample {asked.attempt}"])

    with ModelServer(script) as server:
        await generated(server, rows(1), folder=tmp_path, samples=5, one_at_a_time=True)
        asked = len(server.log)
    had = [line["answers"] for line in lines(tmp_path / "partial.jsonl")]  # as they came
    assert sorted(had) == [["sample 1"], ["sample 2"], ["sample 3"]]
    assert not (tmp_path / "answers.jsonl").read_bytes()
    with ModelServer(lambda asked: Good(texts=["later"])) as server:
        items = await generated(server, rows(1), folder=tmp_path, samples=5)
    assert asked >= 5
    assert [one.count for one in server.log] == [2]
    assert outputs(items) == {0: (*(one for (one,) in had), "later", "later")}
    assert not (tmp_path / "partial.jsonl").exists()
    with ModelServer(lambda asked: Good(texts=["more"])) as server:
        items = await generated(server, rows(1), folder=tmp_path, samples=6)
    assert [one.count for one in server.log] == [1]
    assert len(outputs(items)[0]) == 6


async def test_more_samples_are_added_and_counted_once(tmp_path: Path) -> None:
    """Samples that were added later stand beside the first ones; of partial replies that a line
    holds already none counts again; tokens are those of all requests, once."""
    with ModelServer(lambda asked: Good(texts=[f"one {asked.attempt}"])) as server:
        await generated(server, rows(1), folder=tmp_path, samples=2, one_at_a_time=True)
        (tmp_path / "partial.jsonl").write_bytes(PARTIAL)  # as a kill leaves it
        await generated(server, rows(1), folder=tmp_path, samples=4, one_at_a_time=True)
        items = await generated(server, rows(1), folder=tmp_path, samples=4)
        assert sorted(outputs(items)[0], key=str) == [f"one {number}" for number in (1, 2, 3, 4)]
        assert len(server.log) == 4
    report = json.loads((tmp_path / "usage.json").read_text())
    assert report["answers"] == {"answered": 4}
    assert report["models"]["scripted-1"]["completion_tokens"] == 2 * 4


async def test_fewer_samples_than_before_need_no_request(tmp_path: Path) -> None:
    """Where a row has enough partial replies for what is wanted now, it is finished with them."""

    def script(asked: Asked) -> Response:
        return Fault(status=400) if asked.attempt > 2 else Good(texts=[f"one {asked.attempt}"])

    with ModelServer(script) as server:
        await generated(server, rows(1), folder=tmp_path, samples=4, one_at_a_time=True)
        before = len(server.log)
        items = await generated(server, rows(1), folder=tmp_path, samples=2)
        assert outputs(items) == {0: ("one 1", "one 2")}
        assert len(server.log) == before


async def test_what_has_come_is_kept_when_interrupted(tmp_path: Path) -> None:
    """A reply that waits for its turn at the disk when everything is cancelled gets there."""
    reply = Reply(answers=(Answer(text="ls"),))
    async with (
        open_record(tmp_path, {"asked": {}}, samples=1) as record,
        anyio.create_task_group() as tasks,
    ):
        for number in range(20):
            tasks.start_soon(record.add, (1, number), "digest", reply)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(list(lines(tmp_path / "answers.jsonl"))) == 20


async def test_answers_are_kept_as_what_they_are(tmp_path: Path) -> None:
    """Whole texts, finish reasons, refusals and usage stand in answers.jsonl."""
    kinds = {
        0: Good(texts=[answer_to(0)]),
        1: Good(texts=["half a scr"], finish_reason="length"),
        2: Good(texts=[""], refusal="I won't."),
        3: Good(texts=[""]),
        4: Good(texts=["\ud800 lone"]),
    }
    with ModelServer(lambda asked: kinds[int(asked.prompt.split("thing ")[1][0])]) as server:
        items = await generated(server, rows(5), folder=tmp_path, samples=1)
    kept = {line["id"]: line for line in lines(tmp_path / "answers.jsonl")}
    found = [kept[number]["details"][0]["kind"] for number in range(5)]
    assert found == ["answered", "truncated", "refused", "empty", "answered"]
    assert kept[0]["answers"] == [answer_to(0)]
    assert kept[2]["details"][0]["refusal"] == "I won't."
    assert kept[1]["usage"][1] == 3
    assert outputs(items)[4] == ("\ud800 lone",)
    report = json.loads((tmp_path / "usage.json").read_text())
    assert report["answers"] == {"answered": 2, "truncated": 1, "refused": 1, "empty": 1}
    assert report["models"]["scripted-1"]["completion_tokens"] > 0


async def test_a_torn_line_is_asked_again_and_a_damaged_one_named(tmp_path: Path) -> None:
    """What a crash left of a last line is dropped; damage in the middle is told by its line."""
    answers = tmp_path / "answers.jsonl"
    with ModelServer(good) as server:
        await generated(server, rows(3), folder=tmp_path, concurrency=1)
        answers.write_bytes(answers.read_bytes()[:-20])
        items = await generated(server, rows(3), folder=tmp_path, concurrency=1)
        assert len(outputs(items)) == 3
        assert len(server.log) == 4
        content = answers.read_bytes().splitlines(keepends=True)
        answers.write_bytes(content[0] + b"{oops\n" + content[2])
        with pytest.raises(InputError, match=r"answers.jsonl:2: not a line"):
            await generated(server, rows(3), folder=tmp_path)


async def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    """A folder takes neither another model's answers nor those to other prompts, unless told."""
    changed = [Row(github_id=1, id=0, instruction="Do thing 0. Now!", oracle="")]
    with ModelServer(good) as server:
        await generated(server, rows(2), folder=tmp_path)
        with pytest.raises(RunFolderError, match=r"other prompts than these \(1/0\)"):
            await generated(server, changed, folder=tmp_path)
        assert len(server.log) == 2
        other = {"asked": {"model": "other"}}
        with pytest.raises(RunFolderError, match="model was 'scripted-1', now 'other'"):
            async with open_record(tmp_path, other, samples=2):
                pass
        async with open_record(tmp_path, other, samples=2, restart=True) as record:
            assert not record.is_complete((1, 0))


async def test_a_folder_is_one_runs(tmp_path: Path) -> None:
    """A second run into a folder that is in use is refused."""
    asked = {"asked": {"model": "m"}}
    async with open_record(tmp_path, asked, samples=1):
        with pytest.raises(RunFolderError, match="in use"):
            async with open_record(tmp_path, asked, samples=1):
                pass


async def test_nothing_is_asked_that_nobody_takes() -> None:
    """Requests wait while finished rows aren't taken: memory is bounded by the concurrency."""
    with ModelServer(good) as server:
        async with Client(Sampling(model="m"), service(server, concurrency=2)) as client:
            stream = client.generate(rows(200))
            await anext(stream)
            await anyio.sleep(0.5)
            assert len(server.log) <= 8  # taken, in the buffer, and held by the workers
            await stream.aclose()
    assert len(server.log) <= 8


async def test_an_engine_judges_while_a_model_answers(tmp_path: Path) -> None:
    """A client's stream goes into the engine's; the first verdict is there before the last row."""
    dataset = tmp_path / "rows.jsonl"
    columns = {"github": "", "path": "", "arguments": "{}", "type": "Python Code"}
    keys = [{"github_id": 1, "id": number} for number in range(20)]
    dataset.write_text("".join(json.dumps(key | columns) + "\n" for key in keys))
    environments = tmp_path / "environments.toml"
    environments.write_text('[environments.one]\ngithub_ids = [1]\nworkdir = "/srv"\n')
    settings = Settings(dataset=str(dataset), environments_file=environments, concurrency=2)
    asked_at_first = 0
    verdicts = []
    with ModelServer(good) as server:
        backend = FakeBackend(lambda job: observation())
        async with (
            Engine(settings, backend=backend) as engine,
            Client(Sampling(model="m"), service(server, concurrency=2)) as client,
        ):
            async for outcome in engine.stream(client.generate(rows(20))):
                assert isinstance(outcome, Verdict)
                asked_at_first = asked_at_first or len(server.log)
                verdicts.append((outcome.id, outcome.index, outcome.status))
    assert sorted(verdicts) == [(row, index, "passed") for row in range(20) for index in range(5)]
    assert asked_at_first < 20


async def test_a_failure_of_the_rows_reaches_the_consumer() -> None:
    """What reading the dataset raises ends the stream with that exception."""

    class Bad:
        def __iter__(self) -> "AsyncIterator[Row]":
            raise InputError("no such dataset")

    with ModelServer(good) as server:
        async with Client(Sampling(model="m"), service(server)) as client:
            with pytest.raises(InputError, match="no such dataset"):
                await anext(client.generate(Bad()))  # type: ignore[arg-type]
