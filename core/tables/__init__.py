"""The tables of the database. The database sets times, `core.ids` makes ids.

A test checks that the migrations create these tables.
"""

from core.tables.access import ApiKey, AuditEntry, HubToken, SignIn
from core.tables.base import Base, Json
from core.tables.datasets import Dataset, Import, StoredDataset
from core.tables.jobs import Checkpoint, Holding, IdempotencyKey, Job, JobEvent, JobLabel, JobMetric
from core.tables.pushes import Push
from core.tables.service import Chore, Service, Total, Turn, Worker
from core.tables.webhooks import Webhook, WebhookDelivery

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Base",
    "Checkpoint",
    "Chore",
    "Dataset",
    "Holding",
    "HubToken",
    "IdempotencyKey",
    "Import",
    "Job",
    "JobEvent",
    "JobLabel",
    "JobMetric",
    "Json",
    "Push",
    "Service",
    "SignIn",
    "StoredDataset",
    "Total",
    "Turn",
    "Webhook",
    "WebhookDelivery",
    "Worker",
]
