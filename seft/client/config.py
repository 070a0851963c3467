"""Which service, and whose key: the environment, or else the file that `seft login` writes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

from seft.client.errors import SetupError

WAY_OUT = "Run `seft login`, or set it as `make up` prints it."


@dataclass(frozen=True, slots=True)
class Address:
    """A service and a key to it."""

    url: str
    api_key: str

    @classmethod
    def found(cls, url: str | None = None, api_key: str | None = None) -> Self:
        """What is given, else SEFT_URL and SEFT_API_KEY, else the file.

        The file's key goes to the file's address and to no other.
        """
        url = url or os.environ.get("SEFT_URL")
        api_key = api_key or os.environ.get("SEFT_API_KEY")
        kept = {} if url and api_key else _kept()
        url = checked(url or kept.get("url") or _missing("SEFT_URL"))
        if not api_key and kept and kept.get("url") != url:
            raise SetupError(f"SEFT_API_KEY is not set, and the key in {config_file()} is not for {url}. {WAY_OUT}")
        return cls(url, api_key or kept.get("api_key") or _missing("SEFT_API_KEY"))

    def keep(self) -> Path:
        """Write the file, for its owner's eyes only."""
        path = config_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
        return partial.replace(path)


def config_file() -> Path:
    """Where `seft login` writes: under XDG_CONFIG_HOME, or ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "seft" / "config.json"


def checked(url: str) -> str:
    """The address, if it can be one."""
    if not url.startswith(("http://", "https://")):
        raise SetupError(f"The address must begin with http:// or https://; it is {url!r}.")
    return url.rstrip("/")


def _missing(name: str) -> NoReturn:
    raise SetupError(f"{name} is not set. {WAY_OUT}")


def _kept() -> dict[str, str]:
    path = config_file()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {error}. Run `seft login` again.") from error
    return {name: value for name, value in kept.items() if isinstance(value, str)} if isinstance(kept, dict) else {}
