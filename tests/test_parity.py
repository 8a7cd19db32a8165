"""A short pass of the parity benchmark: the same verdicts at eight at once beside busy cores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_AGAIN = 4  # of a dozen, most of which end near the limit


@pytest.mark.timeout(400)  # 15 s on a quiet machine
@pytest.mark.parametrize(
    "backend",
    [
        "local",
        # Beside hogs, threads of one Python lock can still be counted too long in containers.
        pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.soak]),
    ],
)
def test_verdicts_beside_busy_cores_follow_from_the_sources(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Threads, processes, bursts and children: none flips, with a hog on each core."""
    if backend == "docker":
        request.getfixturevalue("conformance_image")
    report = tmp_path / "parity.json"
    options = f"--short --backend {backend} --clock fair --concurrency 8 --hog 1 --limit 1"
    subprocess.run(
        [sys.executable, "-m", "bench.parity", *options.split(), "--json", report],
        cwd=ROOT,
        env={**os.environ, "MLBENCH_EAP_PYTHON": ""},
        check=True,
        timeout=380,
    )
    content = json.loads(report.read_bytes())
    (judged,) = (one["judged"] for one in content["passes"])
    expected = {name: case["expected"] for name, case in content["corpus"].items()}
    assert len(judged) == len(expected) == 12
    assert {name: seen["status"] for name, seen in judged.items()} == expected, judged
    assert sum(seen["contended"] for seen in judged.values()) <= MOST_AGAIN
