"""The client's types have the same fields as the API's schemas."""

import pytest
from pydantic import BaseModel

from api import errors
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
