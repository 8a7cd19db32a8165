"""llm-sandbox's container pool, on the same image: containers that stay and are handed on."""

import queue

from llm_sandbox import SandboxBackend
from llm_sandbox.pool import PoolConfig, PooledSandboxSession, create_pool_manager

from bench.floors import NOTHING, Rate, timed
from bench.places import PLAIN_IMAGE, PYTHON

# It calls the Python of a virtual environment, which it would make with pip and a network.
VENV = "/sandbox/.sandbox-venv/bin"
SET_UP = (f"mkdir -p {VENV}", f"ln -sf {PYTHON} {VENV}/python")


def run(count: int, concurrency: int) -> Rate:
    """Programs that do nothing, in a pool as large as the concurrency and full beforehand."""
    pool = create_pool_manager(
        backend=SandboxBackend.DOCKER,
        config=PoolConfig(max_pool_size=concurrency, min_pool_size=concurrency),
        lang="python",
        image=PLAIN_IMAGE,
        skip_environment_setup=True,
        runtime_configs={"network_mode": "none"},
    )
    failures: queue.SimpleQueue[str] = queue.SimpleQueue()

    def call() -> None:
        with PooledSandboxSession(pool_manager=pool) as session:
            result = session.run(NOTHING)
            if result.exit_code != 0:
                failures.put(result.stderr or result.stdout)

    try:
        sessions = [PooledSandboxSession(pool_manager=pool) for _ in range(concurrency)]
        for session in sessions:
            session.open()
            for command in SET_UP:
                session.execute_command(command)
        for session in sessions:
            session.close()
        rate = timed(call, count, concurrency)
    finally:
        pool.close()
    if not failures.empty():
        raise RuntimeError(f"llm-sandbox failed a program that does nothing: {failures.get()}")
    return rate
