"""Run one attempt at a job, from the claim to the end: start the training process and handle its messages.

One thread handles everything that happens: a message, a finished transfer, the exit of the process. Each is put into
one mailbox. The same thread renews the lease. So it never waits for the object storage, and it waits for the process
only after it has killed it. The states of an attempt are in `worker.lifecycle`.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue

import structlog
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from core import workers
from core.capability import CPU
from core.errors import LeaseLostError, ProblemError
from core.estimate import timings
from core.estimate.speed import Speed
from core.infra.storage import STORAGE_ERRORS, Storage
from core.infra.tracing import TRACER
from core.jobs import attempts, retention
from core.jobs.attempts import Attempt, Fault
from core.settings import Settings
from core.stages import Stage
from core.states import OUT_OF_MEMORY, Phase, Reason
from core.tables import Json
from seft.errors import DISK_FULL, SourceError
from seft.models.hub_files import UNREACHABLE
from worker import cleanup, disk_space, memory
from worker.attempt_writer import AttemptWriter
from worker.child_files import RefusedFileError
from worker.failures import AttemptError, Failures
from worker.files import Files
from worker.lifecycle import Lifecycle, State
from worker.phases import Phases
from worker.process import Process
from worker.progress import Shares
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
    Storing,
    TopologyEvolved,
    decode,
)
from worker.retries import PauseError
from worker.transfers import GoneError, TransferError, Transfers
from worker.watchdog import Watchdog

TRAINING = (sys.executable, "-m", "worker.child")
TICK_SECONDS = 0.1
CLEANUP_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs one attempt at a job.

    To shut down, set `draining` at any time. The attempt then saves its state, and the job goes back to the queue. A
    pause ends the attempt in the same way. Heartbeats return the actions that the tenant has requested, such as a
    pause.
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
        self.lifecycle = Lifecycle()
        self.healthy = True
        self.mailbox: Queue[Callable[[], None]] = Queue()
        self.writer = AttemptWriter(sessions, attempt, settings)
        # A process that stores a format sends no message while it waits for the upload of its last state.
        self.transfers = Transfers(storage, self.mailbox.put, lambda _: self.watchdog.touch())
        self.files = Files(attempt, settings, self.transfers)
        self.resume_files: dict[str, Json] = {}
        """Files of the newest state in object storage, by name."""
        self.process: Process | None = None
        self.watchdog = Watchdog(self.files.dataset_bytes, self.files.state_bytes)
        self.phases = Phases()
        self.failures = Failures(attempt.spec)

    def run(self) -> bool:
        """Run the attempt until it has ended or has lost its lease. Afterwards no process of the attempt is left.

        Returns False if this worker may be broken: the attempt failed and the user did not cause it, or the worker
        could not reach the object storage or the hub.
        """
        try:
            self._run()
        except LeaseLostError as error:
            trace.get_current_span().set_status(StatusCode.ERROR, "attempt.lease_lost")
            log.warning("attempt.lease_lost", reason=str(error))
        finally:
            self._end_process()
            self.transfers.close(self._clean_up, CLEANUP_SECONDS)
        return self.healthy

    def _run(self) -> None:
        try:
            speeds = self.writer.write(timings.load)
            speed = speeds.get(self.attempt.capability.device_name, Speed())
            self.transfers.submit(partial(self._fetch, speed), self._start)
            while not self.lifecycle.ended:
                self._step()
        except AttemptError as error:
            self._fail(error)
        except RefusedFileError as error:
            flaw = f"The training process wrote a file or sent a request that the worker refuses: {error}."
            self._fail(AttemptError("protocol_broken", flaw))
        except PauseError as error:
            self.healthy = error.reason == Reason.STORAGE_FULL
            self._pause_for(error.reason, str(error), 0)
        except TransferError as error:
            self._fail(AttemptError("storage_failed", str(error)))
        except LeaseLostError:
            raise
        except Exception as error:
            self._handle_other(error)

    def _handle_other(self, error: Exception) -> None:
        scratch = self.settings.scratch
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            self._pause_for(Reason.DISK_FULL, str(error), getattr(error, "needed", None))
        elif isinstance(error, OSError) and Path(str(error.filename)).is_relative_to(scratch):
            message = f"The worker cannot use its scratch folder: {error}. Check the disk of {scratch}."
            self._fail(AttemptError("scratch_failed", message))
        else:
            log.exception("attempt.unexpected_error")
            self._fail(AttemptError("internal_error", "An unexpected error occurred in the worker."))

    def _step(self) -> None:
        """Renew the lease, act on requested actions and on deadlines, then read the mailbox for `TICK_SECONDS`."""
        self.writer.tick()
        self.failures.observe()
        self._check_stop()
        if self.lifecycle.ended:
            return
        self._check_run_time()
        self._check_early_stop()
        self._check_hang()
        until = time.monotonic() + TICK_SECONDS
        with suppress(Empty):
            self.mailbox.get(timeout=TICK_SECONDS)()
            while time.monotonic() < until and not self.lifecycle.ended:
                self.mailbox.get_nowait()()

    def _fetch(self, speed: Speed) -> GoneError | None:
        """Download the files of the job. Called in the transfer thread."""
        try:
            return self.files.fetch(speed)
        except SourceError as error:
            if error.code == UNREACHABLE:
                log.warning("hub.unreachable", error=str(error))
                raise PauseError(Reason.HUB_UNREACHABLE) from error
            raise AttemptError(error.code, str(error), user_error=True) from error
        except ProblemError as error:
            message = f"{error.message} Give this worker the same SEFT_SECRET_KEY and SEFT_OLD_SECRET_KEYS as the API."
            raise AttemptError("hub_token_not_decryptable", message) from error

    def _start(self, gone: GoneError | None) -> None:
        """Start the training process.

        `gone` is the error if the saved state is missing or damaged. The job then does not fail. It starts again from
        the beginning.
        """
        if gone:
            self._restart_training("state.missing", str(gone))
        elif resume := self.attempt.resume:
            self.resume_files = {file["name"]: file for file in resume["files"]}
            self._record_event("attempt.resumed", {"step": resume["step"]})
        self.process = Process(
            self.training,
            self.files.folder,
            on_line=lambda line: self.mailbox.put(partial(self._handle_line, line)),
            on_exit=lambda code: self.mailbox.put(partial(self._handle_exit, code)),
        )
        self.watchdog.touch()  # there was no process during the downloads
        self.lifecycle.move(State.TRAINING)

    def _handle_line(self, line: bytes) -> None:
        assert self.process is not None
        self.process.handled(line)
        try:
            message = decode(line)
        except ValueError as error:
            flaw = f"The training process wrote a line that is not a message: {line[:200]!r}. Report this as a bug."
            raise AttemptError("protocol_broken", flaw) from error
        self.watchdog.record(message)  # `Reading` is for the watchdog alone
        self.phases.record(message)
        match message:
            case Progressed() | Measured() | TopologyEvolved() | Scored():
                self.writer.add(message)
            case Saved(step=step):
                self.transfers.submit(partial(self.files.upload_state, step), partial(self._keep_state, step))
            case Refused():
                self._restart_training("state.refused", message.message)
            case Storing():
                serve = partial(self.files.formats.serve, self.process.connection, self.watchdog.touch)
                self.transfers.submit(serve, lambda _: None)
            case Finished():
                self._take_result(message)
            case Failed():
                raise self.failures.of_message(message)
            case NoDiskSpace():
                self._pause_for(Reason.DISK_FULL, message.message, message.needed)
            case Stopped():
                log.info("training.stopped")

    def _keep_state(self, step: int, files: list[Json]) -> None:
        """Record an uploaded state as the one to resume from.

        Then delete its local files, and the objects of the previous state that it does not use. Reports that came
        before the state are written first, because an attempt that resumes from it does not repeat them.
        """
        self.writer.flush()
        self.resume_files |= {file["name"]: file for file in files}
        pointer = {"step": step, "files": list(self.resume_files.values())}
        former = self.writer.write(lambda session: attempts.save_resume(session, self.attempt, pointer))
        self._record_event("state.saved", {"step": step})
        self.files.remove_state(step)
        current = {file["key"] for file in self.resume_files.values()}
        replaced = [file["key"] for file in (former or {"files": []})["files"] if file["key"] not in current]
        self.transfers.submit(partial(self.transfers.delete, replaced), lambda _: None)

    def _take_result(self, result: Finished) -> None:
        self.lifecycle.move(State.UPLOADING)
        self._end_process()
        done = Shares(self.attempt.spec).progress(Stage.UPLOADING, 0.0)
        self.writer.add(
            Progressed(phase=Phase.UPLOADING, progress=done, step=result.step, remaining=self.writer.remaining)
        )
        self.transfers.submit(self.files.upload_result, partial(self._publish, result))

    def _publish(self, result: Finished, files: list[Json]) -> None:
        self.writer.flush()
        with TRACER.start_as_current_span("publish"):
            self.writer.write(
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
        self._end("attempt.succeeded")

    def _handle_exit(self, code: int) -> None:
        if self.lifecycle.state is State.UPLOADING:
            return
        if self.lifecycle.stop_requested:
            self.lifecycle.move(State.SAVING)
            return
        assert self.process is not None
        raise self.failures.of_exit(code, self.process.tail)

    def _check_stop(self) -> None:
        """On a shutdown or a pause, ask the process once to save its state and exit.

        Release the job when the last state is stored, or when `release_by` has passed. During the download of its
        files, release it at once.
        """
        draining = self.draining.is_set()
        requested = draining or self.writer.requests.pausing
        if requested and self.lifecycle.request_stop(draining=draining) and self.process:
            self.process.request_stop()
        if not self.lifecycle.stop_requested:
            return
        saved = self.lifecycle.state is State.SAVING and not self.transfers.pending
        if saved or self.lifecycle.state is State.FETCHING or self.lifecycle.release_is_due:
            self._end_process()
            self.writer.flush()
            self.writer.write(lambda session: attempts.release(session, self.attempt))
            self._end("attempt.released")

    def _check_early_stop(self) -> None:
        """Forward the tenant's request to end training early to the training process."""
        step = self.writer.requests.stop_step
        if step is not None and self.lifecycle.state is State.TRAINING:
            self.files.request_early_stop(step)

    def _check_run_time(self) -> None:
        """Fail the attempt if the job has run for longer than its limit. The upload of a result is not interrupted."""
        limits = [self.attempt.spec.max_seconds, self.settings.job_seconds_of(self.attempt.tenant)]
        limit, ran = min(filter(None, limits), default=None), self.writer.requests.run_seconds
        if limit is not None and ran > limit and self.lifecycle.state is not State.UPLOADING:
            way_out = "Raise `max_seconds`, train fewer steps, or ask the operator for a higher SEFT_JOB_SECONDS."
            message = f"The job must run for at most {limit} s; it has run for {ran:.0f} s. {way_out}"
            raise AttemptError("run_time_exceeded", message, user_error=True)

    def _check_hang(self) -> None:
        """If the process hangs, ask it for the stacks of its threads. Fail the attempt if it hangs at `stacks_by`."""
        self.watchdog.look()
        if self.process is None or self.lifecycle.state is not State.TRAINING:
            return
        if (overdue := self.watchdog.overdue) is None:
            self.lifecycle.withdraw_hang()
        elif self.lifecycle.report_hang():
            self.process.request_stacks()
        elif self.lifecycle.stacks_are_due:
            hang, output = overdue.message, self.process.tail
            self._record_event("attempt.hung", {"message": hang, "output": output})
            if overdue.user_error:
                raise AttemptError("reading_hung", hang, user_error=True)
            raise AttemptError("training_process_hung", f"{hang} Its last output:\n{output}")

    def _fail(self, error: AttemptError) -> None:
        self.healthy = error.user_error
        self._end_process()
        self.writer.flush()
        record = self._record_out_of_memory if error.code == OUT_OF_MEMORY else self._record_failure
        self.writer.write(partial(record, error))
        trace.get_current_span().set_status(StatusCode.ERROR, error.code)
        self._end("attempt.failed", code=error.code, message=str(error))

    def _record_failure(self, error: AttemptError, session: Session) -> None:
        attempts.fail(
            session,
            self.attempt,
            fault=Fault.USER if error.user_error else Fault.SYSTEM,
            code=error.code,
            message=str(error),
            retry=not error.user_error,
            max_failures=self.settings.max_failures,
        )

    def _record_out_of_memory(self, error: AttemptError, session: Session) -> None:
        spec, phase, has = self.attempt.spec, self.watchdog.phase, self.attempt.capability
        of_device = not error.of_host or has.device == CPU
        attempts.fail_out_of_memory(
            session,
            self.attempt,
            message=f"{error} {memory.advice(spec, phase, self.attempt.micro_batch)}",
            micro_batch=memory.smaller_micro_batch(spec, phase, of_host=error.of_host),
            larger=of_device
            and workers.has_larger(session, self.attempt.job_id, has, self.settings.sweep_seconds, spec.devices),
        )

    def _pause_for(self, reason: Reason, message: str, needed: int | None) -> None:
        """Pause the job until the cause is over and a worker has disk space for its folder and `needed` more bytes."""
        self._end_process()
        needs = disk_space.required_space(self.files.folder, needed)
        self.writer.flush()
        self.writer.write(lambda session: attempts.pause_for(session, self.attempt, reason, message, needs))
        self._end("attempt.paused", code=reason, message=message)

    def _record_event(self, type: str, data: Json) -> None:  # noqa: A002
        self.writer.write(lambda session: attempts.add_event(session, self.attempt, type, data))

    def _restart_training(self, type: str, reason: str) -> None:  # noqa: A002
        self.writer.write(lambda session: attempts.restart_training(session, self.attempt, type, reason))

    def _end(self, event: str, **data: str) -> None:
        self.lifecycle.move(State.ENDED)
        trace.get_current_span().set_attribute("seft.outcome", event)
        log.info(event, **data)

    def _end_process(self) -> None:
        if self.process:
            self.process.kill()
        self.phases.end()

    def _clean_up(self) -> None:
        """Delete the files of the attempt that are no longer needed, in the transfer thread after the last transfer."""
        try:
            if cleanup.is_over(self.sessions, self.attempt.job_id, self.attempt.number):
                self.files.remove()
                cleanup.delete_leftovers(self.sessions, self.storage, self.attempt.job_id, self.attempt.number)
        except (SQLAlchemyError, *STORAGE_ERRORS) as error:
            log.warning("cleanup.failed", error=str(error))
