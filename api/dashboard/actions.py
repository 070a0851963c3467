"""What may be asked of a job as it stands, and what each wish keeps, in a word."""

from dataclasses import dataclass

from api.schemas.jobs import JobView
from core.states import Reason, Status


@dataclass(frozen=True, slots=True)
class Offer:
    """A button, and what it keeps."""

    name: str
    label: str
    keeps: str
    harsh: bool = False


START = Offer("start", "Start", "Puts the job into the queue.")
RESUME = Offer("resume", "Resume", "Goes on from the newest saved state; nothing was lost.")
PAUSE = Offer("pause", "Pause", "Saves its state and frees the device. Resume goes on from there.")
STOP = Offer("stop", "Stop early", "Trains no further, then judges and publishes what there is.")
STOP_UNSAVED = Offer("stop", "Stop early", "Publishes what there is. If nothing is saved yet, this cancels the job.")
CANCEL = Offer("cancel", "Cancel", "Ends at once. No checkpoint is kept.", harsh=True)
ALL = {offer.name: offer for offer in (START, RESUME, PAUSE, STOP, CANCEL)}


def offers(job: JobView) -> list[Offer]:
    """What makes sense to ask now."""
    if job.status.final:
        return []
    stop = [] if job.stopping else [STOP if job.status is Status.RUNNING else STOP_UNSAVED]
    if job.status is Status.PAUSED:
        waits = job.reason is not None and job.reason.code == Reason.NOT_STARTED
        return [START, CANCEL] if waits else [RESUME, *stop, CANCEL]
    return [RESUME if job.pausing else PAUSE, *stop, CANCEL]
