"""`python -m migrations` upgrades the database to the newest schema.

`python -m migrations back REVISION` undoes the migrations after this revision.
"""

import sys

from alembic.util import CommandError

from core.settings import DatabaseSettings, read
from migrations import downgrade, upgrade

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            upgrade(read(DatabaseSettings))
        case ["back", revision]:
            try:
                downgrade(read(DatabaseSettings), revision)
            except (ValueError, CommandError) as error:
                sys.exit(f"{error}.")
        case words:
            sys.exit(
                f"the arguments must be `back REVISION`, or none to upgrade; they are {' '.join(words)!r}. REVISION is"
                " the newest revision of the older version."
            )
