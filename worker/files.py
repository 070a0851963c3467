"""The files of one attempt, on disk and in object storage: their paths, their keys, download and upload.

Methods that transfer files run in the thread of `worker.transfers`. This module does not use the database.
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
from worker import disk_space
from worker.protocol import DATA, ENOUGH, MODELS, RESULT, RESUME, RETAIN_DATA, STATE, Task
from worker.transfers import GoneError, Transfers, hash_file

MANIFEST = "manifest.json"


class Files:
    """The files of one attempt. Objects in storage are under the key `prefix`, local files in `folder`."""

    def __init__(self, attempt: Attempt, settings: Settings, transfers: Transfers) -> None:
        self.attempt, self.settings, self.transfers = attempt, settings, transfers
        self.folder = settings.scratch / attempt.job_id / str(attempt.number)
        self.prefix = f"jobs/{attempt.job_id}/{attempt.number}/"

    @property
    def result_prefix(self) -> str:
        """Prefix of the keys of the checkpoint's objects."""
        return f"{self.prefix}{RESULT}/"

    def dataset_bytes(self) -> int:
        """Return the size of the dataset and of the dataset to retain. They must have been fetched."""
        names = [DATA, *([RETAIN_DATA] if self.attempt.retained else [])]
        return sum((self.folder / name).stat().st_size for name in names)

    def fetch(self) -> GoneError | None:
        """Download all files that the training process needs into a new folder, and write `job.json`.

        If the state to resume from is missing or damaged, returns that error. Training then restarts without a state.
        """
        self.folder.mkdir(parents=True)
        for other in self.folder.parent.iterdir():
            if int(other.name) < self.attempt.number:
                shutil.rmtree(other, ignore_errors=True)
        self.transfers.download(self.attempt.dataset_key, self.folder / DATA, self.attempt.dataset_sha256)
        if self.attempt.retained:
            key, sha256 = self.attempt.retained
            self.transfers.download(key, self.folder / RETAIN_DATA, sha256)
        resume, gone = self.attempt.resume, None
        try:
            for file in (resume or {"files": []})["files"]:
                self.transfers.download(file["key"], self.folder / STATE / file["name"], file["sha256"])
        except GoneError as error:
            shutil.rmtree(self.folder / STATE)
            resume, gone = None, error
        disk_space.require_space(self.folder, sum(file["size"] for file in self.attempt.model_files))
        for file in self.attempt.model_files:
            path = self.folder / MODELS / self.attempt.spec.model / file["name"]
            self.transfers.download(file["key"], path, file["sha256"])
        Task(
            spec=self.attempt.spec,
            dataset_sha256=self.attempt.dataset_sha256,
            retained_sha256=self.attempt.retained[1] if self.attempt.retained else None,
            resume=resume["step"] if resume else None,
            model_roots=[self.folder / MODELS] if self.attempt.model_files else self.settings.model_roots,
            device=self.settings.device,
            threads=self.settings.threads,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            micro_batch=self.attempt.micro_batch,
            hub_cache_bytes=self.settings.hub_cache_bytes,
            private=self._fetch_private_model(),
        ).write(self.folder)
        if self.attempt.stop_step is not None:
            self.request_early_stop(self.attempt.stop_step)
        return gone

    def _fetch_private_model(self) -> Path | None:
        """Download the model if the hub requires the tenant's token for it. Return its folder, or None if not required.

        The worker downloads it, because the training process gets no secrets. The folder is inside the job's folder.
        So it is deleted with the job's folder, and jobs of other tenants cannot find it.
        """
        attempt, encrypted_token = self.attempt, self.attempt.hub_token
        if encrypted_token is None or attempt.model_files:
            return None
        spec, roots = attempt.spec, self.settings.model_roots
        encryption = Encryption(self.settings)
        ask_hub = partial(find_on_hub, token=lambda: encryption.decrypt(encrypted_token, attempt.tenant))
        source = find(spec.model, roots=roots, revision=spec.revision, ask_hub=ask_hub)
        if source.token is None:
            return None
        folder = self.folder / MODELS / str(source.revision)
        disk_space.require_space(self.folder, source.bytes())
        fetch_into(folder, source, alive=self.transfers.check)
        return folder

    def request_early_stop(self, step: int) -> None:
        """Ask the training process to end training at this step, or at its next step if it is already later.

        Idempotent.
        """
        path, temporary = self.folder / ENOUGH, self.folder / f"{ENOUGH}.new"
        if not path.exists():
            temporary.write_text(str(step))
            temporary.rename(path)

    def upload_state(self, step: int) -> list[Json]:
        """Upload a saved state. Return its list of files in the format of the job's row."""
        folder, prefix = self._state(step), f"{self.prefix}{RESUME}/{step}/"
        files: list[Json] = [
            {"name": path.name, "key": prefix + path.name, "size": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.iterdir())
        ]
        for file in files:
            self.transfers.upload(folder / file["name"], file["key"])
        return files

    def remove_state(self, step: int) -> None:
        """Delete the local files of a saved state. The training process waits for this before it writes more states."""
        shutil.rmtree(self._state(step))

    def upload_result(self) -> list[Json]:
        """Upload the checkpoint, with the manifest last.

        Return its list of files in the format of the checkpoint's row.
        """
        folder = self.folder / RESULT
        manifest = folder / MANIFEST
        files: list[Json] = json.loads(manifest.read_bytes())["files"]
        with TRACER.start_as_current_span(Phase.UPLOADING):
            for file in files:
                self.transfers.upload(folder / file["name"], self.result_prefix + file["name"])
            self.transfers.upload(manifest, self.result_prefix + MANIFEST)
        return [*files, {"name": MANIFEST, "size": manifest.stat().st_size, "sha256": hash_file(manifest)}]

    def remove(self) -> None:
        """Delete the folder of the attempt. Also delete the folder of the job, unless another attempt uses it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _state(self, step: int) -> Path:
        return self.folder / RESUME / str(step)
