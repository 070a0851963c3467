"""A change and its audit row, in one transaction."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.orm import Session

from api.deps import Services
from core.access import audit
from core.access.audit import Caller


class Identified(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str:
        """The id that the audit row names as its target."""


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
    """Call `change(session, tenant, ...)`, record it in the audit log as `operation`, and return the row's view."""
    with services.sessions.begin() as session:
        row = change(session, caller.tenant, *args, **kwargs)
        audit.record(session, caller, operation, row.id)
        return view(row)
