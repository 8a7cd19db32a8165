"""The weights folder: which rows need what, pulling it, checking it, and where a run finds it."""

import io
import json
import os
import signal
import subprocess
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

import mlbench_exec.backends.choice
from loopback import Server, serving
from mlbench_exec.cli import main
from mlbench_exec.dataset import load_dataset
from mlbench_exec.environments import Environment, Environments, Mount, load_environments
from mlbench_exec.errors import InputError
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Job, Observation
from mlbench_exec.testing.fakes import FakeBackend, observation
from mlbench_exec.weights import Store, load_manifest, missing, mounted
from mlbench_exec.weights.manifest import HUB_HOME, parse_manifest

EXECUTABLE = Path(sysconfig.get_path("scripts")) / "mlbench-exec"
MANIFEST = """
[weights.words]
github_ids = [1]
mentions = ["vocab.txt"]
url = "{url}/words.zip"
unpack = "zip"
targets = ["model/words"]

[weights."pictures/cat.jpg"]
github_ids = [1]
mentions = ["cat.jpg"]
url = "{url}/cat.jpg"
sha256 = "{cat}"
targets = ["cat.jpg", "/deep_data/cat.jpg"]

[weights.mine]
github_ids = [2]
targets = ["mine.bin"]
"""
CAT_SHA256 = "77af778b51abd4a3c51c5ddd97204a9c3ae614ebccb75a606c3b6865aed6744e"  # of b"cat"
ONE = Environment(name="one", github_ids=(1,), repo="one", workdir="/repos/one")


def a_row(row_id: int, gold: str, github_id: int = 1) -> Sample:
    return Sample(
        github_id=github_id,
        id=row_id,
        repository="one",
        path="./",
        arguments={},
        type="Python Code",
        gold=gold,
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        found.page("/words.zip", zip_of({"words/vocab.txt": "a b c", "words/config.json": "{}"}))
        found.page("/cat.jpg", b"cat")
        yield found


@pytest.fixture
def folder(tmp_path: Path, server: Server) -> Path:
    """A weights folder whose own manifest knows three more things than the built-in one."""
    place = tmp_path / "weights"
    place.mkdir()
    (place / "manifest.toml").write_text(MANIFEST.format(url=server.url, cat=CAT_SHA256))
    return place


def zip_of(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["weights", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def states(*arguments: str | Path) -> dict[str, str]:
    shown = json.loads(call(*arguments, "--json").stdout)
    return {one["name"]: one["state"] for one in shown["weights"]}


# Which rows need what.


def test_the_built_in_manifest_is_sound_and_invents_no_hash() -> None:
    """All addresses but one are https or the Hub; a hash stands only where the address holds it."""
    manifest = load_manifest()
    assert len([name for name in manifest if name.startswith("bert/")]) == 7
    for item in manifest.values():
        assert item.sha256 is None or (item.url and item.sha256 in item.url)
        assert item.size is None
    plain = [item.name for item in manifest.values() if (item.url or "").startswith("http:")]
    assert plain == ["muzic/lmd_full"]
    assert [i.name for i in manifest.values() if not i.url and not i.hub] == ["picture/sample.jpg"]


@pytest.mark.skipif("MLBENCH_DATA" not in os.environ, reason="MLBENCH_DATA is not set")
def test_each_bert_row_needs_one_archive_and_each_if_row_a_stage() -> None:
    """The manifest's texts find the files that ML-Bench's rows name."""
    dataset = load_dataset(f"{os.environ['MLBENCH_DATA']}/mlbench_full.jsonl")
    manifest = load_manifest()
    needed = {
        key: [item.name for item in manifest.values() if item.is_needed_by(sample)]
        for key, sample in dataset.samples.items()
    }
    bert = [names for key, names in needed.items() if key[0] == 2]
    assert len(bert) == 22
    assert {len(names) for names in bert} == {1}
    clip = [names for key, names in needed.items() if key[0] == 7]
    assert all(sum(name.startswith("open_clip/") for name in names) == 1 for names in clip)
    assert all("if/clip-ViT-L-14" in names for key, names in needed.items() if key[0] == 4)
    outputs = dict.fromkeys(dataset.samples, 5)
    lacking = missing(manifest, set(), outputs, dataset.samples, load_environments())
    counts = {one.name: one.outputs for one in lacking}
    assert counts["bert/cased_L-12_H-768_A-12"] == 5 * 5
    assert counts["muzic/lmd_full"] == 2 * 5
    assert counts["gsa/sam_vit_h_4b8939"] == 6 * 5


def test_what_is_missing_is_counted_in_outputs() -> None:
    """Not what is here, not rows of others, not what mounts of the user's bring."""
    manifest = parse_manifest(MANIFEST.format(url="https://h", cat=CAT_SHA256), "m.toml")
    rows = (a_row(1, "open('vocab.txt')"), a_row(2, "cat.jpg, VOCAB.TXT"), a_row(3, "nothing"))
    samples = {row.key: row for row in rows}
    outputs = {(1, 1): 5, (1, 2): 2, (1, 3): 5}
    environments = Environments((ONE,))

    def found(present: set[str], environments: Environments = environments) -> dict[str, int]:
        lacking = missing(manifest, present, outputs, samples, environments)
        return {one.name: one.outputs for one in lacking}

    assert found(set()) == {"words": 7, "pictures/cat.jpg": 2}
    assert found({"words"}) == {"pictures/cat.jpg": 2}
    own = msgspec.structs.replace(ONE, mounts=(Mount(source="/x", target="/repos/one/model"),))
    assert found(set(), Environments((own,))) == {"pictures/cat.jpg": 2}
    assert (
        missing(manifest, set(), outputs, samples, environments, is_there=lambda place: True) == []
    )


def test_what_is_here_is_mounted_where_it_is_looked_for(tmp_path: Path) -> None:
    """Read-only, for the environments of its rows; the Hub's cache under HF_HOME."""
    text = '[weights.net]\ngithub_ids = [1]\nhub = "a/b"\n' + MANIFEST
    manifest = parse_manifest(text.format(url="https://h", cat=CAT_SHA256), "m.toml")
    other = msgspec.structs.replace(ONE, name="other", github_ids=(3,))
    present = {"words", "pictures/cat.jpg", "net"}
    one, same = mounted(manifest, present, tmp_path, Environments((ONE, other)))
    assert same is other
    assert {mount.target: mount.source for mount in one.mounts} == {
        "/repos/one/model/words": f"{tmp_path}/words",
        "/repos/one/cat.jpg": f"{tmp_path}/pictures/cat.jpg",
        "/deep_data/cat.jpg": f"{tmp_path}/pictures/cat.jpg",
        f"{HUB_HOME}/hub": f"{tmp_path}/hub",
    }
    assert {mount.mode for mount in one.mounts} == {"ro"}
    assert one.env == {"HF_HOME": HUB_HOME}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[weights."../x"]\ngithub_ids=[1]\ntargets=["x"]', "a name is made of"),
        ('[weights.hub]\ngithub_ids=[1]\ntargets=["x"]', "a name is made of"),
        ('[weights.x]\ngithub_ids=[1]\ntargets=["../x"]', "is not a path below the workdir"),
        ('[weights.x]\ngithub_ids=[1]\nurl="file:///x"\ntargets=["x"]', "write https://"),
        ('[weights.x]\ngithub_ids=[1]\nurl="https://h/x"', "say where the repository looks"),
        ('[weights.x]\ngithub_ids=[1]\nurl="https://h/x"\nhub="a/b"', "not both"),
        ('[weights.x]\ngithub_ids=[1]\nurll="https://h/x"', "urll"),
        ('[weights.x]\ngithub_ids=[1]\ntargets=["x"]\nsha256="12"', "64 hexadecimal digits"),
        ("[weight.x]\n", "tables are named"),
        ("[weights", "not valid TOML"),
    ],
)
def test_a_manifest_that_cant_be_used_is_refused_by_name(table: str, message: str) -> None:
    """The file, the table and the field."""
    with pytest.raises(InputError, match=message) as refused:
        parse_manifest(table, "mine.toml")
    assert "mine.toml" in str(refused.value)


# Pulling and checking.


def test_pulled_things_are_there_as_a_whole_and_can_be_checked(
    folder: Path, server: Server
) -> None:
    """Listed, mounted and verified; what nobody published a hash of is said to be so."""
    assert states("list", "--dir", folder, "words", "mine") == {
        "words": "missing",
        "mine": "missing, no address",
    }
    result = call("pull", "words", "pictures", "--dir", folder)
    assert result.exit_code == 0, result.stderr
    assert "2 pulled, 0 were here, 0 failed" in result.stderr
    assert (folder / "words" / "vocab.txt").read_text() == "a b c"
    assert (folder / "pictures" / "cat.jpg").read_bytes() == b"cat"
    assert list((folder / ".parts").iterdir()) == []
    assert states("verify", "--dir", folder) == {
        "words": "as first pulled: no hash is published",
        "pictures/cat.jpg": "as published",
    }
    seen = len(server.seen)
    assert "0 pulled, 2 were here" in call("pull", "words", "pictures", "--dir", folder).stderr
    assert len(server.seen) == seen


def test_damage_is_found_file_by_file(folder: Path) -> None:
    """One byte, a lost file, an added one: exit code 1, and each is named."""
    call("pull", "words", "--dir", folder)
    (folder / "words" / "vocab.txt").write_text("a b d")
    (folder / "words" / "config.json").unlink()
    (folder / "words" / "new").write_text("")
    result = call("verify", "--dir", folder, "--json")
    assert result.exit_code == 1
    (one,) = json.loads(result.stdout)["weights"]
    assert one["state"] == "damaged"
    assert sorted(problem.split(":")[0] for problem in one["problems"]) == [
        "config.json",
        "new",
        "vocab.txt",
    ]


def test_what_fails_is_named_and_the_rest_is_pulled(folder: Path, server: Server) -> None:
    """Exit code 1; nothing of what failed stands in its place."""
    server.page("/cat.jpg", b"dog")
    result = call("pull", "words", "pictures", "mine", "--dir", folder)
    assert result.exit_code == 1
    assert "1 pulled, 0 were here, 2 failed" in result.stderr
    assert "pictures/cat.jpg: " in result.stderr
    assert "mine: no address is known: put the file at" in result.stderr
    assert not (folder / "pictures" / "cat.jpg").exists()
    (folder / "mine").write_bytes(b"by hand")
    assert states("list", "--dir", folder, "mine") == {"mine": "put here by hand"}


def test_an_archive_that_leads_out_is_refused_and_not_kept(folder: Path, server: Server) -> None:
    """The folder's parent is untouched."""
    server.page("/words.zip", zip_of({"../evil": "x"}))
    result = call("pull", "words", "--dir", folder)
    assert result.exit_code == 1
    assert "the archive is refused: '../evil' leads out of the folder" in result.stderr
    assert not (folder / "words").exists()
    assert not (folder.parent / "evil").exists()
    assert not list((folder / ".parts").iterdir())


def test_two_pulls_at_once_are_refused(folder: Path) -> None:
    """Or both would write one part."""
    with Store(folder).locked():
        result = call("pull", "words", "--dir", folder)
    assert result.exit_code == 2
    assert "another pull is at work there" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_leaves_no_half_file_and_goes_on(
    folder: Path, server: Server, signum: signal.Signals
) -> None:
    """The next one asks for the rest, and has the whole."""
    content = os.urandom(400_000)
    server.page("/words.zip", b"")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("x")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    (folder / "manifest.toml").write_text(
        f'[weights.big]\ngithub_ids = [1]\nurl = "{server.url}/big"\nunpack = "tar"\n'
        'targets = ["x"]\n'
    )
    server.page("/big", tar.getvalue(), cuts=[200_000] + [0] * 4)  # cut, and then nothing comes
    command = [str(EXECUTABLE), "weights", "pull", "big", "--dir", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = folder / ".parts" / "big.part"
    until = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == 200_000):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=20)
    assert process.returncode == (130 if signum == signal.SIGINT else -9)
    assert not (folder / "big").exists()
    server.page("/big", tar.getvalue())
    assert call("pull", "big", "--dir", folder).exit_code == 0
    assert server.ranges("/big")[-1] == "bytes=200000-"
    assert (folder / "big" / "x").read_bytes() == content


# In a run.


def play(job: Job) -> Observation | Exception:
    seen = {mount.target for mount in job.environment.mounts}
    return observation(exit_code=0 if any(one.endswith("words") for one in seen) else 1)


def test_a_run_says_what_its_rows_lack_before_it_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of outputs concerned; pulled, it is mounted, and nothing is said."""
    monkeypatch.setattr(mlbench_exec.backends.choice, "LocalBackend", lambda **_: FakeBackend(play))
    (tmp_path / "repo").mkdir()
    (tmp_path / "environments.toml").write_text(
        f'[environments.one]\ngithub_ids = [1]\nworkdir = "{tmp_path}/repo"\n'
    )
    row = {"github_id": 1, "type": "Python Code", "path": "./", "arguments": "{}"}
    rows = [{**row, "id": n, "output": "open('model/words/vocab.txt')"} for n in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [f"--dataset={tmp_path}/rows.jsonl", f"--environments={tmp_path}/environments.toml"]
    options += ["--backend=local", f"--weights={folder}", "--gold"]

    def run(*more: str) -> Result:
        return CliRunner().invoke(main, ["run", *options, f"--out={tmp_path}/run", *more])

    said = " ".join(run().stderr.split())
    assert f"missing in {folder}: words (2 outputs)" in said
    assert "mlbench-exec weights pull" in said
    dry = json.loads(run("--dry-run", "--json").stdout)
    assert dry["weights"] == [{"name": "words", "outputs": 2}]
    assert call("pull", "words", "--dir", folder).exit_code == 0
    again = run("--restart", "--json")
    assert "weights" not in again.stderr
    assert json.loads(again.stdout)["statuses"]["passed"] == 2


@pytest.mark.slow
def test_a_program_reads_them_and_cant_change_them(folder: Path, tmp_path: Path) -> None:
    """In a real sandbox: below the workdir and elsewhere; the weights folder stays as it is."""
    tmp_path.chmod(0o755)
    (tmp_path / "repo").mkdir()
    (tmp_path / "environments.toml").write_text(
        f'[environments.one]\ngithub_ids = [1]\nworkdir = "{tmp_path}/repo"\n'
        'python = "/usr/bin/python3"\n'
    )
    assert call("pull", "words", "pictures", "--dir", folder).exit_code == 0
    reads = (
        "assert open('model/words/vocab.txt').read() == 'a b c'\n"
        "assert open('cat.jpg').read() == open('/deep_data/cat.jpg').read() == 'cat'\n"
    )
    writes = "open('model/words/vocab.txt', 'w').write('mine')\n"
    row = {"github_id": 1, "type": "Python Code", "path": "./", "arguments": "{}"}
    codes = (reads, writes, reads, "open('/deep_data/cat.jpg', 'w')")
    rows = [{**row, "id": n, "output": code} for n, code in enumerate(codes)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = [f"--dataset={tmp_path}/rows.jsonl", f"--environments={tmp_path}/environments.toml"]
    options += ["--backend=local", f"--weights={folder}", "--gold", "--json", "--concurrency=1"]
    options += ["--memory=256m", f"--out={tmp_path}/run"]
    result = CliRunner().invoke(main, ["run", *options])
    verdicts = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    said = {one["id"]: (one["status"], one["error"]) for one in map(json.loads, verdicts)}
    assert said == {
        0: ("passed", None),
        1: ("failed", "OSError"),
        2: ("passed", None),
        3: ("failed", "OSError"),
    }, result.stderr
    assert (folder / "words" / "vocab.txt").read_text() == "a b c"
