"""The health check of the workers on this host.

It runs often and while a job keeps the machine busy. So it loads only the database code and not Celery.
"""

import socket
import sys

from sqlalchemy.exc import SQLAlchemyError

from core import workers
from core.infra.database import one_session
from core.settings import Settings, read


def health() -> int:
    """Return 0 if this host has workers and all are healthy. Otherwise print the reason and return 1.

    The number is the exit status of the process.
    """
    settings, host = read(Settings), socket.gethostname()
    try:
        with one_session(settings) as session:
            names = workers.list_on_host(session, host)
            flaws = [f"{name} is not healthy" for name in workers.unhealthy(session, names, settings)]
        flaws += [] if names else [f"no worker of {host} is registered"]
    except SQLAlchemyError as error:  # one line only, because Docker keeps only the beginning of the output
        flaws = [f"the database is unreachable: {str(error).splitlines()[0]}"]
    sys.stdout.writelines(f"{flaw}\n" for flaw in flaws)
    return int(bool(flaws))
