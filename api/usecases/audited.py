"""Make a change and write its audit row, in one transaction."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.orm import Session

from api.deps import Services
from core.access import audit
from core.access.audit import Caller


class Identified(Protocol):
    """A row that has an id."""

    @property
    def id(self) -> str:
        """Id of the row. The audit row stores it as the target of the change."""


Row = TypeVar("Row", bound=Identified)
View = TypeVar("View")
Params = ParamSpec("Params")


def audited(
    services: Services,
    caller: Caller,
    operation: str,
    view: Callable[[Row], View],
    change: Callable[Concatenate[Session, str, Params], Row],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> View:
    """Call `change(session, tenant, ...)`, write an audit row for it, and return the changed row's view.

    `operation` is the name of the change in the audit log.
    """
    with services.sessions.begin() as session:
        row = change(session, caller.tenant, *args, **kwargs)
        audit.record(session, caller, operation, row.id)
        return view(row)
