"""Runs tasks of lm-evaluation-harness on a loaded model. Needs the optional dependencies `seft[tasks]`.

A task comes from the harness, or from a YAML file in a folder. A YAML file may name local data files, which need no
network. The data of the harness's own tasks come from the Hugging Face hub, its cache or a mirror.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seft.errors import ConfigError, EvaluateError

Scores = dict[str, float]


def find_task(task: str, folder: Path | None = None) -> Any:
    """Return the task manager of the harness that has the task with this name. Loads no model.

    `folder` contains YAML files of tasks, which are used instead of the harness's tasks. Raises ConfigError if
    lm-evaluation-harness is not installed or the task is unknown.
    """
    if find_spec("lm_eval") is None:
        way_out = "Install the extra: pip install '.[tasks]' in the folder of the repository."
        raise ConfigError("task", "needs the package lm-eval", task, way_out)
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    if task not in tasks.all_tasks:
        way_out = "Check the name, or give the folder of its YAML file with --task-folder."
        raise ConfigError(
            "task", "must be a task of lm-evaluation-harness or of the folder given with --task-folder", task, way_out
        )
    return tasks


def run_task(model: Any, tokenizer: Any, task: str, tasks: Any) -> Scores:
    """Return the metrics of the task with this name. `tasks` is the result of `find_task`.

    A group or a tag also gives metrics of other tasks. These begin with the name of their task. Raises EvaluateError
    if the task's data is unavailable.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    try:
        results = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer),
            tasks=[task],
            task_manager=tasks,
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError) as error:
        way_out = (
            "Its data must be in the cache, on the mirror in HF_ENDPOINT, or in the files that its YAML file names."
        )
        raise EvaluateError(f"{task} failed: {type(error).__name__}: {error}. {way_out}") from error
    assert results is not None
    return {
        metric if name == task else f"{name} {metric}": value
        for name, metrics in results["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }
