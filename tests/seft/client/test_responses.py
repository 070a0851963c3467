"""The client's types have the same fields as the API's schemas, and its methods and commands the same filters."""

import inspect
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from api import errors
from api.app import routes
from api.schemas import datasets as dataset_schemas
from api.schemas import estimates as estimate_schemas
from api.schemas import imports as import_schemas
from api.schemas import jobs as job_schemas
from api.schemas import keys as key_schemas
from api.schemas import models as model_schemas
from api.schemas import pushes as push_schemas
from api.schemas import reports as report_schemas
from api.schemas import shared as shared_schemas
from api.schemas import webhooks as webhook_schemas
from api.schemas import workers as worker_schemas
from seft.client import responses
from seft.client.cli import app
from seft.client.operations import Operations


@pytest.mark.parametrize(
    ("response", "schema"),
    [
        (responses.Failure, job_schemas.ErrorView),
        (responses.Job, job_schemas.JobDetail),
        (responses.Event, report_schemas.EventView),
        (responses.Worker, worker_schemas.WorkerView),
        (responses.Metric, report_schemas.MetricView),
        (responses.File, shared_schemas.FileView),
        (responses.CheckpointFile, report_schemas.CheckpointFileView),
        (responses.Checkpoint, report_schemas.CheckpointView),
        (responses.Push, push_schemas.PushView),
        (responses.PushError, push_schemas.PushErrorView),
        (responses.Key, key_schemas.KeySecret),
        (responses.Webhook, webhook_schemas.WebhookSecret),
        (responses.Try, webhook_schemas.TryView),
        (responses.Delivery, webhook_schemas.DeliveryView),
        (responses.AuditEntry, key_schemas.AuditView),
        (responses.Dataset, dataset_schemas.DatasetView),
        (responses.Import, import_schemas.ImportView),
        (responses.ImportPart, import_schemas.ImportPart),
        (responses.ImportFailure, import_schemas.ImportFailure),
        (responses.Flaw, errors.FlawView),
        (responses.Preview, dataset_schemas.PreviewView),
        (responses.PreviewedRecord, dataset_schemas.RecordView),
        (responses.Part, dataset_schemas.RecordPart),
        (responses.Model, model_schemas.ModelView),
        (responses.HubToken, model_schemas.HubTokenView),
        (responses.PhaseMemory, estimate_schemas.PhaseView),
        (responses.Fit, estimate_schemas.FitView),
        (responses.Estimate, estimate_schemas.EstimateView),
    ],
)
def test_a_response_has_the_fields_of_its_schema(response: type, schema: type[BaseModel]) -> None:
    assert set(response.__annotations__) == set(schema.model_fields)


def test_the_list_of_jobs_has_the_filters_of_the_api() -> None:
    parameters = routes().openapi()["paths"]["/jobs"]["get"]["parameters"]
    filters = {each["name"] for each in parameters if each["in"] == "query"} - {"after", "limit"}
    assert set(inspect.signature(Operations.jobs.steps).parameters) - {"self"} == filters
    command: Any = get_command(app)
    options = {each.name for each in command.commands["jobs"].commands["list"].params}
    assert options - {"as_json"} == filters | {"limit"}
