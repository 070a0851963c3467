"""The files of one attempt: where they lie in the scratch folder and in object storage, and the ways between.

All that takes long is called in the thread of `worker.transfers`, and none of it knows the database's side of the job.
"""

import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

from core.access.encryption import Encryption
from core.infra.tracing import TRACER
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.states import Phase
from core.tables import Json
from seft.models.source import fetch_into, find, find_on_hub
from worker.protocol import DATA, ENOUGH, MODELS, RESULT, RESUME, STATE, Task
from worker.transfers import GoneError, Transfers, hash_file

MANIFEST = "manifest.json"


class Files:
    """Of the attempt whose objects lie under `prefix` and whose local files lie in `folder`."""

    def __init__(self, attempt: Attempt, settings: Settings, transfers: Transfers) -> None:
        self.attempt, self.settings, self.transfers = attempt, settings, transfers
        self.folder = settings.scratch / attempt.job_id / str(attempt.number)
        self.prefix = f"jobs/{attempt.job_id}/{attempt.number}/"

    @property
    def result_prefix(self) -> str:
        """Of the checkpoint's objects."""
        return f"{self.prefix}{RESULT}/"

    def fetch(self) -> GoneError | None:
        """Everything that the training process needs, into a fresh folder.

        What is wrong with the state that it was to go on from, where the process has to begin anew.
        """
        self.folder.mkdir(parents=True)
        for other in self.folder.parent.iterdir():
            if int(other.name) < self.attempt.number:
                shutil.rmtree(other, ignore_errors=True)
        self.transfers.download(self.attempt.dataset_key, self.folder / DATA, self.attempt.dataset_sha256)
        resume, gone = self.attempt.resume, None
        try:
            for file in (resume or {"files": []})["files"]:
                self.transfers.download(file["key"], self.folder / STATE / file["name"], file["sha256"])
        except GoneError as error:
            shutil.rmtree(self.folder / STATE)
            resume, gone = None, error
        for file in self.attempt.model_files:
            path = self.folder / MODELS / self.attempt.spec.model / file["name"]
            self.transfers.download(file["key"], path, file["sha256"])
        Task(
            spec=self.attempt.spec,
            dataset_sha256=self.attempt.dataset_sha256,
            resume=resume["step"] if resume else None,
            model_roots=[self.folder / MODELS] if self.attempt.model_files else self.settings.model_roots,
            device=self.settings.device,
            threads=self.settings.threads,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            micro_batch=self.attempt.micro_batch,
            private=self._private(),
        ).write(self.folder)
        if self.attempt.stop_step is not None:
            self.tell_enough(self.attempt.stop_step)
        return gone

    def _private(self) -> Path | None:
        """The model, where only the tenant's hub token opens it: fetched here, as the training process knows no secret.

        It goes with the job's folder, so that no other tenant's job finds it.
        """
        attempt, sealed = self.attempt, self.attempt.hub_token
        if sealed is None or attempt.model_files:
            return None
        spec, roots = attempt.spec, self.settings.model_roots
        ask_hub = partial(find_on_hub, token=lambda: Encryption(self.settings).decrypt(sealed))
        source = find(spec.model, roots=roots, revision=spec.revision, ask_hub=ask_hub)
        if source.token is None:
            return None
        folder = self.folder / MODELS / str(source.revision)
        fetch_into(folder, source, alive=self.transfers.check)
        return folder

    def tell_enough(self, step: int) -> None:
        """Have the training process train no further, once it has come to a step."""
        fresh = self.folder / f"{ENOUGH}.new"
        fresh.write_text(str(step))
        fresh.rename(self.folder / ENOUGH)

    def upload_state(self, step: int) -> list[Json]:
        """The files of a resumable state, as the job's row points to them."""
        folder, prefix = self._state(step), f"{self.prefix}{RESUME}/{step}/"
        files: list[Json] = [
            {"name": path.name, "key": prefix + path.name, "size": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.iterdir())
        ]
        for file in files:
            self.transfers.upload(folder / file["name"], file["key"])
        return files

    def remove_state(self, step: int) -> None:
        """The local files of a state, which tells the training process that there is room for the next one."""
        shutil.rmtree(self._state(step))

    def upload_result(self) -> list[Json]:
        """The checkpoint's files, the manifest last; as the checkpoint's row names them."""
        folder = self.folder / RESULT
        manifest = folder / MANIFEST
        files: list[Json] = json.loads(manifest.read_bytes())["files"]
        with TRACER.start_as_current_span(Phase.UPLOADING):
            for file in files:
                self.transfers.upload(folder / file["name"], self.result_prefix + file["name"])
            self.transfers.upload(manifest, self.result_prefix + MANIFEST)
        return [*files, {"name": MANIFEST, "size": manifest.stat().st_size, "sha256": hash_file(manifest)}]

    def remove(self) -> None:
        """The attempt's folder; that of the job too, unless another attempt works in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _state(self, step: int) -> Path:
        return self.folder / RESUME / str(step)
