"""The address and the API key of the service, from the environment or from the file that `seft login` writes."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

import httpx2

from seft.client.errors import SetupError

LARGEST_PORT = 65535
WAY_OUT = "Run `seft login`, or set the variable to the value that `make up` prints."


@dataclass(frozen=True, slots=True)
class Address:
    """Address and API key of a service."""

    url: str
    api_key: str

    @classmethod
    def resolve(cls, url: str | None = None, api_key: str | None = None) -> Self:
        """Return the given address and key.

        An argument that is None comes from SEFT_URL or SEFT_API_KEY, or else from the saved file. The key in the file
        is only used with the address in the file. An empty variable counts as not set. Raises SetupError if the address
        or the key is missing or invalid.
        """
        if url is None:
            url = os.environ.get("SEFT_URL") or None
        if api_key is None:
            api_key = os.environ.get("SEFT_API_KEY") or None
        saved = _saved() if url is None or api_key is None else {}
        url = require_http(saved.get("url") or _missing("SEFT_URL") if url is None else url)
        if api_key is not None:
            return cls(url, require_key(api_key))
        if saved and saved.get("url") != url:
            raise SetupError(f"SEFT_API_KEY is not set, and the key in {config_file()} is not for {url}. {WAY_OUT}")
        return cls(url, require_key(saved.get("api_key") or _missing("SEFT_API_KEY")))

    def save(self) -> Path:
        """Write address and key to the file of `seft login`, readable only by its owner. Returns its path."""
        path = config_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
        return partial.replace(path)


def config_file() -> Path:
    """Return the path of the file that `seft login` writes, below XDG_CONFIG_HOME or ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "seft" / "config.json"


def require_http(url: str) -> str:
    """Return the address without a trailing slash. Raises SetupError if it is not a URL with http:// or https://."""
    scheme, separator, rest = url.partition("://")
    if re.search(r"^[^/]*@|[?#]", rest if separator else url):
        raise SetupError(  # without the value, which may have a password
            "The address of the service (SEFT_URL) must not have a user name, a password, a query or a fragment."
            " Write it as https://seft.example.com, and give the key as SEFT_API_KEY."
        )
    url = f"{scheme.lower()}{separator}{rest}"
    if not url.startswith(("http://", "https://")):
        raise SetupError(f"The address of the service (SEFT_URL) must begin with http:// or https://; it is {url!r}.")
    try:
        parsed = httpx2.URL(url)
        parsed.raw_host.decode().encode("idna")  # finds a name that cannot be looked up, such as a..b
        if not re.fullmatch(r"[\w.:-]+", parsed.host) or (parsed.port or 0) > LARGEST_PORT:
            raise ValueError("its host or its port is wrong")
    except (httpx2.InvalidURL, ValueError) as error:
        raise SetupError(
            f"The address of the service (SEFT_URL) must be a valid URL; it is {url!r}: {str(error).rstrip('.')}."
            " Write it as https://seft.example.com or http://127.0.0.1:8000."
        ) from error
    return url.rstrip("/")


def require_key(api_key: str) -> str:
    """Return the key. Raises SetupError if it is empty, or has a character that an HTTP header cannot have.

    The error does not show the key, because it is a secret.
    """
    if not api_key:
        raise SetupError("The API key must not be empty. Check the variable or the file that you take it from.")
    if wrong := re.search(r"[^!-~]", api_key):
        raise SetupError(
            "The API key (SEFT_API_KEY) must only have visible ASCII characters;"
            f" character {wrong.start() + 1} is {wrong[0]!r}. Copy the key again."
        )
    return api_key


def _missing(name: str) -> NoReturn:
    raise SetupError(f"{name} is not set. {WAY_OUT}")


def _saved() -> dict[str, str]:
    path = config_file()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}. Run `seft login` again.") from error
    return {name: value for name, value in saved.items() if isinstance(value, str)} if isinstance(saved, dict) else {}
