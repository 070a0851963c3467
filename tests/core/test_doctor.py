"""`seft doctor` passes a healthy service and names whatever is broken."""

from pathlib import Path

import psycopg
import pytest

from core.doctor import GIB, Finding, State, run_check, run_checks
from core.settings import Settings
from local.folder import LOOPBACK, port_of, reserve_any
from local.servers import Servers
from tests.conftest import as_owner
from tests.worker.conftest import variables

DRIVER = "#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559 MiB'\n"


def check(name: str, settings: Settings, **broken: object) -> Finding:
    """Run a check with settings that are valid but wrong."""
    return run_check(name, Settings.model_validate({**settings.model_dump(), **broken}))


def assert_wrong(finding: Finding, *words: str, state: State = State.WRONG) -> None:
    assert finding.state is state, finding
    assert finding.fix
    assert all(word in f"{finding.found} {finding.fix}" for word in words), finding


def test_a_healthy_service_passes_all_checks(
    settings: Settings, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(settings.model_copy(update={"model_roots": [tiny_folder.parent]})).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("core.infra.sandbox.missing", lambda _: [])  # the kernel of the machine can be older
    findings = list(run_checks())
    assert {finding.state for finding in findings} == {State.OK}, findings
    assert "1 accepted" in str(findings)
    assert all(finding.found and not finding.fix for finding in findings)


def test_a_kernel_that_cannot_confine_a_training_process_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.infra.sandbox.landlock_abi", lambda: 0)
    assert_wrong(check("sandbox", settings), "Landlock", "secrets", "kernel", state=State.NOTE)


def test_a_missing_setting_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SEFT_S3_SECRET_KEY")
    (finding,) = run_checks()
    assert_wrong(finding, "SEFT_S3_SECRET_KEY")


def test_a_misspelt_setting_is_named_and_other_variables_are_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"SEFT_URL": "http://a", "SEFT_MODELS": "/models", "SEFT_DATABASE_PASSWORD": "a", "SEFT_HOST": "a"}
    for name, value in {**variables(settings), **others, "SEFT_RATELIMIT": "5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("core.doctor.CHECKS", {})
    _, note = run_checks()
    assert (note.state, note.fix) == (State.NOTE, "Did you mean SEFT_RATE_LIMIT?")
    assert "SEFT_RATELIMIT" in note.found


def test_a_database_that_is_unreachable_or_rejects_or_is_outdated_is_named(
    settings: Settings, servers: Servers
) -> None:
    url = servers.postgres.url
    with reserve_any() as silent:
        unreachable = f"postgresql://seft:{servers.postgres.secret}@{LOOPBACK}:{port_of(silent)}/seft"
        assert_wrong(check("database", settings, database_url=unreachable), "refused", "SEFT_DATABASE_URL")
    wrong = check("database", settings, database_url=url().replace(servers.postgres.secret, "guessed"))
    assert_wrong(wrong, "password", "SEFT_DATABASE_URL")
    assert servers.postgres.secret not in str(wrong)
    assert_wrong(check("database", settings, database_url=url("postgres")), "python -m migrations")


def test_a_wrong_clock_is_named(settings: Settings, servers: Servers) -> None:
    with psycopg.connect(str(as_owner(servers, settings).database_url), autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
        later = "SELECT pg_catalog.clock_timestamp() + interval '1 hour'"
        connection.execute(f"CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $${later}$$")
    assert_wrong(check("clock", settings), "3600 s", "time server")


def test_a_broker_that_rejects_the_password_is_named(settings: Settings, servers: Servers) -> None:
    wrong = str(settings.broker_url).replace(servers.valkey.secret, "guessed")
    assert_wrong(check("queue", settings, broker_url=wrong), "password", "SEFT_BROKER_URL")


def test_a_storage_that_is_unreachable_or_rejects_or_has_dead_links_is_named(settings: Settings) -> None:
    assert_wrong(check("bucket", settings, s3_secret_key="guessed"), "403", "_SECRET_KEY")
    with reserve_any() as silent:
        nowhere = f"http://{LOOPBACK}:{port_of(silent)}"
        assert_wrong(check("bucket", settings, s3_endpoint=nowhere), nowhere, "SEFT_S3_ENDPOINT")
        lost = check("bucket", settings, s3_public_endpoint=nowhere)
    assert_wrong(lost, nowhere.removeprefix("http://"), "SEFT_S3_PUBLIC_ENDPOINT", state=State.NOTE)


def test_a_scratch_folder_that_cannot_be_written_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_wrong(check("disk", settings, scratch=tmp_path / "file" / "scratch"), "Not a directory", "SEFT_SCRATCH")


def test_model_roots_that_are_missing_or_contain_rejected_models_are_named(settings: Settings, tmp_path: Path) -> None:
    assert_wrong(check("models", settings, model_roots=[tmp_path / "missing"]), "No such file", "SEFT_MODEL_ROOTS")
    assert_wrong(check("models", settings), "no local models", state=State.NOTE)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__init__.py").touch()
    assert_wrong(check("models", settings, model_roots=[tmp_path]), "no local models", state=State.NOTE)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    assert_wrong(check("models", settings, model_roots=[tmp_path]), "broken", "rejected")


def test_a_driver_that_is_missing_or_does_not_fit_torch_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "nvidia-smi").write_text(DRIVER)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert_wrong(check("device", settings), "NVIDIA H100, 570.1", "CUDA")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    assert_wrong(check("device", settings), "Driver/library version mismatch")
    (tmp_path / "nvidia-smi").unlink()
    assert_wrong(check("device", settings, device="cuda"), "no NVIDIA driver", "SEFT_DEVICE=cpu")


def test_devices_that_the_machine_does_not_have_are_named_and_those_of_other_workers_are_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"version": "2.9", "cuda": "13.0", "there": True, "memory": [(8 * GIB, 80 * GIB), (79 * GIB, 80 * GIB)]}
    monkeypatch.setattr("core.infra.devices.driver", lambda: "NVIDIA H100; NVIDIA H100")
    monkeypatch.setattr("core.infra.devices.torch", lambda: found)
    for name, count in (("cuda:2", 1), ("cuda:1", 2), ("auto", 3)):
        assert_wrong(check("device", settings, device=name, devices=count), "2 devices", f"SEFT_DEVICE={name}")
    for name, count in (("auto", 1), ("cuda:0", 2)):
        busy = check("device", settings, device=name, devices=count)
        assert_wrong(busy, "cuda:0", "8.0 of 80.0", "nvidia-smi", state=State.NOTE)
    assert check("device", settings, device="cuda:1").state is State.OK
