"""Environments: the catalogue, and a user's file laid over it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.environments import (
    OFFLINE,
    Environment,
    Environments,
    Mount,
    load_catalogue,
    load_environments,
    offline,
)
from mlbench_exec.errors import InputError

TEST_GITHUB_IDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "environments.toml"


def load(file: Path, text: str) -> Environments:
    file.write_text(text, encoding="utf-8")
    return load_environments(file)


def served(environments: Environments, github_id: int) -> Environment:
    environment = environments.for_github_id(github_id)
    assert environment is not None
    return environment


def test_the_catalogue_serves_every_test_row() -> None:
    """Each of the 14 github_ids has one environment, named like its conda environment."""
    environments = load_environments()
    assert sorted(one.github_ids[0] for one in environments) == TEST_GITHUB_IDS
    assert all(one.conda_env == one.name == name for name, one in load_catalogue().items())
    assert all(one.workdir.endswith(f"/{one.repo}") for one in environments)
    assert environments.for_github_id(12) is None


@pytest.mark.parametrize(
    ("github_id", "python_s", "bash_s"), [(5, 4.0, 4.0), (11, 7.0, 10.0), (9, 10.0, 10.0)]
)
def test_time_limits_are_ml_benchs(github_id: int, python_s: float, bash_s: float) -> None:
    """The limits that differ from 10 seconds are those of github_id 5 and 11."""
    limits = served(load_environments(), github_id).time_limit_s
    assert limits == {"python": python_s, "bash": bash_s}


def test_a_known_name_keeps_what_the_file_leaves_out(file: Path) -> None:
    """A table named like a built-in environment changes only the fields it gives."""
    environments = load(file, '[environments.V2V_DS]\npreload = ["torch"]\ntime_limit.python = 2')
    before, after = load_catalogue()["V2V_DS"], served(environments, 5)
    assert len(environments) == 14
    assert after.preload == ("torch",)
    assert after.time_limit_s == {"python": 2.0, "bash": 4.0}
    assert (after.repo, after.workdir, after.conda_env, after.image) == (
        before.repo,
        before.workdir,
        before.conda_env,
        before.image,
    )


def test_python_takes_the_place_of_the_conda_environment(file: Path) -> None:
    """Naming an interpreter clears the built-in conda environment."""
    after = served(load(file, '[environments.EAP_DS]\npython = "/srv/venv/bin/python"'), 9)
    assert (after.python, after.conda_env) == ("/srv/venv/bin/python", None)


def test_a_new_environment_takes_a_github_id_over(file: Path) -> None:
    """The built-in environment of a claimed github_id is left out; other ids are added."""
    text = '[environments.mine]\ngithub_ids = [9, 77]\nworkdir = "/srv//repos/Ours/"'
    environments = load(file, text)
    mine = served(environments, 9)
    assert environments.for_github_id(77) is mine
    assert "EAP_DS" not in {one.name for one in environments}
    assert (mine.workdir, mine.repo) == ("/srv/repos/Ours", "Ours")
    assert (mine.image, mine.conda_env, mine.python) == (None, None, None)
    assert mine.time_limit_s == {"python": 10.0, "bash": 10.0}


def test_a_whole_table_is_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every documented field arrives, and `~` in a mount's source is the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    environments = load(
        file,
        """
        [environments.ours]
        github_ids = [900]
        repo = "shown"
        workdir = "/srv/repos/ours"
        conda_env = "ours"
        image = "registry/name:tag"
        preload = ["torch", "a.b"]
        time_limit = {python = 1, bash = 2.5}
        [environments.ours.env]
        HF_HOME = "/cache"
        [[environments.ours.mounts]]
        source = "~/weights"
        target = "/deep_data/"
        mode = "rw"
        """,
    )
    assert served(environments, 900) == Environment(
        name="ours",
        github_ids=(900,),
        repo="shown",
        workdir="/srv/repos/ours",
        conda_env="ours",
        image="registry/name:tag",
        preload=("torch", "a.b"),
        time_limit_s={"python": 1.0, "bash": 2.5},
        env={"HF_HOME": "/cache"},
        mounts=(Mount(source=f"{tmp_path}/weights", target="/deep_data", mode="rw"),),
    )


NEW = '[environments.ours]\ngithub_ids = [900]\nworkdir = "/srv/ours"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[environments.EAP_DS]\nwrokdir = "/x"',
            "[environments.EAP_DS]: unknown key 'wrokdir': did you mean workdir?",
        ),
        (NEW + "time_limit = {pyton = 1}", "time_limit: unknown key 'pyton': did you mean python?"),
        (
            NEW + 'mounts = [{source = "/a", traget = "/b"}]',
            "mounts[0]: unknown key 'traget': did you mean target?",
        ),
        (NEW + "zzz = 1", "unknown key 'zzz': the known keys are github_ids, repo,"),
        (NEW + "time_limit = {python = 0}", "time_limit: python = 0.0 is no limit"),
        (NEW + "time_limit = {bash = nan}", "time_limit: bash = nan is no limit"),
        (NEW + "time_limit = {bash = inf}", "time_limit: bash = inf is no limit"),
        (NEW + "time_limit = 5", "time_limit: expected `table`, got `int`"),
        (NEW + "env = {THREADS = 1}", "write the value of THREADS in quotes"),
        (NEW + 'env = {"A=B" = "1"}', "env: 'A=B' is not a variable's name"),
        (NEW + 'mounts = [{source = "a", target = "/b"}]', "mounts[0].source: 'a' is not absolute"),
        (
            NEW + 'mounts = [{source = "/a", target = "b"}]',
            "mounts[0].target: 'b' is not an absolute",
        ),
        (
            NEW + 'mounts = [{source = "/a", target = "/b"}, {source = "/c", target = "/b/"}]',
            "mounted twice",
        ),
        (NEW + 'mounts = [{source = "/a", target = "/b", mode = "w"}]', "mounts[0].mode: "),
        (NEW + 'python = "/a"\nconda_env = "b"', "conda_env is given too"),
        (NEW + 'python = "bin/python"', "python: 'bin/python' is not absolute"),
        (NEW + 'preload = ["a b"]', "preload: 'a b' is not a module's name"),
        (NEW + 'image = ""', "image: is empty"),
        ('[environments.ours]\nworkdir = "/srv/ours"', "github_ids: is missing"),
        ("[environments.ours]\ngithub_ids = [900]", "workdir: is missing"),
        ('[environments.ours]\ngithub_ids = []\nworkdir = "/srv"', "github_ids: is empty"),
        (
            '[environments.ours]\ngithub_ids = ["9"]\nworkdir = "/srv"',
            "github_ids[0]: expected `int`",
        ),
        (
            '[environments.EAP_DS]\nworkdir = "repos/x"',
            "workdir: 'repos/x' is not an absolute path",
        ),
        ('[environments.EAP_DS]\nworkdir = "/srv/../x"', "workdir: '/srv/../x' is not"),
        ('[environments.EAP_DS]\nworkdir = "/"', "workdir: '/' is not"),
        ('[environments."a/b"]\ngithub_ids = [900]\nworkdir = "/srv"', "name: use letters"),
        (
            NEW + '[environments.other]\ngithub_ids = [900]\nworkdir = "/x"',
            "[environments.other]: github_ids: 900 belongs to [environments.ours]",
        ),
        (
            NEW.replace("900", "9") + '[environments.EAP_DS]\npreload = ["torch"]',
            "9 belongs to [environments.ours] too",
        ),
        ("[environments]\nours = 1", "[environments.ours]: expected `table`"),
        ("[environment.ours]", "unknown key 'environment' at the top"),
        ("", "holds no environment"),
        ("[environments", "is not valid TOML"),
        ("a = " + "[" * 5000, "nested too deeply"),
        (NEW + "time_limit = {python = " + "9" * 5000 + "}", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(file: Path, text: str, message: str) -> None:
    """Each mistake is an `InputError` that names the file, the environment and the field."""
    with pytest.raises(InputError) as caught:
        load(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_missing_file_is_named(file: Path) -> None:
    """A path that isn't there is the user's mistake, said by name."""
    with pytest.raises(InputError, match=r"environments\.toml: can't be read"):
        load_environments(file)


VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["/a", "~", "~\0", "rw", "torch", "/", ".."]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["python", "bash", "source", "target", "A"]), inner)
    ),
    max_leaves=6,
)
FIELDS = [*Environment.__struct_fields__, "time_limit", "zzz"]


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    raise AssertionError(value)


@pytest.mark.slow
@settings(deadline=None)
@given(
    name=st.sampled_from(["EAP_DS", "ours"]),
    table=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
)
def test_no_table_raises_anything_but_input_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, table: dict[str, object]
) -> None:
    """Whatever stands in a table, loading gives environments or an `InputError`."""
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    file.write_text(f"[environments]\n{name} = {toml(table)}\n", encoding="utf-8")
    try:
        environments = load_environments(file)
    except InputError:
        return
    assert name in {one.name for one in environments}


@pytest.mark.slow
@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}=".\n#abc190-', max_size=60).map(str.encode))
def test_no_file_raises_anything_but_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Whatever the file holds, TOML or not, the one error is `InputError`."""
    file = tmp_path_factory.getbasetemp() / "fuzz-bytes.toml"
    file.write_bytes(content)
    with pytest.raises(InputError):
        load_environments(file)


@pytest.mark.parametrize(
    ("environment", "mounts", "is_told"),
    [
        ({"env": {"HF_HOME": "/weights/hf"}}, [], True),
        ({"env": {"TRANSFORMERS_CACHE": "/weights"}}, [], True),
        ({"mounts": (Mount(source="/a", target="/home/mlbench/.cache/huggingface"),)}, [], True),
        ({}, [Mount(source="/a", target="/root/.cache/huggingface/hub")], True),
        ({"env": {"HF_HOME": ""}}, [Mount(source="/a", target="/huggingface")], False),
        ({"mounts": (Mount(source="/a", target="/deep_data"),)}, [], False),
    ],
)
def test_a_cache_of_hugging_faces_makes_its_libraries_stay_offline(
    environment: dict[str, Any], mounts: list[Mount], is_told: bool
) -> None:
    """Where a variable or mount gives one, and only there."""
    before = Environment(name="e", github_ids=(1,), repo="r", workdir="/w", **environment)
    after = offline(before, mounts)
    assert {name: value for name, value in after.env.items() if name.endswith("OFFLINE")} == (
        OFFLINE if is_told else {}
    )
    assert before.env.items() <= after.env.items()
    assert offline(after, mounts) == after


def test_ones_own_word_on_being_offline_goes_before() -> None:
    """A user who has set one of the variables keeps it."""
    env = {"HF_HOME": "/hf", "HF_HUB_OFFLINE": "0"}
    before = Environment(name="e", github_ids=(1,), repo="r", workdir="/w", env=env)
    assert offline(before).env["HF_HUB_OFFLINE"] == "0"
