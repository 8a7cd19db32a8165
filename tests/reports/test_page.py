"""report.html as a file: what is in it, how large it gets, and where its texts come from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec import journal
from mlbench_exec.dataset import load_dataset
from mlbench_exec.journal import KEPT, DatasetFacts, InputFile
from mlbench_exec.report import page as page_module
from mlbench_exec.report import write_page
from mlbench_exec.report.charts import Histogram, Timeline
from mlbench_exec.report.details import highlighted, shortened
from mlbench_exec.report.explain import why
from mlbench_exec.report.page import embedded
from mlbench_exec.samples import parse_sample
from mlbench_exec.submissions import output_hash
from mlbench_exec.verdicts import Unjudged
from reports.folders import REPOS, verdict, write_run

ROW = {
    "github_id": 9,
    "id": 1,
    "github": "https://example.org/tiny",
    "path": "./",
    "arguments": "{'rate': '0.5', 'name': 'number'}",
    "instruction": "Do </script><b>one</b> thing.",
    "type": "Bash Script",
    "output": "",
}
CODE = "python run.py number --rate 0.5 # </script><script>alert(1)</script> \ud800"


def block(content: str, name: str) -> Any:
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', content)
    return json.loads(text)


def a_run(folder: Path, *, stdin: bool = False) -> Path:
    """A run whose inputs are beside its folder."""
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    outputs = json.dumps({"github_id": 9, "id": 1, "output": [CODE, "other"]}) + "\n"
    run = folder / "run"
    run.mkdir()
    (run / KEPT if stdin else folder / "outputs.jsonl").write_text(outputs)
    source = str(folder / "rows.jsonl")
    digest = load_dataset(source).digest
    return write_run(
        run,
        verdicts=[verdict((9, 1), 0, "failed", CODE, wall_s=1.0, stderr="<b>bad</b>")],
        unjudged=[Unjudged(reason="no image", kind="environment", github_id=9, id=1, index=1)],
        inputs=(InputFile(path="-" if stdin else str(folder / "outputs.jsonl")),),
        dataset=DatasetFacts(source=source, split="full", digest=digest, repos=REPOS),
    )


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_code_and_instruction_are_read_again(tmp_path: Path, stdin: bool) -> None:
    """From the outputs file and the dataset, or from what the run kept of standard input."""
    run = a_run(tmp_path, stdin=stdin)
    assert write_page(run) == []
    details = block((run / "report.html").read_text(), "details")
    first, second = details["outputs"]
    assert "".join(first["code"][1::2]) == CODE.replace("\ud800", "\\ud800")
    assert first["stderr"] == "<b>bad</b>"
    assert second["why"] == "no image"
    assert details["tasks"]["9/1"]["instruction"] == ROW["instruction"]


def test_what_changed_since_is_not_shown(tmp_path: Path) -> None:
    """Other outputs or rows under the same paths are not taken for the run's, and that is said."""
    run = a_run(tmp_path)
    (tmp_path / "outputs.jsonl").write_text('{"github_id": 9, "id": 1, "output": ["new"]}\n')
    (tmp_path / "rows.jsonl").write_text(json.dumps({**ROW, "type": "Python Code"}) + "\n")
    first, second = write_page(run)
    assert "holds other rows now" in first
    assert "1 programs are not in" in second
    details = block((run / "report.html").read_text(), "details")
    assert "code" not in details["outputs"][0]
    assert details["tasks"] == {}


@settings(deadline=None)
@given(st.text() | st.just("</script><!--<script>\u2028\u2029&"))
def test_any_text_stays_inside_its_block(text: str) -> None:
    """Nothing in embedded JSON can end its element, and it reads back as it was."""
    text = text.encode(errors="replace").decode()
    found = embedded([text])
    assert not set(found) & set("<>&\u2028\u2029")
    assert json.loads(found) == [text]


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    """No address of another file or host is in the page's own markup, style or script."""
    run = a_run(tmp_path)
    write_page(run)
    content = (run / "report.html").read_text()
    own = re.sub(r'(?s)<script type="application/json".*?</script>', "", content)
    own = re.sub(r"(?s)<dl class=\"facts\">.*?</dl>", "", own)
    assert not re.search(r"(?i)https?://|url\(|@import|<link|<img|<iframe|\bsrc=", own)
    assert "default-src &#39;none&#39;; style-src &#39;sha256-" in content
    assert "innerHTML" not in content


def test_its_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long streams are cut, many outputs lose their texts and then their lines, and it says so."""
    monkeypatch.setattr(page_module, "DETAILS_CHARS", 40_000)
    monkeypatch.setattr(page_module, "ROWS", 30)
    many = [verdict((9, 1), i, "failed", stdout="x" * 60_000, wall_s=1.0) for i in range(40)]
    run = write_run(tmp_path / "run", verdicts=many)
    problems = " ".join(write_page(run))
    assert "holds the first 30 of 40 outputs" in problems
    assert "17 outputs are in the table with their figures alone" in problems
    content = (run / "report.html").read_text()
    assert len(content) < 150_000
    assert len(block(content, "data")["rows"]) == 30
    assert "57000 characters left out" in content


def test_a_run_without_verdicts_has_a_page(tmp_path: Path) -> None:
    """No figure divides by zero, and no chart is drawn."""
    run = write_run(tmp_path / "run")
    write_page(run)
    assert "<svg" not in (run / "report.html").read_text()


def test_restart_forgets_what_was_kept() -> None:
    """--restart removes the kept input and the page with the rest of the run."""
    assert {KEPT, "report.html"} <= set(journal.record.RUN_FILES)


def test_cut_texts_keep_head_and_tail() -> None:
    """A third from the head, the rest from the tail, where tracebacks end."""
    text = "a" * 100 + "b" * 100
    assert shortened(text, 60) == "a" * 20 + "\n… 140 characters left out …\n" + "b" * 40
    assert shortened("a\tb\n\x1b\u202e", 60) == "a\tb\n\\x1b\\u202e"


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(["python", "bash"]))
def test_highlighting_loses_nothing(code: str, language: Any) -> None:
    """The styled pieces together are the code, line ends and hidden characters aside."""
    runs = highlighted(code, language, 1000)
    pieces = shortened(code, 1000)
    assert "".join(runs[1::2]) == pieces


def test_highlighting_knows_both_languages() -> None:
    """Keywords, texts and comments are told apart in Python and in bash."""
    runs = highlighted("import torch  # it\nx = 'a'", "python", 1000)
    assert ("k", "import") in zip(runs[::2], runs[1::2], strict=True)
    assert {"c", "s"} <= set(runs[::2])
    assert "c" in highlighted("# run\nif true; then echo 'x'; fi", "bash", 1000)[::2]


SAMPLE = parse_sample(ROW, place="rows.jsonl:1")
REASONS = [
    (verdict((9, 1), 0, "passed", counted_s=0.02), "exit code 0 after 20 ms"),
    (verdict((9, 1), 0, "passed_at_limit", counted_s=2.0, limit="time"), "at its time limit"),
    (verdict((9, 1), 0, "failed", exit_code=1, error="KeyError"), "that stderr names is KeyError"),
    (verdict((9, 1), 0, "failed", exit_code=1, limit="disk"), "It met its disk limit."),
    (verdict((9, 1), 0, "killed", signal=11), "SIGSEGV (signal 11) ended it"),
    (verdict((9, 1), 0, "killed", signal=99), "Signal 99 ended it"),
    (verdict((9, 1), 0, "out_of_memory", limit="memory"), "ran out of memory"),
    (verdict((9, 1), 0, "wrong_arguments"), "It doesn't name rate = 0.5."),
    (verdict((9, 1), 0, "wrong_type"), "asks for a bash script"),
    (verdict((9, 1), 0, "skipped"), "An earlier output of its row passed"),
    (verdict((9, 1), 0, "passed", attempts=2, contended=True), "judged again alone"),
]


@pytest.mark.parametrize(("one", "words"), REASONS, ids=[words for _, words in REASONS])
def test_every_verdict_is_explained(one: Any, words: str) -> None:
    """The reason names what decided; without the row at hand it still says something."""
    assert words in why(one, SAMPLE, "number")
    assert why(one).endswith(".")


def test_columns_hold_every_value() -> None:
    """A histogram's columns add up to what was counted."""
    chart = Histogram(base=10, per_bin=0.1)
    for value in (0.001, 0.5, 0.5, 3.0, None, 0.0):
        chart.add(value, "failed")
    counts = re.findall(r": (\d+) failed</title>", chart.svg("Time", str))
    assert sum(map(int, counts)) == 4


def test_pauses_are_cut_short() -> None:
    """A run that was continued a day later is drawn without the day, and says where it paused."""
    timeline = Timeline()
    timeline.add(0.0, 1.0, 0, "passed")
    timeline.add(86_400.0, 1.0, 1, "failed")
    drawn = timeline.svg()
    assert drawn.count('class="break"') == 1
    assert "2 executions in 2 slots over 2.04 s" in drawn
    widths = [
        float(one)
        for one in re.findall(r'class="s-\w+" x="[\d.]+" y="[\d.]+" width="([\d.]+)', drawn)
    ]
    assert min(widths) > 400


def test_a_long_timeline_stays_small() -> None:
    """Neighbours that no eye could part are drawn as one."""
    timeline = Timeline()
    for number in range(20_000):
        timeline.add(number * 0.01, 0.009, number % 4, "passed")
    assert len(timeline.svg()) < 200_000


def test_contrast() -> None:
    """Text on paper and on raised ground has a contrast of 4.5 or more, light and dark."""
    style = (Path(page_module.__file__).parent / "assets" / "report.css").read_text()
    themes = re.findall(r":root[^{]*\{([^}]*)\}", style)
    assert len(themes) == 3
    assert themes[1].split() == themes[2].split()  # dark as asked for, and as the system is
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): #(\w{6})", theme))
        for name in ("ink", "soft", "accent", "k", "s", "n", "c", "f", "b", "v"):
            for ground in ("paper", "raised"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [
            one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_names_by_hash() -> None:
    """Programs are found by the hash that their verdicts have, lone surrogates included."""
    assert output_hash(CODE) == output_hash(json.loads(json.dumps(CODE)))
