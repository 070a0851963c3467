"""Hooks that put existing datasets, models and jobs into generated requests, and shorten their waiting times."""

import os
from typing import Any

import schemathesis
from schemathesis import HookContext

from core import ids
from tests.hollow import TEXTS


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Make a well-formed body refer to objects that exist."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("file"), str | bytes) and _sometimes(body["file"]):
        return {**body, "file": TEXTS}
    if ids.is_id("file", str(body.get("dataset"))):
        body = {**body, "dataset": os.environ["FUZZ_DATASET"]}
        if isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 512:
            body = {"sparsity": 0.5, **body, "model": "tiny"}
            # Only hub models have revisions. An invalid revision stays invalid.
            if isinstance(body.get("revision"), str) and len(body["revision"]) <= 255:
                body["revision"] = None
    return body


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """Replace half of the job and dataset ids with ids that exist, except in deletions of jobs."""
    deletes_job = context.operation is not None and context.operation.definition.raw["operationId"] == "delete_job"
    if not isinstance(path_parameters, dict) or deletes_job:
        return path_parameters
    existing = {"job_id": os.environ["FUZZ_JOB"], "dataset_id": os.environ["FUZZ_DATASET"]}
    return {name: existing.get(name, it) if _sometimes(it) else it for name, it in path_parameters.items()}


@schemathesis.hook
def map_query(context: HookContext, query: Any) -> Any:
    """Limit `wait` to one second."""
    if isinstance(query, dict) and str(query.get("wait")).isdecimal() and int(query["wait"]) <= 60:
        return {**query, "wait": int(query["wait"]) % 2}
    return query


def _sometimes(value: object) -> bool:
    """Return True for about half of all values, and always the same for one value, so that runs are repeatable."""
    return value is not None and sum(str(value).encode(errors="replace")) % 2 == 0
