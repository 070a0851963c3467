"""The client's types say what the API's schemas say."""

import pytest
from pydantic import BaseModel

from api import errors
from api.schemas import datasets as dataset_schemas
from api.schemas import estimates as estimate_schemas
from api.schemas import imports as import_schemas
from api.schemas import jobs as schemas
from api.schemas import keys as key_schemas
from api.schemas import models as model_schemas
from api.schemas import webhooks as webhook_schemas
from seft.client import answers


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (answers.Failure, schemas.ErrorView),
        (answers.Job, schemas.JobDetail),
        (answers.Event, schemas.EventView),
        (answers.Worker, schemas.WorkerView),
        (answers.Metric, schemas.MetricView),
        (answers.File, schemas.FileView),
        (answers.Checkpoint, schemas.CheckpointView),
        (answers.Key, key_schemas.KeySecret),
        (answers.Webhook, webhook_schemas.WebhookSecret),
        (answers.Try, webhook_schemas.TryView),
        (answers.Delivery, webhook_schemas.DeliveryView),
        (answers.AuditEntry, key_schemas.AuditView),
        (answers.Dataset, dataset_schemas.DatasetView),
        (answers.Import, import_schemas.ImportView),
        (answers.ImportPart, import_schemas.PartView),
        (answers.ImportFailure, import_schemas.ImportFailure),
        (answers.Flaw, errors.FlawView),
        (answers.Preview, dataset_schemas.PreviewView),
        (answers.PreviewedRecord, dataset_schemas.RecordView),
        (answers.Part, dataset_schemas.PartView),
        (answers.Model, model_schemas.ModelView),
        (answers.HubToken, model_schemas.HubTokenView),
        (answers.StageMemory, estimate_schemas.StageView),
        (answers.Fit, estimate_schemas.FitView),
        (answers.Estimate, estimate_schemas.EstimateView),
    ],
)
def test_an_answer_has_the_fields_of_its_schema(ours: type, theirs: type[BaseModel]) -> None:
    assert set(ours.__annotations__) == set(theirs.model_fields)
