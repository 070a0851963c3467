"""Estimate a job before it runs: memory, time, size of the checkpoint, and which workers can run it.

The weights of the model are not read.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import workers
from core.estimate import fitting, timings
from core.estimate.calibration import calibration_tokens
from core.estimate.footprint import memory_by_phase, resume_bytes
from core.estimate.speed import DENSE_BYTES, Speed
from core.settings import Settings
from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.tables import Json, Worker
from seft.config import published_bytes
from seft.models.dimensions import Dimensions


def estimate(session: Session, model: Dimensions, spec: JobSpec, settings: Settings) -> Json:
    """Estimate a job. Return the values of the fields of `api.schemas.estimates.EstimateView`."""
    speeds = timings.load(session)
    query = select(Worker).where(workers.is_alive(settings.sweep_seconds)).order_by(Worker.name)
    formats, head = spec.output.formats, model.hidden * model.vocabulary
    zeros = spec.zeros(model.parameters, model.targets)
    # These values are for no particular worker, so `auto` counts as float32, the larger type.
    largest = spec.resolve_dtype(bfloat16=False)
    memory = memory_by_phase(model, largest)
    living = [_on_worker(worker, model, spec, speeds) for worker in session.scalars(query)]
    return {
        "architecture": model.architecture,
        "parameters": model.parameters,
        "target_weights": model.targets,
        "steps": spec.repair.steps if spec.repair.method is not RepairMethod.NONE else 0,
        "tokens": _tokens(spec),
        "memory": [
            {"phase": phase, "device_bytes": need.device, "host_bytes": need.host, "together_bytes": need.combined}
            for phase, need in memory.items()
        ],
        "checkpoint_bytes": published_bytes(formats, model.parameters, zeros, head, model.targets),
        "disk_bytes": resume_bytes(model, largest) + DENSE_BYTES * model.parameters,
        "fits": any(each["fits"] for each in living) if living else None,
        "workers": living,
    }


def _tokens(spec: JobSpec) -> dict[str, int]:
    repair, evaluate = spec.repair, spec.evaluate
    trains = repair.method is not RepairMethod.NONE
    return {
        "calibration": calibration_tokens(spec) if spec.prunes else 0,
        "training": repair.steps * repair.batch_tokens if trains else 0,
        "evaluation": evaluate.windows * evaluate.tokens * len(spec.scored),
    }


def _on_worker(worker: Worker, model: Dimensions, spec: JobSpec, speeds: Mapping[str, Speed]) -> dict[str, Any]:
    spec = spec.resolve_dtype(bfloat16=worker.bfloat16)
    fit = fitting.fit(model, spec, worker)
    seconds, source = speeds.get(worker.device_name, Speed()).estimate_total(spec, model)
    return {
        "name": worker.name,
        "device": worker.device,
        "device_name": worker.device_name,
        "devices": worker.devices,
        "dtype": spec.dtype,
        "fits": fit.fits,
        "phase": fit.phase,
        "needed_bytes": fit.needed_bytes,
        "memory_bytes": fit.memory_bytes,
        "change": {} if fit.fits else fitting.suggest_change(model, spec, worker),
        "seconds": seconds,
        "seconds_from": source,
    }
