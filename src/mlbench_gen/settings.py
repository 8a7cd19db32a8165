"""Settings: what is asked of a model, and how its server is reached, as frozen values."""

import math
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mlbench_exec import InputError

__all__ = ["DEFAULT_KEY", "Sampling", "Service"]

DEFAULT_KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
NO_KEY = "none"  # what servers get that ask for no key


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. The defaults are ML-Bench's. `params` go into each request as they are;
    one that is None takes the parameter of that name out."""

    model: str
    samples: int = 5
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    max_tokens: int | None = None  # for each answer
    params: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples {self.samples}: ask for 1 at least")

    def request(self) -> dict[str, Any]:
        """The parameters of a request, without its messages and its number of answers."""
        given: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            **self.params,
        }
        return {name: value for name, value in given.items() if value is not None}


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is reached. The key itself is never a setting: it stays in the environment."""

    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's own
    api_version: str | None = None  # Azure's; None for a server that goes without
    key_env: str = DEFAULT_KEY
    stream: bool = False
    one_at_a_time: bool = False  # never ask for several answers in one request
    concurrency: int = 16  # requests at once
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 600.0  # for one request, to its last byte
    attempts: int = 10  # for each request
    backoff_s: float = 1.0  # before the second attempt; doubled for each further one

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts", "timeout_s"):
            if not (0 < getattr(self, name) < math.inf):
                raise InputError(f"{name} {getattr(self, name)}: give a number above 0")
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise InputError(f"{name} {value}: give a number above 0, or leave it out")
        if self.base_url is not None:
            _check_url(self.base_url, "--base-url")

    def address(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The base URL; None is OpenAI's own. Raises `InputError`.

        With an `api_version`, where only a host is named, it gets the path that Azure has.
        """
        url = self.base_url
        if url is None and (url := environ.get(BASE_URL) or None):
            _check_url(url, BASE_URL)
        if self.api_version is None:
            return url
        if url is None:
            raise InputError("--api-version needs --base-url https://RESOURCE.openai.azure.com")
        return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/openai"

    def key(self, environ: Mapping[str, str] = os.environ) -> str:
        """The key. Raises `InputError` where there is none, and the server is not one's own."""
        if key := environ.get(self.key_env, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise InputError(
                    f"{self.key_env} holds characters that no key has: export the key itself"
                )
            return key
        if self.key_env == DEFAULT_KEY and (self.base_url or environ.get(BASE_URL)):
            return NO_KEY
        raise InputError(
            f"the environment has no {self.key_env}: export {self.key_env}=… first, "
            "or name the variable that holds your key with --key-env"
        )


def _check_url(url: str, name: str) -> None:
    """Addresses are shown and kept, so nothing secret may stand in them."""
    try:
        parts = urlsplit(url)
        has_secret = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None  # not the address: it may hold a password
    if has_secret:
        raise InputError(f"{name} holds a user name or password: keys belong into --key-env")
    if parts.query or parts.fragment:
        raise InputError(
            f"{name} holds a query: leave out what follows the path; Azure's api-version is given "
            "by --api-version, and keys belong into --key-env"
        )
    try:
        _ = parts.port  # read only when it is asked for
    except ValueError as error:
        raise InputError(f"{name} {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable():
        raise InputError(f"{name} {url!r}: write http(s)://host/v1")
