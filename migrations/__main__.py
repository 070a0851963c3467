"""`python -m migrations` upgrades the database to the newest schema. `python -m migrations back` undoes one step."""

import sys

from core.settings import DatabaseSettings, read
from migrations import downgrade, upgrade

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            upgrade(read(DatabaseSettings))
        case ["back"]:
            downgrade(read(DatabaseSettings))
        case words:
            sys.exit(f"the only argument allowed is `back`; it is {' '.join(words)!r}. Give no argument to upgrade.")
