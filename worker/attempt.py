"""One attempt at a job, from the claim to its end: the training process is started, listened to, and ended in time.

Everything that happens (a message, a finished transfer, the process's end) is posted to one mailbox and handled in one
thread, which also renews the lease; nothing in that thread waits for object storage or for the process.
"""

import errno
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, Queue

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from core import workers
from core.capability import CPU
from core.errors import LeaseLostError, ProblemError
from core.infra.storage import Storage
from core.infra.tracing import TRACER
from core.jobs import attempts, retention
from core.jobs.attempts import Attempt, Fault
from core.settings import Settings
from core.states import OUT_OF_MEMORY, Reason
from core.tables import Json
from seft.errors import SourceError
from seft.models.source import UNREACHABLE
from worker import cleanup, disk_space, memory
from worker.files import Files
from worker.ledger import Ledger
from worker.meter import WHOLE, Stage, progress
from worker.process import Process
from worker.protocol import (
    Failed,
    Finished,
    Measured,
    NoDiskSpace,
    Progressed,
    Refused,
    Saved,
    Scored,
    Stopped,
    TopologyEvolved,
    decode,
)
from worker.transfers import GoneError, StorageFullError, TransferError, Transfers
from worker.watchdog import Watchdog

TRAINING = (sys.executable, "-m", "worker.child")
TICK_SECONDS = 0.1
DRAIN_SECONDS = 20.0
"""From the wish to shut down to the job's release; orchestrators kill after 30."""
PAUSE_SECONDS = 120.0
"""From the wish to pause to the same; nobody kills, but somebody wants the device."""
STACK_SECONDS = 2.0
"""So long a process that hangs has for writing down where."""
TIDY_SECONDS = 10.0

log = structlog.get_logger(__name__)


class AttemptError(Exception):
    """The attempt has failed; `user_error` when another one would fail alike."""

    def __init__(self, code: str, message: str, *, user_error: bool = False, by_kernel: bool = False) -> None:
        super().__init__(message)
        self.code, self.user_error, self.by_kernel = code, user_error, by_kernel


class Supervisor:
    """Does one attempt. Set `draining` at any time, and the job goes back to the queue with its newest state.

    What the tenant wishes meanwhile, the heartbeats bring: a pause ends the attempt in the same way.
    """

    def __init__(
        self,
        attempt: Attempt,
        sessions: sessionmaker[Session],
        storage: Storage,
        settings: Settings,
        *,
        draining: threading.Event,
        training: Sequence[str] = TRAINING,
    ) -> None:
        self.attempt, self.sessions, self.storage, self.settings = attempt, sessions, storage, settings
        self.draining, self.training = draining, training
        self.state: dict[str, Json] = {}
        self.mailbox: Queue[Callable[[], None]] = Queue()
        self.ledger = Ledger(sessions, attempt, settings)
        self.transfers = Transfers(storage, self.mailbox.put)
        self.files = Files(attempt, settings, self.transfers)
        self.process: Process | None = None
        self.process_ended = self.finished = self.over = False
        self.well = True
        self.watchdog, self.hung, self.stacks_by = Watchdog(), "", float("inf")
        self.kills_before = memory.kills()
        self.leave_by = float("inf")
        self.told_enough = attempt.stop_step is not None

    def run(self) -> bool:
        """Until the job has moved on; whatever happens, the process group is gone afterwards.

        False when it failed on our side: this worker may be what is broken.
        """
        try:
            self._run()
        except LeaseLostError as error:
            trace.get_current_span().set_status(StatusCode.ERROR, "attempt.lost")
            log.warning("attempt.lost", reason=str(error))
        finally:
            self._end_process()
            self.transfers.close(self._tidy, TIDY_SECONDS)
        return self.well

    def _run(self) -> None:
        try:
            self.transfers.submit(self._fetch, self._start)
            while not self.over:
                self.ledger.tick()
                self._mind_leaving()
                self._mind_stopping()
                self._mind_hanging()
                with suppress(Empty):
                    self.mailbox.get(timeout=TICK_SECONDS)()
        except AttemptError as error:
            self._fail(error)
        except StorageFullError as error:
            self._set_aside(Reason.STORAGE_FULL, str(error), 0)
        except TransferError as error:
            self._fail(AttemptError("storage_failed", str(error)))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._set_aside(Reason.DISK_FULL, str(error), None)
            else:
                told = f"{error}. Look at the disk of {self.settings.scratch}."
                self._fail(AttemptError("scratch_failed", told))
        except LeaseLostError:
            raise
        except Exception:
            log.exception("attempt.broken")
            told = "Something unforeseen happened in the worker; its log has the rest."
            self._fail(AttemptError("internal_error", told))

    def _fetch(self) -> GoneError | None:
        """In the thread of the transfers."""
        try:
            return self.files.fetch()
        except SourceError as error:
            raise AttemptError(error.code, str(error), user_error=error.code != UNREACHABLE) from error
        except ProblemError as error:
            told = f"{error.message} Look at SEFT_SECRET_KEY of this worker."
            raise AttemptError("hub_token_sealed", told) from error

    def _start(self, gone: GoneError | None) -> None:
        """A state that is gone costs the steps that were taken and not the job."""
        if gone:
            self._begin_anew("state.missing", str(gone))
        elif resume := self.attempt.resume:
            self.state = {file["name"]: file for file in resume["files"]}
            self._tell("attempt.resumed", {"step": resume["step"]})
        self.process = Process(
            self.training,
            self.files.folder,
            heard=lambda line: self.mailbox.put(partial(self._hear, line)),
            ended=lambda code: self.mailbox.put(partial(self._process_has_ended, code)),
        )

    def _hear(self, line: bytes) -> None:
        try:
            message = decode(line)
        except ValueError as error:
            raise AttemptError("protocol_broken", f"The training process wrote no message: {line[:200]!r}") from error
        self.watchdog.hear(message)
        match message:
            case Progressed() | Measured() | TopologyEvolved() | Scored():
                self.ledger.note(message)
            case Saved(step=step):
                self.transfers.submit(partial(self.files.upload_state, step), partial(self._keep_state, step))
            case Refused():
                self._begin_anew("state.refused", message.message)
            case Finished():
                self._take_result(message)
            case Failed():
                raise AttemptError(message.code, message.message, user_error=message.user_error)
            case NoDiskSpace():
                self._set_aside(Reason.DISK_FULL, message.message, message.needed)
            case Stopped():
                log.info("training.stopped")

    def _keep_state(self, step: int, files: list[Json]) -> None:
        """A state is stored: point to it, then let go of what it replaces.

        What was reported before it is written first: who goes on from it will not report that again.
        """
        self.ledger.flush()
        self.state |= {file["name"]: file for file in files}
        pointer = {"step": step, "files": list(self.state.values())}
        former = self.ledger.write(lambda session: attempts.save_resume(session, self.attempt, pointer))
        self._tell("state.saved", {"step": step})
        self.files.remove_state(step)
        needed = {file["key"] for file in self.state.values()}
        replaced = [file["key"] for file in (former or {"files": []})["files"] if file["key"] not in needed]
        self.transfers.submit(partial(self.transfers.delete, replaced), lambda _: None)

    def _take_result(self, result: Finished) -> None:
        self.finished = True
        self._end_process()
        self.ledger.note(
            Progressed(phase=Stage.UPLOADING.phase, progress=progress(WHOLE, Stage.UPLOADING, 0.0), step=result.step)
        )
        self.transfers.submit(self.files.upload_result, partial(self._publish, result))

    def _publish(self, result: Finished, files: list[Json]) -> None:
        self.ledger.flush()
        with TRACER.start_as_current_span("publish"):
            self.ledger.write(
                lambda session: attempts.publish(
                    session,
                    self.attempt,
                    step=result.step,
                    prefix=self.files.result_prefix,
                    sha256=files[-1]["sha256"],
                    files=files,
                    scores=result.scores,
                    measured=result.measured,
                    days=retention.checkpoint_days(self.attempt.spec, self.settings),
                )
            )
        self._finish("attempt.succeeded")

    def _process_has_ended(self, code: int) -> None:
        self.process_ended = True
        if self.finished or self.leaving:
            return
        assert self.process is not None
        if code == -signal.SIGKILL and memory.kills() > self.kills_before:
            told = "The kernel ended the training process because the machine's memory ran out."
            raise AttemptError(OUT_OF_MEMORY, told, user_error=True, by_kernel=True)
        raise AttemptError(
            "training_process_died", f"The training process ended with {code}. Its last output:\n{self.process.tail}"
        )

    def _mind_hanging(self) -> None:
        """Have a process that hangs write down where, and end the attempt with that."""
        if self.process is None or self.process_ended:
            return
        if not self.hung and (overdue := self.watchdog.overdue):
            self.hung, self.stacks_by = overdue, time.monotonic() + STACK_SECONDS
            self.process.ask_for_stacks()
        if time.monotonic() > self.stacks_by:
            self._tell("attempt.hung", {"message": self.hung, "output": self.process.tail})
            raise AttemptError("training_process_hung", f"{self.hung} Its last output:\n{self.process.tail}")

    @property
    def leaving(self) -> bool:
        """The process was asked to save and end."""
        return self.leave_by < float("inf")

    def _mind_leaving(self) -> None:
        """Ask the process once to save and end; give the job back when that is stored, or when time is up."""
        wished = self.draining.is_set() or self.ledger.wishes.pausing
        if wished and not self.leaving and self.process:
            self.process.ask_to_stop()
        if wished:
            patience = DRAIN_SECONDS if self.draining.is_set() else PAUSE_SECONDS
            self.leave_by = min(self.leave_by, time.monotonic() + patience)
        if not self.leaving:
            return
        stored = self.process is None or (self.process_ended and not self.transfers.pending)
        if stored or time.monotonic() > self.leave_by:
            self._end_process()
            self.ledger.flush()
            self.ledger.write(lambda session: attempts.release(session, self.attempt))
            self._finish("attempt.released")

    def _mind_stopping(self) -> None:
        step = self.ledger.wishes.stop_step
        if step is not None and not self.told_enough and self.process:
            self.files.tell_enough(step)
            self.told_enough = True

    def _fail(self, error: AttemptError) -> None:
        self.well = error.user_error
        self._end_process()
        self.ledger.flush()
        end = self._end_for_memory if error.code == OUT_OF_MEMORY else self._end_with
        self.ledger.write(partial(end, error))
        trace.get_current_span().set_status(StatusCode.ERROR, error.code)
        self._finish("attempt.failed", code=error.code, message=str(error))

    def _end_with(self, error: AttemptError, session: Session) -> None:
        attempts.fail(
            session,
            self.attempt,
            fault=Fault.USER if error.user_error else Fault.SYSTEM,
            code=error.code,
            message=str(error),
            retry=not error.user_error,
            max_failures=self.settings.max_failures,
        )

    def _end_for_memory(self, error: AttemptError, session: Session) -> None:
        spec, phase, has = self.attempt.spec, self.watchdog.phase, self.attempt.capability
        of_device = not error.by_kernel or has.device == CPU
        attempts.fail_out_of_memory(
            session,
            self.attempt,
            message=f"{error} {memory.advice(spec, phase, self.attempt.micro_batch)}",
            micro_batch=memory.smaller_micro_batch(spec, phase, by_kernel=error.by_kernel),
            larger=of_device and workers.has_larger(session, has, self.settings.sweep_seconds),
            max_failures=self.settings.max_failures,
        )

    def _set_aside(self, reason: Reason, message: str, needed: int | None) -> None:
        """Pause the job until there is room for what its folder holds and for what was to be written beside it."""
        self._end_process()
        needs = disk_space.required_space(self.files.folder, needed)
        self.ledger.flush()
        self.ledger.write(lambda session: attempts.hold_for_space(session, self.attempt, reason, message, needs))
        self._finish("attempt.set_aside", code=reason, message=message)

    def _tell(self, type: str, data: Json) -> None:  # noqa: A002
        self.ledger.write(lambda session: attempts.add_event(session, self.attempt, type, data))

    def _begin_anew(self, type: str, why: str) -> None:  # noqa: A002
        self.ledger.write(lambda session: attempts.restart_training(session, self.attempt, type, why))

    def _finish(self, event: str, **data: str) -> None:
        self.over = True
        trace.get_current_span().set_attribute("seft.outcome", event)
        log.info(event, **data)

    def _end_process(self) -> None:
        if self.process:
            self.process.kill()

    def _tidy(self) -> None:
        """In the thread of the transfers, after the last of them."""
        self.files.remove()
        try:
            cleanup.delete_leftovers(self.sessions, self.storage, self.attempt.job_id, self.attempt.number)
        except (SQLAlchemyError, BotoCoreError, ClientError) as error:
            log.warning("cleanup.failed", error=str(error))
