"""What schemathesis cannot know: which datasets, models and jobs there are, and that waiting is not what is tried."""

import os
from typing import Any

import schemathesis
from schemathesis import HookContext

from core import ids

RIGHT = b'{"text": "a"}\n{"text": "b"}\n'


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """What is well formed shall be about things that exist."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("file"), str | bytes) and _sometimes(body["file"]):
        return {**body, "file": RIGHT}
    if ids.is_id("file", str(body.get("dataset"))):
        body = {**body, "dataset": os.environ["FUZZ_DATASET"]}
        if isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 512:
            body = {"sparsity": 0.5, **body, "model": "tiny"}
            # Only a hub's model has one. What is wrong with it stays wrong.
            if isinstance(body.get("revision"), str) and len(body["revision"]) <= 128:
                body["revision"] = None
    return body


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """Of the jobs and datasets that are asked for, half shall be there."""
    if not isinstance(path_parameters, dict):
        return path_parameters
    there = {"job_id": os.environ["FUZZ_JOB"], "dataset_id": os.environ["FUZZ_DATASET"]}
    return {name: there.get(name, it) if _sometimes(it) else it for name, it in path_parameters.items()}


@schemathesis.hook
def map_query(context: HookContext, query: Any) -> Any:
    """Nobody waits for longer than a second."""
    if isinstance(query, dict) and str(query.get("wait")).isdecimal() and int(query["wait"]) <= 60:
        return {**query, "wait": int(query["wait"]) % 2}
    return query


def _sometimes(value: object) -> bool:
    """For every other value; always the same for one, so that a run can be repeated."""
    return value is not None and sum(str(value).encode(errors="replace")) % 2 == 0
