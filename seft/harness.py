"""Tasks of lm-evaluation-harness on a loaded model. Needs the extra `tasks`.

Tasks come from the harness, or from the YAML files of a folder. The data of a folder's tasks may be local files, which
need no network. The data of the harness's tasks come from the hub, its cache or a mirror.
"""

from pathlib import Path
from typing import Any

from seft.errors import ConfigError, EvaluateError

Scores = dict[str, float]


def run_task(model: Any, tokenizer: Any, task: str, folder: Path | None = None) -> Scores:
    """Return the metrics of a task by name.

    Raises ConfigError if the extra is not installed or the task is unknown, EvaluateError if its data is unavailable.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "task", "needs the package lm-eval", task, "Install the extra: pip install 'seft[tasks]'."
        ) from error
    tasks = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    if task not in tasks.all_tasks:
        way_out = "Check the name, or give the folder of its YAML file with --tasks."
        raise ConfigError("task", "must be one of the tasks of lm-evaluation-harness or of your folder", task, way_out)
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
    return {metric: value for metric, value in results["results"][task].items() if isinstance(value, float)}
