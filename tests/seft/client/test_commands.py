"""The `seft` command with a running API."""

import gzip
import hashlib
import json
import os
import re
import runpy
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from core import workers
from core.capability import CPU, Capability
from core.jobs import attempts
from core.tables import JobEvent
from seft.client import Client, uploads
from seft.client.downloads import PART_BYTES
from seft.client.shell import Exit
from tests import claims
from tests.seft.client.conftest import Service, Shell, create
from tests.seft.client.servers import Script, Store, serving
from tests.waiting import wait_for

README = Path(__file__).parents[3] / "README.md"
CONTENT = bytes(range(256)) * ((2 * PART_BYTES + 512) // 256)


def succeed(service: Service, content: bytes) -> str:
    """Do what a worker would do with the next job, and return the job's id."""
    with service.sessions.begin() as session:
        attempt = claims.claim(session, "gpu-1", 60)
    assert attempt
    service.storage.put(f"{attempt.job_id}/model.safetensors", content)
    file = {"name": "model.safetensors", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with service.sessions.begin() as session:
        attempts.publish(
            session,
            attempt,
            step=9,
            prefix=f"{attempt.job_id}/",
            sha256="0",
            files=[file],
            scores={"dense": 2.0, "pruned": 9.5},
            measured={"model": {"zeros": 5}},
        )
    return attempt.job_id


def test_login_replaces_the_environment_and_does_not_save_a_wrong_key(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "home" / "seft" / "config.json"
    saved = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shell.json("jobs", "list") == []
    result = shell.run("login", "--url", shell.service.url, typed="seft_wrong")
    assert result.exit_code == Exit.REFUSED
    assert "unauthenticated" in result.stderr
    assert path.read_text() == saved


def test_a_dataset_is_uploaded_without_its_broken_lines_and_previewed(shell: Shell, tmp_path: Path) -> None:
    pairs = ['{"prompt": "ask a ", "completion": "b"}', "broken", '{"prompt": "ask b ", "completion": "a"}']
    (data := tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress("\n".join(pairs).encode()))
    assert shell.run("datasets", "upload", str(data)).exit_code == Exit.REFUSED
    uploaded = shell.run("datasets", "upload", str(data), "--skip", "34").stdout
    assert uploaded.endswith("2 records, 1 invalid lines skipped\n")
    shown = shell.run("datasets", "preview", uploaded.split()[0], "--model", "tiny", "--records", "1").stdout
    assert shown == "4 tokens, 2 trained on\nask a[[ b <eos>]]\n\n8 tokens, 4 of them trained on\n"


def test_a_large_file_is_sent_in_parts_and_resumes_after_an_interruption(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PARTS_FROM", 1 << 20)
    line = b'{"text": "%09d' + b"x" * 9988 + b'"}\n'
    content = b"".join(line % number for number in range(2000))
    (data := tmp_path / "large.jsonl").write_bytes(content)
    progress: list[int] = []

    def record_progress(done: int, total: int) -> None:
        progress.append(done)
        if progress == [16 << 20]:
            raise OSError("interrupted")

    with Client(shell.service.url, shell.service.api_key) as client:
        with pytest.raises(OSError, match="interrupted"):
            client.upload_dataset(data, at_once=1, progress=record_progress)
        (unfinished,) = client._service.get("/imports").json()["data"]
        dataset = client.upload_dataset(data, at_once=1, progress=record_progress)
        assert [row["id"] for row in client._service.get("/imports").json()["data"]] == [unfinished["id"]]
    assert progress == [16 << 20, 16 << 20, len(content)]
    assert (dataset["name"], dataset["records"], dataset["sha256"]) == (
        "large.jsonl",
        2000,
        hashlib.sha256(content).hexdigest(),
    )
    data.write_bytes(content + b"broken\n")
    assert "line 2001" in shell.run("datasets", "upload", str(data)).stderr
    result = shell.run("datasets", "import", "s3://nobodys/x.jsonl")
    assert (result.exit_code, "a bucket that the operator allows" in result.stderr) == (Exit.REFUSED, True)


def test_a_job_is_created_changed_listed_compared_and_cloned(shell: Shell, data: Path) -> None:
    job = create(shell, data, "--set", "repair.steps=7", "--idempotency-key", "mine")
    assert job["spec"]["repair"]["steps"] == 7
    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert shell.json("jobs", verb, job["id"])["status"] == status
    other = shell.json("jobs", "clone", job["id"], "--set", "repair.steps=8")
    listed = [row["id"] for row in shell.json("jobs", "list")]
    assert listed == [other["id"], job["id"]]
    assert other["id"] in shell.run("jobs", "list", "--status", "queued").stdout
    named = shell.json("jobs", "clone", job["id"], "--set", "suffix=mild")
    lines = [line.split()[:2] for line in shell.run("jobs", "list").stdout.splitlines()]
    assert lines == [["job", "name"], [named["id"], "mild"], [other["id"], "tiny"], [job["id"], "tiny"]]
    shell.json("jobs", "cancel", named["id"])
    compared = {row["field"]: row["values"] for row in shell.json("jobs", "compare", *listed)}
    assert compared["repair.steps"] == [8, 7]
    assert compared["steps done"] == [0, 0]
    assert compared["status"] == ["queued", "cancelled"]
    assert "model" not in compared
    result = shell.run("jobs", "resume", job["id"], "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (Exit.REFUSED, "conflict")
    waiting = shell.json("jobs", "clone", other["id"], "--set", "auto_start=false")
    assert shell.run("jobs", "delete", waiting["id"]).exit_code == Exit.REFUSED
    for verb, status in (("start", "queued"), ("stop", "cancelled"), ("delete", "deleted")):
        assert shell.run("jobs", verb, waiting["id"]).stdout == f"{waiting['id']}  {status}\n"
    assert waiting["id"] not in shell.run("jobs", "list").stdout


@pytest.mark.parametrize("option", ["--dataset", "--retain-dataset", "--evaluate-dataset"])
def test_a_dataset_that_is_neither_a_file_nor_an_id_is_rejected_before_any_request(shell: Shell, option: str) -> None:
    words = {"--model": "tiny", "--dataset": "file_x", "--sparsity": "0.6", option: "text.jsonl"}
    result = shell.run("jobs", "create", *(word for pair in words.items() for word in pair))
    assert result.exit_code == Exit.USAGE
    assert "'text.jsonl' is neither a file nor the id of a dataset" in " ".join(result.stderr.split())


def test_a_file_to_retain_is_uploaded_and_named_in_the_request(shell: Shell, data: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.jsonl").write_text('{"text": "%s"}\n{"text": "b"}\n' % ("a" * 1024))
    repair = create(shell, data, "--retain-dataset", str(other), "--set", "repair.steps=7")["spec"]["repair"]
    (uploaded,) = (row["id"] for row in shell.json("datasets", "list") if row["name"] == "other.jsonl")
    assert (repair["retain"], repair["retain_dataset"], repair["steps"]) == ("dataset", uploaded, 7)
    settings = ("--set", "repair.retain=dataset", "--set", f"repair.retain_dataset={uploaded}")
    assert create(shell, data, *settings)["spec"]["repair"]["retain_dataset"] == uploaded
    words = ("--dataset", str(data), "--retain-dataset", uploaded, "--set", "repair.retain=none")
    refused = shell.run("jobs", "create", "--model", "tiny", "--sparsity", "0.6", *words)
    assert refused.exit_code == Exit.REFUSED
    assert "repair.retain_dataset: must be left out if retain is none" in " ".join(refused.stderr.split())


def test_a_file_to_evaluate_on_is_uploaded_and_takes_the_place_of_a_part_that_is_held_out(
    shell: Shell, data: Path, tmp_path: Path
) -> None:
    (other := tmp_path / "other.jsonl").write_text('{"text": "%s"}\n{"text": "b"}\n' % ("a" * 1024))
    options = ("--evaluate-dataset", str(other), "--set", "evaluate.windows=3")
    evaluate = create(shell, data, *options)["spec"]["evaluate"]
    (uploaded,) = (row["id"] for row in shell.json("datasets", "list") if row["name"] == "other.jsonl")
    assert (evaluate["dataset"], evaluate["held_out"], evaluate["windows"]) == (uploaded, None, 3)
    words = ("--dataset", str(data), "--evaluate-dataset", uploaded, "--set", "evaluate.held_out=0.2")
    refused = shell.run("jobs", "create", "--model", "tiny", "--sparsity", "0.6", *words)
    assert refused.exit_code == Exit.REFUSED
    assert "evaluate.held_out: must be left out if evaluate.dataset is given" in " ".join(refused.stderr.split())


def test_the_script_of_the_readme_runs(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block
    script = block[1].replace("HuggingFaceTB/SmolLM2-135M", "tiny")
    assert len(script.split("\n\n")[1].splitlines()) <= 10
    settings = re.search(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    assert settings
    (tmp_path / "cpu.json").write_text(settings[1])
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "texts.jsonl").write_text('{"text": "%s"}\n{"text": "two"}\n' % ("one " * 1024))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEFT_URL", service.url)
    monkeypatch.setenv("SEFT_API_KEY", service.api_key)

    def work() -> None:
        with Client() as client:
            while not list(client.jobs()):
                time.sleep(0.05)
        succeed(service, CONTENT)

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        runpy.run_path("script.py")
        worker.result()
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == CONTENT


def test_a_stopping_job_is_cancelled_and_its_log_entry_fits_one_line(shell: Shell, data: Path) -> None:
    job_id = create(shell, data)["id"]
    with shell.service.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET stopping = true"))
        event = {"step": 1, "grown": 9, "layers": {f"layer_{number}": {"grown": 1} for number in range(9)}}
        session.add(JobEvent(job_id=job_id, attempt=1, type="topology.evolved", data=event))
    assert shell.run("jobs", "cancel", job_id).stdout == f"{job_id}  cancelled\n"
    assert shell.run("jobs", "logs", job_id).stdout.splitlines()[1].endswith("attempt 1  step=1  grown=9")


def test_a_job_is_watched_logged_and_downloaded(shell: Shell, data: Path, tmp_path: Path) -> None:
    job_id = create(shell, data)["id"]
    assert succeed(shell.service, CONTENT) == job_id
    watched = shell.run("jobs", "watch", job_id)
    last = ["perplexity on held-out text  dense 2.00  pruned 9.50", f"{job_id}  succeeded"]
    assert (watched.exit_code, watched.stdout.splitlines()[-2:]) == (0, last)
    types = [json.loads(line)["type"] for line in shell.run("jobs", "logs", "-f", job_id, "--json").stdout.splitlines()]
    assert types == ["job.created", "job.claimed", "job.succeeded"]
    assert [line.split()[1] for line in shell.run("jobs", "logs", job_id).stdout.splitlines()] == types
    compared = {row["field"]: row["values"] for row in shell.json("jobs", "compare", job_id, job_id)}
    assert compared["perplexity pruned"] == [9.5, 9.5]
    assert (compared["steps done"], compared["repair.steps"]) == ([9, 9], [8192, 8192]), "fewer than requested"
    assert compared["measured model.zeros"] == [5, 5]
    (path,) = shell.json("jobs", "download", job_id, str(tmp_path / "out"))["files"]
    assert Path(path).read_bytes() == CONTENT


def test_a_hub_token_is_read_from_a_pipe_shown_and_deleted(shell: Shell) -> None:
    assert shell.run("hub-token", "set", typed="hf_wrong").exit_code == Exit.REFUSED
    result = shell.run("hub-token", "set", typed="hf_example")
    assert (result.exit_code, result.stdout.split()[0]) == (0, "acme")
    assert "hf_example" not in result.output
    token = shell.json("hub-token", "show")
    assert (token["name"], "token" in token) == ("acme", False)
    assert shell.json("hub-token", "delete") == token
    assert shell.run("hub-token", "show").exit_code == Exit.REFUSED


def test_a_result_is_pushed_by_its_job_or_later(shell: Shell, data: Path) -> None:
    shell.run("hub-token", "set", typed="hf_example")
    job_id = create(shell, data, "--push", "acme/sparse")["id"]
    assert succeed(shell.service, CONTENT) == job_id
    (requested,) = shell.json("jobs", "pushes", job_id)
    assert shell.json("jobs", "push", job_id, "acme/sparse")["id"] == requested["id"]
    assert shell.run("jobs", "push", job_id, "acme/sparse").stdout == f"{job_id}  pending  acme/sparse@main\n"


def test_watching_a_job_that_does_not_succeed_ends_with_an_exit_code(shell: Shell, data: Path) -> None:
    job_id = create(shell, data)["id"]
    shell.run("jobs", "cancel", job_id)
    assert shell.run("jobs", "watch", job_id).exit_code == Exit.FAILED
    result = shell.run("jobs", "watch", job_id, "--json")
    assert result.exit_code == Exit.FAILED
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["cancelled"]


def test_a_webhook_is_created_tested_and_deleted(shell: Shell) -> None:
    hook = shell.json("webhooks", "create", "https://example.invalid/", "--event", "job.failed")
    assert (hook["events"], hook["secret"][:6]) == (["job.failed"], "whsec_")
    assert shell.json("webhooks", "test", hook["id"])["type"] == "webhook.test"
    assert "webhook.test" in shell.run("webhooks", "deliveries", hook["id"]).stdout
    assert shell.json("webhooks", "rotate", hook["id"])["secret"] != hook["secret"]
    assert shell.json("webhooks", "disable", hook["id"])["disabled_at"]
    assert shell.json("webhooks", "enable", hook["id"])["disabled_at"] is None
    assert hook["id"] in shell.run("webhooks", "list").stdout
    assert shell.json("webhooks", "delete", hook["id"])["id"] == hook["id"]
    assert hook["id"] not in shell.run("webhooks", "list").stdout


def test_workers_that_do_not_respond_are_left_out_or_marked(shell: Shell) -> None:
    with shell.service.sessions.begin() as session:
        for name in ("dead", "living"):
            workers.record_heartbeat(session, name, Capability(CPU, "x86_64", 4 << 30, 1 << 40))
        session.execute(text("UPDATE workers SET seen_at = now() - interval '1 h' WHERE name = 'dead'"))
    listed = shell.run("workers")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["worker", "living"]
    assert listed.stderr == "1 not responding; --all lists them too.\n"
    assert [worker["name"] for worker in shell.json("workers")] == ["living"]
    every = shell.run("workers", "--all")
    assert [" ".join(line.split()[:3]) for line in every.stdout.splitlines()[1:]] == [
        "dead not responding",
        "living idle cpu",
    ]
    assert every.stderr == ""
    assert [(worker["name"], worker["alive"]) for worker in shell.json("workers", "--all")] == [
        ("dead", False),
        ("living", True),
    ]


def test_datasets_and_keys_are_listed(shell: Shell, data: Path) -> None:
    dataset = shell.json("datasets", "upload", str(data))
    assert [row["id"] for row in shell.json("datasets", "list")] == [dataset["id"]]
    assert dataset["id"] in shell.run("datasets", "list").stdout
    copy = data.with_name("copy.jsonl")
    assert shell.run("datasets", "download", dataset["id"], str(copy)).stdout == f"{copy}\n"
    assert copy.read_bytes() == data.read_bytes()
    assert shell.run("datasets", "delete", dataset["id"]).exit_code == 0
    assert shell.json("datasets", "list") == []
    key = shell.json("keys", "create", "--name", "nightly", "--scope", "read")
    assert key["id"] in shell.run("keys", "list").stdout
    assert shell.json("keys", "revoke", key["id"])["revoked_at"]
    assert "create_key" in shell.run("audit").stdout
    data.write_text('{"tex": 1}\n')
    result = shell.run("datasets", "upload", str(data))
    assert (result.exit_code, "line 1" in result.stderr) == (Exit.REFUSED, True)


def test_a_download_that_waits_for_a_busy_storage_ends_at_once(script: Script, tmp_path: Path) -> None:
    environment = {**os.environ, "SEFT_URL": script.url, "SEFT_API_KEY": "k"}
    words = ["-m", "seft", "jobs", "download", "job_1", str(tmp_path / "out")]
    with serving(store := Store(CONTENT)):
        store.rejections = [(503, {"Retry-After": "60"})] * 3
        script.will_answer({"data": [{"id": "ckpt_1", "files": [store.file()]}]})
        process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: not store.rejections)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=45)
        assert process.returncode == Exit.INTERRUPTED
        assert "answered HTTP 503. The client tries again in 60.0 seconds." in stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, Exit.INTERRUPTED)])
def test_an_interrupted_download_resumes(script: Script, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    environment = {**os.environ, "SEFT_URL": script.url, "SEFT_API_KEY": "k"}
    words = ["-m", "seft", "jobs", "download", "job_1", str(tmp_path / "out"), "--at-once", "1"]
    with serving(store := Store(CONTENT)):
        store.stall_at = PART_BYTES
        script.will_answer({"data": [{"id": "ckpt_1", "files": [store.file()]}]})
        process = subprocess.Popen([sys.executable, *words], env=environment)
        assert store.stalled.wait(60)
        process.send_signal(sent)
        assert process.wait(45) == code, "although the storage still stalls"
        store.resume.set()
        store.stall_at = None
        store.ranges.clear()
        script.will_answer({"data": [{"id": "ckpt_1", "files": [store.file()]}]})
        subprocess.run([sys.executable, *words], env=environment, check=True)
        assert sorted(store.ranges) == [(PART_BYTES, 2 * PART_BYTES), (2 * PART_BYTES, len(CONTENT))]
    assert (tmp_path / "out/model.safetensors").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
