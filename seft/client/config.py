"""The address and the API key of the service, from the environment or from the file that `seft login` writes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

from seft.client.errors import SetupError

WAY_OUT = "Run `seft login`, or set the variable to the value that `make up` prints."


@dataclass(frozen=True, slots=True)
class Address:
    """Address and API key of a service."""

    url: str
    api_key: str

    @classmethod
    def resolve(cls, url: str | None = None, api_key: str | None = None) -> Self:
        """Return the given address and key.

        What is None comes from SEFT_URL and SEFT_API_KEY, or else from the saved file. The key in the file is only used
        with the address in the file. Raises SetupError if the address or the key is missing.
        """
        url = url or os.environ.get("SEFT_URL")
        api_key = api_key or os.environ.get("SEFT_API_KEY")
        saved = {} if url and api_key else _saved()
        url = require_http(url or saved.get("url") or _missing("SEFT_URL"))
        if not api_key and saved and saved.get("url") != url:
            raise SetupError(f"SEFT_API_KEY is not set, and the key in {config_file()} is not for {url}. {WAY_OUT}")
        return cls(url, api_key or saved.get("api_key") or _missing("SEFT_API_KEY"))

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
    """Return the address without a trailing slash. Raises SetupError if it does not begin with http:// or https://."""
    if not url.startswith(("http://", "https://")):
        raise SetupError(f"The address of the service (SEFT_URL) must begin with http:// or https://; it is {url!r}.")
    return url.rstrip("/")


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
