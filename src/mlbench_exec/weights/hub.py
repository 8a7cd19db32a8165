"""Hub: one repository of the Hugging Face Hub, by huggingface_hub; the only file that knows it."""

import importlib
from collections.abc import Iterable
from pathlib import Path

from mlbench_exec.weights.download import DownloadFailed


def snapshot(
    repository: str, *, revision: str | None, files: Iterable[str], cache: Path, folder: Path | None
) -> tuple[Path, str]:
    """Get a repository's files into the Hub's `cache`, or into `folder`. Blocks.

    Returns where they are and the revision. Raises `DownloadFailed`.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise DownloadFailed(
            f'{repository}: Hub models need the hub extra: pip install "mlbench-exec[hub]"'
        ) from None
    try:
        # Into the cache by the revision's name, which offline readers look up there.
        commit = hub.HfApi().model_info(repository, revision=revision, timeout=60).sha
        place = hub.snapshot_download(
            repository,
            revision=commit if folder else revision,
            allow_patterns=list(files) or None,
            cache_dir=None if folder else cache,
            local_dir=folder,
        )
    except Exception as error:  # the client raises its own, its transport's and the system's
        raise DownloadFailed(
            f"Hub: {repository}: {_first_line(error)}. Some models ask for an accepted "
            "licence: log in with `hf auth login`"
        ) from error
    return Path(place), str(commit if folder else Path(place).name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
