"""Push results of jobs into repositories of the model hub, in a background thread of every worker.

The thread has the network and the tenant's hub token, which the training process never has. Each push is a row in the
database. A worker claims a row with a lease before it uploads, and renews the lease during the upload.
"""

import threading
from functools import partial

import structlog
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import override

from core.access.encryption import Encryption
from core.access.hub_tokens import HubTokens
from core.errors import ProblemError
from core.infra.storage import Storage
from core.jobs import pushes
from core.jobs.pushes import ClaimedPush
from core.poller import Poller, renewed
from core.settings import Settings
from worker.hub_upload import DENIED_WAY_OUT, PushError, upload

log = structlog.get_logger(__name__)


class Pusher(Poller):
    """The background thread that does due pushes, one at a time. If `draining` is set, it claims no further push."""

    def __init__(
        self, settings: Settings, sessions: sessionmaker[Session], storage: Storage, draining: threading.Event
    ) -> None:
        super().__init__("pusher")
        self.sessions, self.storage, self.draining = sessions, storage, draining
        self.tokens = HubTokens(Encryption(settings), sessions)

    @override
    def poll(self) -> int:
        """Do the next due push. Return 1, or 0 if no push is due or the worker shuts down."""
        if self.draining.is_set():
            return 0
        with self.sessions.begin() as session:
            push = pushes.claim(session)
        if push is None:
            return 0
        with (
            structlog.contextvars.bound_contextvars(push=push.id, job=push.job_id, tenant=push.tenant),
            renewed(partial(self._renew, push), pushes.LEASE.total_seconds() / 4, self.name),
        ):
            self._push(push)
        return 1

    def _push(self, push: ClaimedPush) -> None:
        try:
            if push.number > pushes.MAX_TRIES:  # the worker of the last try has ended
                message = f"The last of {pushes.MAX_TRIES} tries was interrupted. {pushes.AGAIN.format(push.job_id)}"
                raise PushError("interrupted", message, retry=False)
            url = upload(self.storage, self._token(push), push, partial(self._renew, push))
        except PushError as error:
            log.warning("push.failed", code=error.code, number=push.number, retry=error.retry, error=error.message)
            with self.sessions.begin() as session:
                pushes.record_failure(session, push, error.code, error.message, retry=error.retry)
        else:
            with self.sessions.begin() as session:
                pushes.record_success(session, push, url)
            log.info("push.done", number=push.number)

    def _token(self, push: ClaimedPush) -> str:
        """Return the tenant's token. Raises PushError if there is none, or if it cannot be decrypted."""
        try:
            token = self.tokens.get(push.tenant)
        except ProblemError as error:
            raise PushError("hub_token_not_decryptable", error.message, retry=True) from error
        if token is None:
            message = f"Your tenant has no hub token. {DENIED_WAY_OUT.format(push.job_id)}"
            raise PushError("no_hub_token", message, retry=False)
        return token

    def _renew(self, push: ClaimedPush) -> bool:
        with self.sessions.begin() as session:
            return pushes.renew(session, push)
