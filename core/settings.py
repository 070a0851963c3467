"""Settings of all processes, read once from `SEFT_…` environment variables. Secrets have no default."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    IPvAnyNetwork,
    PostgresDsn,
    RedisDsn,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.request_fields import broken_rule

INVALID = 2
"""Exit status of a process whose settings are invalid."""


def _signing_key(key: SecretStr) -> SecretStr:
    """Return a key of minisign. Raises ValueError if it is damaged, or if it needs a password."""
    from minisign import Error, PublicKey, SecretKey

    try:
        secret = SecretKey.from_base64(key.get_secret_value())
        if secret.is_encrypted():
            raise ValueError("must be a key without a password, as `minisign -G -W` makes it; this one has a password")
        PublicKey.from_secret_key(secret).verify(b"", secret.sign(b""))
    except Error as error:
        raise ValueError(f"must be the last line of a secret key file of minisign; it is not ({error})") from error
    return key


def _one_host(url: PostgresDsn) -> PostgresDsn:
    """Return the URL of a database. Raises ValueError if it names several hosts."""
    if len(url.hosts()) > 1:
        raise ValueError("must name one host. For a cluster, name the address that leads to its primary")
    return url


def _json(value: object) -> object:
    """Return the value of a variable, whose text is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be JSON ({error})") from error


def _list(value: object, separator: str = ",") -> object:
    """Return the list in a variable. Its text is a JSON list, or has separators between the entries."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return _json(value)
    return [entry.strip() for entry in re.split(separator, value) if entry.strip()]


DatabaseUrl = Annotated[PostgresDsn, AfterValidator(_one_host)]
Json, List = BeforeValidator(_json), BeforeValidator(_list)
Folders = BeforeValidator(lambda value: _list(value, "[,:]"))
Bucket = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")]
"""`bucket` or `bucket/prefix`."""
HTTP = r"^https?://\S+$"


class DatabaseSettings(BaseSettings):
    """Settings of commands that need only the database, so that they get no other secret."""

    model_config = SettingsConfigDict(
        env_prefix="SEFT_",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
        enable_decoding=False,
        allow_inf_nan=False,
    )

    database_url: DatabaseUrl = Field(
        examples=["postgresql://seft:PASSWORD@127.0.0.1:5432/seft"],
        description="URL of Postgres: `postgresql://user:password@host:port/name`. For the migrations, its user must"
        " own the tables.",
    )
    service_database_url: DatabaseUrl | None = Field(
        default=None,
        examples=["postgresql://seft_service:PASSWORD@127.0.0.1:5432/seft"],
        description="URL of the same database for the API and the workers, with a different user. The migrations create"
        " this user with access to rows only, and set its password. Only migrations read it.",
    )


class Settings(DatabaseSettings):
    """Settings of the service. `docs/configuration.md` is generated from them."""

    broker_url: RedisDsn = Field(
        examples=["redis://:PASSWORD@127.0.0.1:6379/0"],
        description="URL of Valkey or Redis: `redis://…`, or `rediss://…` for TLS. `?ssl_ca_certs=FILE` at its end"
        " names the certificate of your own authority. The server carries notifications only and can be emptied at any"
        " time.",
    )
    s3_endpoint: str = Field(
        pattern=HTTP,
        examples=["http://127.0.0.1:8333"],
        description="URL of the object storage for the API and the workers.",
    )
    s3_public_endpoint: str | None = Field(
        default=None,
        pattern=HTTP,
        examples=["https://storage.example.com"],
        description="URL of the object storage for users, used in presigned links. Default: `SEFT_S3_ENDPOINT`.",
    )
    s3_region: str = Field(default="us-east-1", description="Region of the object storage, used to sign requests.")
    s3_bucket: str = Field(
        default="seft",
        description="Bucket for datasets and checkpoints. Created if it does not exist. Two services must not"
        " share it: each would delete the objects of the other. So the API does not start if another service owns"
        " the bucket. With `deploy/Caddyfile`, it must not have the name of a path of the API, such as `jobs`.",
    )
    s3_access_key: SecretStr = Field(description="Access key of the object storage.")
    s3_secret_key: SecretStr = Field(description="Secret key of the object storage.")
    secret_key: Annotated[SecretStr, Field(min_length=32)] | None = Field(
        default=None,
        description="Key that encrypts tenants' hub tokens (32 characters or more). Without it, they are rejected.",
    )
    old_secret_keys: Annotated[list[Annotated[SecretStr, Field(min_length=32)]], List] = Field(
        default=[],
        description="Earlier values of `SEFT_SECRET_KEY`, separated by commas. They only decrypt, until all hub tokens"
        " are encrypted with the new key.",
    )
    signing_key: Annotated[SecretStr, AfterValidator(_signing_key)] | None = Field(
        default=None,
        description="Secret key of minisign without a password: the last line of the file that `minisign -G -W` writes."
        " With it, workers sign checkpoints. Only workers read it.",
    )

    api_host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(default=8000, ge=1, le=65535, description="Port that the API listens on.")
    api_processes: int = Field(
        default=1, ge=1, description="Number of API processes. Each opens up to 20 connections to Postgres."
    )
    model_roots: Annotated[list[Path], Folders] = Field(
        default=[],
        examples=["/models:/more/models"],
        description="Folders with local models, separated by colons or commas. Jobs name a model by its path inside"
        " such a folder.",
    )
    max_upload_bytes: int = Field(
        default=1 << 30, ge=1, description="Maximum size of a dataset that is uploaded in one request, in bytes."
    )
    max_dataset_bytes: int = Field(
        default=1 << 34, ge=1, description="Maximum size of a dataset after decompression, in bytes."
    )
    dataset_buckets: Annotated[list[Bucket], List] = Field(
        default=[],
        examples=["inbox,shared/texts"],
        description="Buckets from which every tenant can import datasets: `bucket` or `bucket/prefix`, separated by"
        " commas.",
    )
    rate_limit: float = Field(
        default=200,
        ge=0,
        description="Average number of requests per second that one API key may send. A key may send ten times this"
        " number in a burst. 0 removes this limit. It also removes the limit for requests with unknown keys.",
    )
    key_waits: int = Field(
        default=100,
        ge=0,
        description="Requests with `wait` and event streams that each API key may have open at the same time, per API"
        " process. All keys of a network address together may have four times this number. 0 means no limit.",
    )
    webhook_networks: Annotated[list[IPvAnyNetwork], List] = Field(
        default=[],
        examples=["10.1.0.0/16,fd00::/8"],
        description="Private networks to which webhooks may be sent: CIDR ranges, separated by commas.",
    )
    link_seconds: int = Field(
        default=3600,
        ge=1,
        le=7 * 24 * 3600,
        description="Number of seconds for which a presigned link (download, or upload of a part) is valid, at most"
        " 604800: the storage rejects links that are valid for more than a week.",
    )

    lease_seconds: float = Field(
        default=60, gt=0, description="Number of seconds without a heartbeat after which a worker loses its job."
    )
    heartbeat_seconds: float = Field(
        default=3,
        gt=0,
        description="Seconds between two heartbeats. A heartbeat renews the lease and returns pending actions.",
    )
    tenant_running: int = Field(
        default=32, ge=0, description="Maximum number of running jobs per tenant; 0 means no limit."
    )
    tenant_waiting: int = Field(
        default=1000, ge=0, description="Maximum number of queued and paused jobs per tenant; 0 means no limit."
    )
    tenant_weights: Annotated[dict[str, Annotated[float, Field(ge=0.01, le=100)]], Json] = Field(
        default={},
        examples=['{"acme": 2}'],
        description='Weights of tenants, as a JSON object such as `{"acme": 2}`. A tenant with weight 2 gets twice as'
        " many workers as a tenant with weight 1, which is the weight of all others. Only workers read it.",
    )
    key_running: int = Field(
        default=0, ge=0, description="Maximum number of running jobs per API key; 0 means no limit."
    )
    key_waiting: int = Field(
        default=0, ge=0, description="Maximum number of queued and paused jobs per API key; 0 means no limit."
    )
    tenant_bytes: int = Field(
        default=0,
        ge=0,
        description="Maximum total size of a tenant's datasets, checkpoints and unfinished imports, in bytes; 0 means"
        " no limit.",
    )
    checkpoint_days: int = Field(
        default=0,
        ge=0,
        description="Maximum number of days to keep a checkpoint, even if its job asks for more; 0 means no limit.",
    )
    dataset_days: int = Field(
        default=90, ge=0, description="A dataset that no job has used for this many days is deleted; 0 means never."
    )
    tidy_seconds: float = Field(
        default=3600,
        gt=0,
        description="How often, in seconds, expired data and stored files that no database row refers to are deleted.",
    )
    sweep_seconds: float = Field(
        default=10, gt=0, description="How often, in seconds, a worker looks for lost jobs and lost notifications."
    )
    job_seconds: int = Field(
        default=7 * 24 * 3600,
        ge=0,
        description="Maximum number of seconds that a job may run, in all attempts together; 0 means no limit.",
    )
    tenant_job_seconds: Annotated[dict[str, Annotated[int, Field(ge=0)]], Json] = Field(
        default={},
        examples=['{"acme": 2592000}'],
        description='Tenants with another limit than `SEFT_JOB_SECONDS`, as a JSON object such as `{"acme": 2592000}`.',
    )
    max_failures: int = Field(
        default=3,
        ge=1,
        description="Number of failed attempts after which a job fails permanently. The count returns to 0"
        " when the job saves a step that it had not reached before.",
    )

    scratch: Path = Field(default=Path("/tmp/seft"), description="Folder for the files of a running job.")  # noqa: S108
    hub_cache_bytes: int = Field(
        default=1 << 39,
        ge=0,
        description="Maximum size of the models that this machine keeps from the hub, in bytes; 0 means no limit. The"
        " least recently used models that no process uses are deleted first.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        examples=["cuda:1"],
        description="Device of a worker: `cpu`, `cuda`, or `cuda:1` for the second one; `auto` uses CUDA if available.",
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of devices of a worker: `SEFT_DEVICE` and those that follow it, all of one kind. A job says"
        " how many of them it uses. On a CPU this is a number of processes. The worker runs one job at a time.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Number of CPU threads of the training of a job, for all its processes together; 0 uses torch's"
        " default.",
    )
    checkpoint_seconds: float = Field(default=300, gt=0, description="Seconds between two saves of the training state.")
    log_format: Literal["json", "console"] = Field(
        default="json", description="Format of log lines: `json` (one object per line) or `console` (colours)."
    )

    def job_seconds_of(self, tenant: str) -> int:
        """Return the maximum number of seconds that a job of this tenant may run. 0 means no limit."""
        return self.tenant_job_seconds.get(tenant, self.job_seconds)

    @model_validator(mode="after")
    def _require_private_bucket(self) -> Self:
        if any(location.partition("/")[0] == self.s3_bucket for location in self.dataset_buckets):
            raise ValueError(
                f"SEFT_DATASET_BUCKETS must not contain SEFT_S3_BUCKET ({self.s3_bucket}), which has the data of all"
                " tenants. Remove it from SEFT_DATASET_BUCKETS."
            )
        return self

    @model_validator(mode="after")
    def _require_lease_for_three_heartbeats(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"SEFT_LEASE_SECONDS ({self.lease_seconds}) must be at least three times SEFT_HEARTBEAT_SECONDS"
                f" ({self.heartbeat_seconds}), so that a worker keeps its job if one heartbeat is lost. Raise the first"
                " or lower the second."
            )
        return self


S = TypeVar("S", bound=DatabaseSettings)


def read(kind: type[S]) -> S:
    """Return the settings that the environment gives.

    If they are invalid, write one line per invalid variable to stderr and end the process with the status `INVALID`.
    """
    try:
        return kind()
    except ValidationError as error:
        sys.stderr.writelines(f"{line}\n" for line in flaws(kind, error))
        raise SystemExit(INVALID) from None


def flaws(kind: type[DatabaseSettings], error: ValidationError) -> list[str]:
    """Return one line per invalid variable: its name, the rule, the value unless it is a secret, and an example."""
    return [_flaw(kind, entry) for entry in map(dict, error.errors())]


def _flaw(kind: type[DatabaseSettings], entry: dict[str, Any]) -> str:
    rule = broken_rule(entry)
    if not entry["loc"]:  # two variables contradict each other; the text names both
        return rule
    name, *inner = entry["loc"]
    field, variable = kind.model_fields[name], f"SEFT_{name.upper()}"
    example = next(iter(field.examples or ()), None if field.is_required() else field.default)
    way_out = f"Example: {variable}={example}" if example else str(field.description)
    if entry["type"] == "missing":
        return f"{variable} must be set; it is not. {way_out}"
    place = "".join(f" (entry {part!r})" for part in inner[:1])
    return f"{variable}{place}: {rule}; it is {_shown(str(field), entry['input'])}. {way_out}"


def _shown(field: str, value: object) -> str:
    """Return a value to show in an error, without possible secrets. `field` is the definition of the setting."""
    if "Secret" in field:
        return "not shown, because it is a secret"
    if "Dsn" not in field:
        return repr(value)
    scheme, _, rest = str(value).partition("://")
    _, credentials, host = rest.rpartition("@")
    shown = repr(f"{scheme}://…@{host.partition('?')[0]}")
    return shown if credentials else "not shown, because it may contain a password"
