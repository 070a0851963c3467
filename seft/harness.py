"""Any task of lm-evaluation-harness by its name, on a model that is loaded already. Needs the extra `tasks`.

Tasks come from the harness's own collection, or from the YAML files of a folder, whose data may be local files: then
nothing is fetched. Data of the collection come from the hub, unless its cache or a mirror has them.
"""

from pathlib import Path
from typing import Any

from seft.errors import ConfigError, EvaluateError

Scores = dict[str, float]


def run_task(model: Any, tokenizer: Any, task: str, folder: Path | None = None) -> Scores:
    """What the harness measures under `task`, by metric.

    ConfigError where the extra or the task is missing, EvaluateError where its data cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("task", "needs lm-eval", task, "Install the extra: pip install 'seft[tasks]'.") from error
    tasks = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    if task not in tasks.all_tasks:
        way_out = "Check the name, or name the folder of its YAML file with --tasks."
        raise ConfigError("task", "must be one of lm-evaluation-harness or of your folder", task, way_out)
    try:
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer),
            tasks=[task],
            task_manager=tasks,
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError) as error:
        way_out = (
            "Its data must be in the cache, on the mirror that HF_ENDPOINT names, or in files that its YAML names."
        )
        raise EvaluateError(f"{task} could not be run: {type(error).__name__}: {error}. {way_out}") from error
    assert found is not None
    return {metric: value for metric, value in found["results"][task].items() if isinstance(value, float)}
