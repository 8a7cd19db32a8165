"""Real run: 1,300 outputs over 260 rows, executed on the local backend, many of them hostile.

What they print, are called, and are asked for is written to break out of a report.
"""

import json
from pathlib import Path
from typing import Any

from acceptance.command import Command, write_lines

ROWS, OUTPUTS = 260, 5
REPOS = {1: "tiny", 2: "second <b>repo</b>", 3: 'third" onmouseover="alert(1)', 4: "fourth & last"}
# {address} is a listener of the test: whatever reaches it was fetched.
HOSTILE = (
    "<script>document.documentElement.dataset.owned = 1; alert(1)</script>",
    "</script><script>document.documentElement.dataset.owned = 2; alert(2)</script>",
    '<img src="http://{address}/img" onerror="document.documentElement.dataset.owned = 3">',
    '"><svg onload="document.documentElement.dataset.owned = 4; alert(4)">',
    "<!-- <script> --!> </textarea></style></title><iframe src='http://{address}/frame'></iframe>",
    "<link rel=stylesheet href=http://{address}/css><style>@import 'http://{address}/i';</style>",
    "<meta http-equiv=refresh content='0;url=http://{address}/refresh'><base href=//{address}/>",
    "<a href='javascript:alert(7)'>click</a><form action=http://{address}/><button>go</button>",
    "{{{{ 7 * 7 }}}} {{% raw %}} ${{alert(8)}} [[constructor]] \\u003cscript\\u003ealert(8)",
    "\x1b[2J\x1b]0;title\x07\x1b[31m red \u202e reversed \u2028 line \u2029 \ufeff \x00 \x9b31m",
)


def hostile(number: int, address: str) -> str:
    return HOSTILE[number % len(HOSTILE)].format(address=address)


def code_of(number: int, address: str) -> str:
    """One output of a row: the first is executed, of others one in ten; bash, which is quick."""
    row, index = divmod(number, OUTPUTS)
    text = hostile(row, address)
    if index > 1 or (index == 1 and row % 10):
        if index == 4:  # names the script, but not as a command
            return f"echo number run.sh\n# {text}\n"
        return f"# no argument named, run.sh {text}\n"
    quoted = "'" + text.replace("\x00", "").replace("'", "'\\''") + "'"
    head = f"# number run.sh {number}\n"
    match row % 8:
        case 0 | 4:
            return head + f"printf '%s\\n' {quoted}\n"
        case 1:
            return head + f"printf '%s\\n' {quoted} >&2\nexit 3\n"
        case 2:
            return head + f"no-such-command-{row % 3} {quoted}\n"
        case 3:
            return head + "kill -SEGV $$\n"
        case 5 if row % 9 == 0:
            return head + "sleep 20\n"
        case 6 if row % 3 == 0:
            return head + PYTHON.format(text=json.dumps(text))
        case 7:
            return head + "head -c 100000 /dev/zero | tr '\\0' '<'\n"
        case _:
            return head + "echo fine\n"


PYTHON = """\
/usr/bin/python3 -S - <<'END'
class Evil(ValueError): pass
raise Evil({text})
END
"""


def make_run(home: Path, address: str) -> Command:
    """The run's command, not yet started."""
    workdir = home / "tiny"
    workdir.mkdir()
    tables = "".join(
        f"[environments.env{github_id}]\ngithub_ids = [{github_id}]\nrepo = {json.dumps(name)}\n"
        f'workdir = "{workdir}"\npython = "/usr/bin/python3"\n'
        "time_limit = { python = 1, bash = 1 }\n\n"
        for github_id, name in REPOS.items()
    )
    (home / "environments.toml").write_text(tables)
    rows: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    for row in range(ROWS):
        key = {"github_id": 1 + row % 4, "id": row}
        text = hostile(row, address)
        rows.append(
            {
                **key,
                "github": "https://example.org/tiny",
                "repo_id": 1,
                "path": "./",
                "arguments": repr({"name": "number", f"x{text}": "run.sh"}),
                "instruction": f"Do one thing. {text}",
                "oracle": "",
                "type": "Bash Script",
                "output": "bash run.sh number",
                "prefix_code": "",
            }
        )
        numbers = range(row * OUTPUTS, (row + 1) * OUTPUTS)
        outputs.append({**key, "output": [code_of(number, address) for number in numbers]})
    return Command(
        home / "command",
        write_lines(home / "outputs.jsonl", outputs),
        *("--dataset", write_lines(home / "rows.jsonl", rows)),
        *("--environments", home / "environments.toml"),
        *("--backend", "local", "--concurrency", "4", "--memory", "128m"),
    )
