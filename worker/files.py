"""The files of one attempt, on disk and in object storage: their paths, their keys, download and upload.

Methods that transfer files run in the thread of `worker.transfers`. This module does not use the database.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from core.access.encryption import Encryption
from core.estimate.speed import Speed
from core.infra import folders
from core.infra.tracing import TRACER
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.states import Phase
from core.tables import Json, StoredDataset
from seft.models.source import fetch_into, find, find_on_hub
from worker import child_files, disk_space
from worker.child_files import RefusedFileError
from worker.format_service import FormatService
from worker.protocol import DATA, END_TRAINING, HELD_OUT_DATA, MODELS, RESULT, RESUME, RETAIN_DATA, STATE, Task
from worker.retries import retry_hub
from worker.transfers import GoneError, Transfers

MANIFEST, MAX_MANIFEST_BYTES = "manifest.json", 4 << 20
SIGNATURE = "manifest.json.minisig"


class ResultFile(BaseModel):
    """An entry of the manifest that the training process wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{child_files.NAME.pattern}$")]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The manifest that the training process wrote: the files of the checkpoint, without the manifest itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: list[ResultFile]


def _manifest(content: bytes) -> Manifest:
    """Parse a manifest. Raises RefusedFileError if it is malformed."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        flaw = error.errors(include_url=False, include_context=False)[0]
        raise RefusedFileError(f"{MANIFEST}, at {flaw['loc']}: {flaw['msg']}") from error
    names = [MANIFEST, SIGNATURE, *(file.name for file in manifest.files)]
    if len({*names}) < len(names):
        raise RefusedFileError(f"{MANIFEST} must name each file once, and neither itself nor {SIGNATURE}")
    return manifest


def _sign(key: SecretStr, manifest: bytes) -> bytes:
    """Return the content of the file `SIGNATURE`: a signature of the manifest with the operator's key.

    The format is that of minisign (jedisct1.github.io/minisign). It is deterministic (Ed25519, RFC 8032). The manifest
    has the SHA-256 of every other file of a checkpoint.
    """
    from minisign import SecretKey

    secret = SecretKey.from_base64(key.get_secret_value())
    signature = secret.sign(
        manifest, untrusted_comment="signature of a seft checkpoint", trusted_comment="manifest.json"
    )
    return bytes(signature)


class Files:
    """The files of one attempt. Keys of objects in storage start with `prefix`. Local files are in `folder`."""

    def __init__(self, attempt: Attempt, settings: Settings, transfers: Transfers) -> None:
        self.attempt, self.settings, self.transfers = attempt, settings, transfers
        self.folder = settings.scratch / attempt.job_id / str(attempt.number)
        self.prefix = f"jobs/{attempt.job_id}/{attempt.number}/"
        self.formats = FormatService(self.folder, self.result_prefix, transfers)

    @property
    def result_prefix(self) -> str:
        """Prefix of the keys of the checkpoint's objects."""
        return f"{self.prefix}{RESULT}/"

    def dataset_bytes(self) -> int:
        """Return the total bytes of all datasets. They must have been fetched."""
        return sum((self.folder / name).stat().st_size for name in self._datasets)

    def state_bytes(self) -> int:
        """Return the total bytes of the saved states on disk, with a state that is being written."""
        with suppress(RefusedFileError), child_files.open_folder(self.folder, RESUME) as folder:
            return folders.size(Path(f"/proc/self/fd/{folder}"))
        return 0

    @property
    def _datasets(self) -> dict[str, StoredDataset]:
        """The datasets of the job by the names of their files."""
        attempt = self.attempt
        named = {DATA: attempt.dataset, RETAIN_DATA: attempt.retained, HELD_OUT_DATA: attempt.held_out}
        return {name: found for name, found in named.items() if found}

    def fetch(self, speed: Speed) -> GoneError | None:
        """Download all files that the training process needs into a new folder, and write `job.json`.

        `speed` is the speed of the device. If the state to resume from is missing or damaged, returns that error. The
        job then starts again from the beginning.
        """
        self.settings.scratch.mkdir(parents=True, exist_ok=True)
        # Other users of the machine must not read the datasets, the model and the result.
        self.folder.parent.mkdir(mode=0o700, exist_ok=True)
        child_files.delete_former_attempts(self.folder.parent, self.attempt.number)
        child_files.delete_folder(self.folder)  # after a restore of the database, numbers are used again
        self.folder.mkdir(mode=0o700)
        for name, dataset in self._datasets.items():
            self.transfers.download(dataset.key, self.folder / name, dataset.sha256)
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
            dataset_sha256=self.attempt.dataset.sha256,
            retained_sha256=self.attempt.retained.sha256 if self.attempt.retained else None,
            held_out_sha256=self.attempt.held_out.sha256 if self.attempt.held_out else None,
            resume=resume["step"] if resume else None,
            model_roots=[self.folder / MODELS] if self.attempt.model_files else self.settings.model_roots,
            device=self.settings.device,
            threads=self.settings.threads,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            micro_batch=self.attempt.micro_batch,
            hub_cache_bytes=self.settings.hub_cache_bytes,
            downloaded=self._fetch_private_model(),
            speed=speed,
            names={name: dataset.name for name, dataset in self._datasets.items()},
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
        pause = self.transfers.pause
        source = retry_hub(lambda: find(spec.model, roots=roots, revision=spec.revision, ask_hub=ask_hub), pause)
        if source.token is None:
            return None
        folder = self.folder / MODELS / str(source.revision)
        disk_space.require_space(self.folder, source.bytes())
        retry_hub(lambda: fetch_into(folder, source, heartbeat=self.transfers.check), pause, folder)
        return folder

    def request_early_stop(self, step: int) -> None:
        """Ask the training process to end training at this step, or at its next step if it is already later.

        Only the first call has an effect.
        """
        if not (self.folder / END_TRAINING).exists():
            child_files.write_file(self.folder, END_TRAINING, str(step))

    def upload_state(self, step: int) -> list[Json]:
        """Upload a saved state. Return its list of files in the format of the job's row."""
        place, prefix = (RESUME, str(step)), f"{self.prefix}{RESUME}/{step}/"
        with child_files.open_folder(self.folder, *place) as folder:
            names = sorted(os.listdir(folder))  # noqa: PTH208 (of a descriptor)
        files = [{**self._describe(*place, name), "key": prefix + name} for name in names]
        for file in files:
            self._upload((*place, file["name"]), file["key"])
        return files

    def remove_state(self, step: int) -> None:
        """Delete the local files of a saved state. The training process waits for this before it writes more states."""
        with child_files.open_folder(self.folder, RESUME) as folder:
            shutil.rmtree(str(step), dir_fd=folder)

    def upload_result(self) -> list[Json]:
        """Upload the checkpoint, with the manifest last. Files of formats are in storage already.

        Return its list of files in the format of the checkpoint's row. Raises RefusedFileError if the manifest is
        malformed or does not name a stored file, or if a file is missing or differs from its entry.
        """
        content, stored = self._read_manifest(), self.formats.stored
        files: list[Json] = [file.model_dump() for file in _manifest(content).files]
        if missing := stored.keys() - {file["name"] for file in files}:
            raise RefusedFileError(f"{MANIFEST} must name the stored file {min(missing)}")
        for file in files:
            if (each := stored.get(file["name"])) and each._asdict() != file:
                raise RefusedFileError(f"{file['name']} must have the size and SHA-256 {each[1:]}, not {file}")
            if not each and (found := self._size(RESULT, file["name"])) != file["size"]:
                raise RefusedFileError(f"{file['name']} must have {file['size']} bytes, as in {MANIFEST}, not {found}")
        last = {MANIFEST: content}
        if self.settings.signing_key:
            last = {SIGNATURE: _sign(self.settings.signing_key, content), **last}
        with TRACER.start_as_current_span(Phase.UPLOADING):
            for file in files:
                if file["name"] not in stored:
                    self._upload((RESULT, file["name"]), self.result_prefix + file["name"])
            for name, text in last.items():
                self.transfers.upload(partial(BytesIO, text), self.result_prefix + name)
        described = [
            {"name": name, "size": len(text), "sha256": sha256(text).hexdigest()} for name, text in last.items()
        ]
        return [*files, *described]

    def _read_manifest(self) -> bytes:
        with child_files.open_file(self.folder, RESULT, MANIFEST) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)[:MAX_MANIFEST_BYTES]

    def _describe(self, *place: str) -> Json:
        with child_files.open_file(self.folder, *place) as file:
            digest = file_digest(file, "sha256")  # type: ignore[arg-type]
            return {"name": place[-1], "size": os.fstat(file.fileno()).st_size, "sha256": digest.hexdigest()}

    def _size(self, *place: str) -> int:
        with child_files.open_file(self.folder, *place) as file:
            return os.fstat(file.fileno()).st_size

    def _upload(self, place: Sequence[str], key: str) -> None:
        self.transfers.upload(lambda: child_files.open_file(self.folder, *place), key)

    def remove(self) -> None:
        """Delete the folder of the attempt. Also delete the folder of the job, unless another attempt uses it."""
        child_files.delete_folder(self.folder)
        with suppress(OSError):
            self.folder.parent.rmdir()
