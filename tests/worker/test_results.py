"""A job that repairs what another one has published."""

from pathlib import Path
from typing import Any

from core.infra.storage import Storage
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.tables import Json
from seft.checkpoint.facts import Record
from tests.worker.conftest import House
from worker.files import MANIFEST, Files
from worker.pipeline import Pipeline
from worker.protocol import RESULT, Finished, Message, Task
from worker.transfers import Transfers, hash_file

SPEC: dict[str, Any] = {
    "prune": {"method": "magnitude"},
    "repair": {"method": "none"},
    "evaluate": {"windows": 1, "tokens": 96},
}


def publish(house: House, attempt: Attempt, folder: Path) -> None:
    """The files of a folder as what the attempt has published."""
    prefix = f"jobs/{attempt.job_id}/{attempt.number}/result/"
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    for path in paths:
        house.storage.upload(path, prefix + path.name)
    files: list[Json] = [{"name": path.name, "size": path.stat().st_size, "sha256": hash_file(path)} for path in paths]
    with house.sessions.begin() as session:
        attempts.publish(
            session, attempt, step=0, prefix=prefix, sha256=files[0]["sha256"], files=files, scores={}, measured={}
        )


def run(house: House, attempt: Attempt) -> tuple[Path, Finished]:
    """The attempt's work, from its files to its checkpoint."""
    transfers = Transfers(Storage(house.settings), lambda _: None)
    files, said = Files(attempt, house.settings, transfers), list[Message]()
    files.fetch()
    Pipeline(files.folder, Task.read(files.folder), said.append, lambda: False).run()
    transfers.close(lambda: None, 10)
    assert isinstance(said[-1], Finished)
    return files.folder / RESULT, said[-1]


def test_a_result_is_pruned_further_and_its_zeros_stay(house: House, tiny_folder: Path, tiny_texts: list[str]) -> None:
    from safetensors.torch import load_file

    house = House(
        house.settings.model_copy(update={"model_roots": [tiny_folder.parent]}), house.sessions, house.storage
    )
    dataset = house.add_dataset(tiny_texts[:40])
    first = house.add_job(dataset, **SPEC, sparsity=0.4)
    attempt = house.claim()
    assert (attempt.job_id, attempt.model_files) == (first, [])
    folder, finished = run(house, attempt)
    publish(house, attempt, folder)
    second = house.add_job(dataset, **SPEC, model=first, sparsity=0.7)
    attempt = house.claim()
    assert attempt.job_id == second
    assert MANIFEST in {file["name"] for file in attempt.model_files}
    further, again = run(house, attempt)
    assert Record.read(further).facts.base.reference == first
    assert again.scores["dense"] == finished.scores["pruned"]
    assert again.measured["linears"]["share"] > 0.69
    before, after = (load_file(path / "model.safetensors") for path in (folder, further))
    assert all((after[name][tensor == 0] == 0).all() for name, tensor in before.items())
