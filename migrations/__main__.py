"""`python -m migrations` brings the database to the newest schema; `python -m migrations back` undoes the last step."""

import sys

from core.settings import Settings
from migrations import downgrade, upgrade

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            upgrade(Settings())
        case ["back"]:
            downgrade(Settings())
        case words:
            sys.exit(f"nothing, or `back`, and not {' '.join(words)!r}")
