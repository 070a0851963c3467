"""Jobs that run through their phases without a worker: `core.jobs.attempts` writes what a worker would write."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from core.infra.storage import Storage
from core.jobs import attempts
from core.jobs.attempts import Attempt, Fault
from core.jobs.reports import CHANGES
from core.states import Phase
from seft.config import PruneSchedule
from tests import claims, hollow

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BLOCKS = 30
WEIGHTS = 331_776
LEASE_SECONDS = 600


@dataclass(frozen=True)
class Scores:
    """Perplexities of a simulated job."""

    dense: float = 20.6
    pruned: float = 90.2
    repaired: float = 31.4


class SimulatedJob:
    """The next job of the queue, claimed by a worker of this name."""

    def __init__(self, sessions: sessionmaker[Session], storage: Storage, worker: str = "gpu-1") -> None:
        self.sessions, self.storage = sessions, storage
        with sessions.begin() as session:
            claimed = claims.claim(session, worker, LEASE_SECONDS)
        assert claimed is not None, "no job is waiting"
        self.attempt: Attempt = claimed
        self.steps = claimed.spec.repair.steps

    def prune(self, scores: Scores) -> None:
        """Run up to the first training step."""
        self._phase(Phase.LOADING, 0.02, 0)
        self._phase(Phase.EVALUATING, 0.08, 0)
        self._scores(dense=scores.dense)
        self._phase(Phase.PRUNING, 0.3, 0)
        self._scores(pruned=scores.pruned)
        self._phase(Phase.TRAINING, 0.4, 0)
        self._event("state.saved", {"step": 0})

    def train(self, first: int, last: int, remaining: float | None = None) -> None:
        """Train the steps after `first` up to `last`, with metrics for each. `remaining` seconds are left then."""
        rows = [(step, dict(self._measured(step))) for step in range(first + 1, last + 1)]
        with self.sessions.begin() as session:
            attempts.add_metrics(session, self.attempt, rows)
            for step, values in rows:
                if "grown" in values:
                    attempts.record_evolution(session, self.attempt, self._evolved(step, values))
            progress = 0.4 + 0.5 * last / self.steps
            attempts.set_progress(
                session, self.attempt, phase=Phase.TRAINING, progress=progress, step=last, remaining=remaining
            )

    def finish(self, scores: Scores) -> None:
        """Evaluate and publish. The checkpoint's files exist, but all weights are zero."""
        self._phase(Phase.EVALUATING, 0.92, self.steps)
        self._phase(Phase.EXPORTING, 0.96, self.steps)
        self._phase(Phase.UPLOADING, 0.99, self.steps)
        prefix = f"jobs/{self.attempt.job_id}/{self.attempt.number}/"
        files = {
            "README.md": b"---\nlicense: apache-2.0\n---\n",
            "config.json": json.dumps(hollow.CONFIG).encode(),
            "model.safetensors": hollow.weights(),
            "model.seft": b"SEFTCOMP",
            "sparsity.json": json.dumps({"sparsity": {"layers": self._layers()}}).encode(),
            "manifest.json": b"{}\n",
        }
        for name, content in files.items():
            self.storage.put(prefix + name, content)
        sizes = {name: len(content) for name, content in files.items()}
        zeros = round(self.attempt.spec.sparsity * 106_168_320)
        with self.sessions.begin() as session:
            attempts.publish(
                session,
                self.attempt,
                step=self.steps,
                prefix=prefix,
                sha256="9f86d081884c7d65" * 4,
                files=[{"name": name, "size": size, "sha256": "0" * 64} for name, size in sizes.items()],
                scores=vars(scores),
                measured={
                    "linears": {"zeros": zeros, "weights": 106_168_320, "share": zeros / 106_168_320},
                    "model": {"zeros": zeros, "weights": 134_515_008, "share": zeros / 134_515_008},
                    "grown_zeros": 147_491,
                },
            )

    def fail(self, message: str, fault: Fault = Fault.USER, code: str = "out_of_memory") -> None:
        """End the job with an error, without a retry."""
        with self.sessions.begin() as session:
            attempts.fail(session, self.attempt, fault=fault, code=code, message=message, retry=False, max_failures=1)

    def _measured(self, step: int) -> Iterator[tuple[str, float]]:
        done, interval = step / self.steps, self.attempt.spec.repair.update_interval
        wave = math.sin(12.9898 * step) * 0.5 + math.sin(4.1 * step) * 0.5
        yield "loss", 3.35 + 1.25 * math.exp(-5 * done) + 0.12 * wave
        yield "learning_rate", 0.003 * min(1.0, step / 20) * (1 - done)
        yield "tokens_per_second", 5210 + 140 * wave - (900 if step % interval == 0 else 0)
        yield "memory_bytes", 3.1e9 + 4e8 * done + (3e8 if step % interval == 0 else 0)
        if step % (2 * interval) == 0:
            yield "held_out_loss", 3.42 + 1.1 * math.exp(-4 * done)
        if step % interval == 0 and done <= 0.75:
            grown = round(106_000 * (1 - done))
            yield "dropped", grown
            yield "grown", grown
            yield "reactivated", round(grown * 0.31)
            yield "pruned", round(grown * 0.3)

    def _evolved(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Spread the sums of a step unevenly over the layers. The weights of the layers change with the step."""
        names = list(self._layers())
        weights = [1 + math.sin(3 * n / len(names) + 2 * step / self.steps) + n % 7 / 3 for n in range(len(names))]
        changes = {name: round(values[name]) for name in CHANGES}
        fractions = [weight / sum(weights) for weight in weights]
        layers = {
            name: {change: round(count * fraction) for change, count in changes.items()}
            for name, fraction in zip(names, fractions, strict=True)
        }
        spec = self.attempt.spec
        rises = spec.prune.schedule is PruneSchedule.GRADUAL
        done = min(1.0, step / self.steps / spec.prune.rise) if rises else 1.0
        sparsity = spec.sparsity * (1 - (1 - done) ** 3)
        return {"step": step, **changes, "sparsity": sparsity, "undone": False, "layers": layers}

    def _layers(self) -> dict[str, dict[str, int]]:
        """Return counts of zeros with a sparsity that differs a little between layers."""
        names = [f"model.layers.{block}.{part}" for block in range(BLOCKS) for part in (*PARTS, *MLP)]
        fractions = {
            name: self.attempt.spec.sparsity + 0.07 * math.sin(0.9 * n) - 0.1 * math.exp(-n / 20)
            for n, name in enumerate(names)
        }
        return {name: {"zeros": round(fraction * WEIGHTS), "weights": WEIGHTS} for name, fraction in fractions.items()}

    def _phase(self, phase: Phase, progress: float, step: int) -> None:
        with self.sessions.begin() as session:
            attempts.set_progress(session, self.attempt, phase=phase, progress=progress, step=step)

    def _scores(self, **values: float) -> None:
        with self.sessions.begin() as session:
            attempts.add_scores(session, self.attempt, values)

    def _event(self, kind: str, data: dict[str, int]) -> None:
        with self.sessions.begin() as session:
            attempts.add_event(session, self.attempt, kind, data)
