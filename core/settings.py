"""Every setting of every process, read once from `SEFT_…` environment variables. Secrets have no default."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PostgresDsn, RedisDsn, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an operator may set. `docs/configuration.md` is this table."""

    model_config = SettingsConfigDict(env_prefix="SEFT_", frozen=True, hide_input_in_errors=True)

    database_url: PostgresDsn = Field(description="Postgres, as `postgresql://user:password@host:port/name`.")
    broker_url: RedisDsn = Field(description="Valkey or Redis; carries hints only, may be emptied at any time.")
    s3_endpoint: str = Field(description="Address of the object storage as API and workers reach it.")
    s3_public_endpoint: str | None = Field(
        default=None, description="Address of the object storage as users reach it; presigned links name it."
    )
    s3_region: str = Field(default="us-east-1", description="Region that requests are signed for.")
    s3_bucket: str = Field(default="seft", description="Bucket of datasets and checkpoints; made when missing.")
    s3_access_key: SecretStr = Field(description="Access key of the object storage.")
    s3_secret_key: SecretStr = Field(description="Secret key of the object storage.")
    secret_key: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        default=None, description="Encrypts the hub tokens that tenants give; without it none is taken."
    )

    api_host: str = Field(default="127.0.0.1", description="Address that the API listens at.")
    api_port: int = Field(default=8000, ge=1, le=65535, description="Port that the API listens at.")
    api_processes: int = Field(
        default=1, ge=1, description="Processes that serve the API, each with up to 20 connections to Postgres."
    )
    model_roots: list[Path] = Field(
        default=[], description="Folders (a JSON list) whose models may be named by their relative path."
    )
    max_upload_bytes: int = Field(default=1 << 30, ge=1, description="Largest dataset that one request may carry.")
    max_dataset_bytes: int = Field(default=1 << 34, ge=1, description="Largest dataset, unpacked.")
    dataset_buckets: list[str] = Field(
        default=[], description="Buckets (a JSON list), or `bucket/prefix`, whose objects every tenant may take."
    )
    rate_limit: float = Field(
        default=200, ge=0, description="Requests a second of one API key, ten seconds' worth of them at once; 0: any."
    )
    webhook_networks: list[IPv4Network | IPv6Network] = Field(
        default=[], description="Networks (a JSON list) that are not public and that webhooks may lead to all the same."
    )
    link_seconds: int = Field(default=3600, ge=1, description="How long a presigned download link is good.")

    lease_seconds: float = Field(default=60, gt=0, description="A worker silent for so long has lost its job.")
    heartbeat_seconds: float = Field(
        default=3, gt=0, description="How often a worker renews its lease and hears what was asked of its job."
    )
    tenant_running: int = Field(default=0, ge=0, description="Jobs of one tenant that run at a time; 0: any number.")
    tenant_waiting: int = Field(
        default=0, ge=0, description="Jobs of one tenant that wait, queued or paused, at a time; 0: any number."
    )
    key_running: int = Field(default=0, ge=0, description="Jobs of one API key that run at a time; 0: any number.")
    key_waiting: int = Field(default=0, ge=0, description="Jobs of one API key that wait at a time; 0: any number.")
    tenant_bytes: int = Field(
        default=0, ge=0, description="Bytes of one tenant's datasets and checkpoints, all together; 0: any number."
    )
    checkpoint_days: int = Field(
        default=0, ge=0, description="No checkpoint is kept for more days, whatever its job asks for; 0: any number."
    )
    dataset_days: int = Field(
        default=90, ge=0, description="A dataset is deleted when no job has used it for so many days; 0: never."
    )
    tidy_seconds: float = Field(
        default=3600, gt=0, description="How often a worker looks for what has expired and for objects without a row."
    )
    sweep_seconds: float = Field(
        default=10, gt=0, description="How often workers look for lost jobs and lost messages."
    )
    max_failures: int = Field(
        default=3,
        ge=1,
        description="A job fails for good when so many attempts failed with no newer state saved between them.",
    )

    scratch: Path = Field(default=Path("/tmp/seft"), description="Folder where a worker keeps a running job's files.")  # noqa: S108
    device: str = Field(default="auto", description="Torch device of a worker; `auto` takes CUDA where there is one.")
    threads: int = Field(default=0, ge=0, description="CPU threads of the training process; 0 leaves it to torch.")
    checkpoint_seconds: float = Field(
        default=300, gt=0, description="A resumable state is saved when the last one is older than this."
    )
    log_format: Literal["json", "console"] = Field(default="json", description="How log lines look.")

    @model_validator(mode="after")
    def _own_bucket_is_not_open(self) -> Self:
        if any(place.partition("/")[0] == self.s3_bucket for place in self.dataset_buckets):
            raise ValueError(
                f"dataset_buckets must not hold s3_bucket ({self.s3_bucket}), where every tenant's data lie"
            )
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"lease_seconds ({self.lease_seconds}) must be at least three times heartbeat_seconds"
                f" ({self.heartbeat_seconds}), or one lost heartbeat loses the job"
            )
        return self
