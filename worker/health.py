"""Whether the workers of this host are well.

It is asked again and again beside a job that takes the machine: it loads what it needs of the database, and no Celery.
"""

import socket
import sys

from sqlalchemy.exc import SQLAlchemyError

from core import workers
from core.infra.database import make_engine, make_sessions
from core.settings import Settings


def health() -> int:
    """Whether this host has workers, all of them well, for an orchestrator's health check: status 0, or 1 and why."""
    settings, host = Settings(), socket.gethostname()
    engine = make_engine(settings)
    try:
        with make_sessions(engine).begin() as session:
            names = workers.list_on_host(session, host)
            flaws = [f"{name} is not well" for name in workers.unhealthy(session, names, settings)]
        flaws += [] if names else [f"no worker of {host} has shown itself"]
    except SQLAlchemyError as error:  # a line of it: Docker keeps the beginning only of what is said
        flaws = [f"the database does not answer: {str(error).splitlines()[0]}"]
    engine.dispose()
    sys.stdout.writelines(f"{flaw}\n" for flaw in flaws)
    return int(bool(flaws))
