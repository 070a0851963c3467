"""A job whose model is the checkpoint of another job."""

from pathlib import Path
from typing import Any

from core.estimate.speed import Speed
from core.infra.storage import Storage
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.models import results
from core.tables import Json
from seft.checkpoint.facts import Record, sha256
from tests.worker.conftest import Backend
from worker.files import MANIFEST, Files
from worker.pipeline import Pipeline
from worker.protocol import RESULT, Finished, Message, Task
from worker.transfers import Transfers

SPEC: dict[str, Any] = {
    "prune": {"method": "magnitude"},
    "repair": {"method": "none"},
    "evaluate": {"windows": 1, "tokens": 96},
}


def publish(backend: Backend, attempt: Attempt, folder: Path) -> None:
    """Publish the files of a folder as the result of an attempt."""
    prefix = f"jobs/{attempt.job_id}/{attempt.number}/result/"
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    for path in paths:
        backend.storage.upload(path, prefix + path.name)
    files: list[Json] = [{"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)} for path in paths]
    with backend.sessions.begin() as session:
        attempts.publish(
            session, attempt, step=0, prefix=prefix, sha256=files[0]["sha256"], files=files, scores={}, measured={}
        )


def run(backend: Backend, attempt: Attempt) -> tuple[Path, Finished]:
    """Run the pipeline of an attempt; return the folder of its checkpoint and its final message."""
    transfers = Transfers(Storage(backend.settings), lambda _: None)
    files, messages = Files(attempt, backend.settings, transfers), list[Message]()
    files.fetch(Speed())
    Pipeline(files.folder, Task.read(files.folder), messages.append, lambda: False).run()
    transfers.close(lambda: None, 10)
    assert isinstance(messages[-1], Finished)
    return files.folder / RESULT, messages[-1]


def test_a_checkpoint_is_pruned_further_and_its_zeros_stay(
    backend: Backend, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    from safetensors.torch import load_file

    backend = Backend(
        backend.settings.model_copy(update={"model_roots": [tiny_folder.parent]}), backend.sessions, backend.storage
    )
    dataset = backend.add_dataset(tiny_texts[:40])
    first = backend.add_job(dataset, **SPEC, sparsity=0.4)
    attempt = backend.claim()
    assert (attempt.job_id, attempt.model_files) == (first, [])
    folder, finished = run(backend, attempt)
    publish(backend, attempt, folder)
    second = backend.add_job(dataset, **SPEC, model=first, sparsity=0.7)
    attempt = backend.claim()
    assert attempt.job_id == second
    assert MANIFEST in {file["name"] for file in attempt.model_files}
    further, again = run(backend, attempt)
    assert Record.read(further).facts.base.reference == first
    assert again.scores["dense"] == finished.scores["pruned"]
    assert again.measured["linears"]["share"] > 0.69
    before, after = (load_file(path / "model.safetensors") for path in (folder, further))
    assert all((after[name][tensor == 0] == 0).all() for name, tensor in before.items())


def test_a_result_without_the_dense_format_is_no_model_and_its_other_files_are_not_fetched(
    backend: Backend, tmp_path: Path, tiny_texts: list[str]
) -> None:
    dataset = backend.add_dataset(tiny_texts[:3])
    found = dict[str, list[str] | None]()
    for names in (["config.json", "model.safetensors", "model-Q8_0.gguf"], ["README.md", "model-Q8_0.gguf"]):
        job = backend.add_job(dataset, **SPEC, sparsity=0.4)
        attempt = backend.claim()
        folder = tmp_path / job
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"{}")
        publish(backend, attempt, folder)
        with backend.sessions.begin() as session:
            checkpoint = results.find(session, attempt.tenant, job)
            found[job] = [file["name"] for file in results.files(checkpoint)] if checkpoint else None
            listed = results.page(session, attempt.tenant, after=None, limit=5)
    dense, other = found
    assert found == {dense: ["config.json", "model.safetensors"], other: None}
    assert listed == [dense]
