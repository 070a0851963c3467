"""The actions on a job that its page shows as buttons, with a sentence that explains each action."""

from dataclasses import dataclass

from api.schemas.jobs import JobView
from core.states import Reason, Status


@dataclass(frozen=True, slots=True)
class Action:
    """A button that changes a job."""

    name: str
    """Last part of the URL that the button sends a POST request to."""
    label: str
    effect: str
    """Sentence below the button's label. It says what the action does and what is kept."""
    destructive: bool = False


START = Action("start", "Start", "Adds the job to the queue.")
RESUME = Action("resume", "Resume", "Continues from the newest saved state.")
PAUSE = Action("pause", "Pause", "Saves the state and frees the device. Resume continues from there.")
PAUSE_WAITING = Action(
    "pause", "Pause", "Keeps the job paused after the cause of its wait has ended, until you resume it."
)
STOP = Action("stop", "Stop early", "Ends training, then evaluates and publishes the model.")
STOP_WAITING = Action(
    "stop", "Stop early", "Evaluates and publishes the newest saved state. Cancels the job if no state is saved."
)
CANCEL = Action("cancel", "Cancel", "Ends the job immediately. No checkpoint is kept.", destructive=True)
ACTIONS = {action.name: action for action in (START, RESUME, PAUSE, STOP, CANCEL)}


def available_actions(job: JobView) -> list[Action]:
    """Return the actions that the job's current status allows, in the order in which the page shows them."""
    if job.status.final:
        return []
    stop = [] if job.stopping else [STOP if job.status is Status.RUNNING else STOP_WAITING]
    if job.status is Status.PAUSED:
        if job.reason and job.reason.code == Reason.NOT_STARTED:
            return [START, CANCEL]
        pause = [PAUSE_WAITING] if job.reason and job.reason.code != Reason.ASKED else []
        return [RESUME, *pause, *stop, CANCEL]
    return [RESUME if job.pausing else PAUSE, *stop, CANCEL]
