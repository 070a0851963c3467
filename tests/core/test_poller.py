"""The thread that renews the lease of a claim while the work lasts."""

import threading

import pytest

from core.poller import renewed
from tests.waiting import wait_for


def test_a_lease_is_renewed_until_the_work_ends_even_if_a_renewal_or_the_work_fails() -> None:
    renewals = list[str]()

    def renew() -> None:
        renewals.append(threading.current_thread().name)
        raise OSError("the database is away")

    def work() -> None:
        with renewed(renew, 0.01, "test"):
            wait_for(lambda: len(renewals) > 2)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert renewals[0] not in {thread.name for thread in threading.enumerate()}
