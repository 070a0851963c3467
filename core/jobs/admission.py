"""Check a request and create its job. All checks are done before the job's row is created.

No transaction is open during requests to the model hub.
"""

import json
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy.orm import Session, sessionmaker

from core.access import audit
from core.access.audit import Caller
from core.errors import Code, Flaw, ProblemError
from core.estimate.estimates import estimate
from core.jobs import fairness, jobs, pushes
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.spec_parts import CalibrationSpec, EvaluateSpec, OutputSpec, PruneSpec, RepairSpec
from core.specs import JobSpec
from core.states import Phase
from core.tables import Job, Json
from seft.config import Allocation, Retain, require_repair_of
from seft.errors import ConfigError
from seft.fit import require_dense_model, require_fit, require_packable
from seft.models.dimensions import Dimensions
from seft.models.gguf_config import require_formats
from seft.models.source import ModelSource

AnySpec = TypeVar("AnySpec", bound=JobSpec)


def admit(
    resolver: ModelResolver,
    sessions: sessionmaker[Session],
    caller: Caller,
    spec: JobSpec,
    *,
    idempotency_key: str | None,
    action: str,
    settings: Settings,
) -> tuple[Job, bool]:
    """Check a request and create its job.

    Returns the new job and True. If the same idempotency key and body have created a job before, returns that job and
    False. `action` is the name of the operation in the audit log. The revision of a hub model is replaced by its
    current commit, so that a later change of the branch does not change the job. A job with `auto_start: false`
    stores an estimate of its cost. Raises ProblemError if the dataset, the model, the repository to push to or the
    idempotency key is rejected, if the settings do not fit the model, or if a limit of the operator is exceeded. Also
    raises it if the schedule is `gradual` and the job fits into the memory of no live worker with enough devices. If
    there is no such worker, the memory is not checked.
    """
    body = spec.fingerprint()
    with sessions.begin() as session:
        if existing := jobs.find_by_idempotency_key(session, caller.tenant, idempotency_key, body):
            return existing, False
    _require_run_time(spec, settings.job_seconds_of(caller.tenant))
    if spec.output.push.repository is not None:
        pushes.require_branch(spec.output.push.revision, "output.push.revision")
        resolver.require_writable(caller.tenant, spec.output.push.repository, "output.push.repository")
    source = resolver.find(caller.tenant, spec.model, spec.revision)
    dimensions = resolver.dimensions(caller.tenant, source)
    pinned = fitted(spec, dimensions, source).model_copy(update={"revision": source.revision})
    gradual = spec.prune.gradual
    with sessions.begin() as session:
        # The same request may have created its job since the first look. This look locks the key until the commit.
        if existing := jobs.find_by_idempotency_key(session, caller.tenant, idempotency_key, body):
            return existing, False
        fairness.require_waiting_quota(session, caller, settings)
        fairness.require_storage_quota(session, caller.tenant, settings.tenant_bytes)
        estimated = None if spec.auto_start and not gradual else estimate(session, dimensions, pinned, settings)
        if gradual and estimated:
            _require_memory(estimated, spec)
        job = jobs.create(
            session,
            caller.tenant,
            pinned,
            idempotency_key,
            body,
            key_id=caller.key_id,
            request_id=caller.request_id,
            estimate=None if spec.auto_start else estimated,
            has_chat_template=source.has_chat_template,
        )
        audit.record(session, caller, action, job.id)
        return job, True


def fitted(spec: AnySpec, model: Dimensions, source: ModelSource) -> AnySpec:
    """Return the request, adapted to a model. Sequence lengths that were left out do not exceed the model's context.

    The allocation `auto` becomes `uniform` if the model needs it. If the model is already pruned (sparsity 0), there is
    no dense model. Then a `retain` that was left out becomes `none`.

    Raises ProblemError if the settings do not fit the model. The library defines the rules (`seft.fit`,
    `seft.models.gguf_config`). The tokenizer is not read here. The training process checks it before the training.
    """
    spec = spec.within(model.context)
    if model.shares_keys and spec.allocation is Allocation.AUTO:
        spec = spec.model_copy(update={"allocation": Allocation.UNIFORM})
    if spec.prune_config().keeps_zeros and "retain" not in spec.repair.model_fields_set:
        spec = spec.model_copy(update={"repair": spec.repair.model_copy(update={"retain": Retain.NONE})})
    flaws = list[Flaw]()
    rules: dict[str, Callable[[], object]] = {
        "prune": lambda: require_fit(model, spec.prune_config()),
        "repair": lambda: _fit_repair(spec, model),
        "evaluate": lambda: require_fit(model, spec.evaluate_config()),
        "output": lambda: _fit_output(spec, model, source),
    }
    for part, rule in rules.items():
        try:
            rule()
        except ConfigError as error:
            flaws.append(Flaw(_path_in_request(part, error.field), error.rule, repr(error.value), error.way_out))
    if flaws:
        detail = " ".join(f"{flaw.param} {flaw.rule}. {flaw.way_out}" for flaw in flaws)
        raise ProblemError(Code.INVALID_REQUEST, detail, tuple(flaws))
    return spec


def _fit_output(spec: JobSpec, model: Dimensions, source: ModelSource) -> None:
    require_formats(spec.output.formats, source)
    require_packable(model, spec.output.formats)


def _fit_repair(spec: JobSpec, model: Dimensions) -> None:
    if repair := spec.repair_config():
        require_repair_of(spec.prune_config(), repair)
        require_dense_model(spec.prune_config(), repair)
        repair.require_processes(spec.devices)  # a batch has more sequences if each is shorter
        require_fit(model, repair)


def _require_run_time(spec: JobSpec, limit: int) -> None:
    """Raise ProblemError if the request asks for a longer run time than the operator allows."""
    if limit and spec.max_seconds > limit:
        rule, way_out = f"must be at most {limit}, the operator's limit", f"Send {limit} or less, or leave it out."
        flaw = Flaw("max_seconds", rule, str(spec.max_seconds), way_out)
        raise ProblemError(Code.INVALID_REQUEST, f"max_seconds {rule}. {way_out}", (flaw,))


def _require_memory(estimated: Json, spec: JobSpec) -> None:
    """Raise ProblemError if live workers have enough devices, and the job fits into the memory of none of them.

    With the schedule `gradual` the model trains while it is still dense, so a job that does not fit would fail late.
    """
    able = [worker for worker in estimated["workers"] if worker["devices"] >= spec.devices]
    if not able or any(worker["fits"] for worker in able):
        return
    closest = max(able, key=lambda worker: worker["memory_bytes"] / worker["needed_bytes"])
    need, have = (f"{closest[name] / 1e9:.1f} GB" for name in ("needed_bytes", "memory_bytes"))
    needs = f"{closest['phase']} needs {need}, and {closest['name']} has {have}"
    if closest["phase"] == Phase.TRAINING:
        param, value = "prune.schedule", "gradual"
        rule = f"must not be gradual, because the model does not fit while it is dense: {needs}"
    else:  # the schedule does not affect this phase
        param, value, rule = "model", spec.model, f"must fit into the memory of a worker: {needs}"
    change = closest["change"]
    way_out = f"Change the request: {json.dumps(change)}." if change else "Use a smaller model or a larger device."
    flaw = Flaw(param, rule, repr(value), way_out)
    raise ProblemError(Code.INVALID_REQUEST, f"{param} {rule}. {way_out}", (flaw,))


def _path_in_request(part: str, field: str) -> str:
    """Return the dotted path in a request of the library's setting `field`, which belongs to a part of the request."""
    places: tuple[tuple[str, type[BaseModel]], ...] = (
        ("prune", PruneSpec),
        ("prune.calibration", CalibrationSpec),
        ("repair", RepairSpec),
        ("evaluate", EvaluateSpec),
        ("output", OutputSpec),
    )
    found = (place for place, spec in places if place.startswith(part) and field in spec.model_fields)
    return ".".join([*filter(None, [next(found, "")]), field])
