"""The host is put into group postgres: nothing is lost on the way there, nor when the database is killed."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import (
    ROOT,
    PlaybookRun,
    container_ids,
    containers,
    healthy_services,
    is_healthy_again,
    run_playbook,
    wait_until,
)
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.tracking import MlflowClient
from reachability import allowed, found, target_of
from testinfra.host import Host

# The host stays on PostgreSQL, and there is no way back.
pytestmark = pytest.mark.irreversible

RUNS = 200
MODELS = 20
EXPORTER = "http://postgres_exporter:9187/metrics"
STORE = "/var/lib/mlops/mlflow-store"
PASSWORD = "/etc/mlops/secrets/postgres_password"
SQLITE = "/var/lib/docker/volumes/mlops_mlflow_data/_data/mlflow.db"
MIGRATE = "playbooks/migrate_to_postgres.yml"


class Playbooks:
    """`ansible-playbook` on the host under test, as a member of group postgres."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory

    def run(self, *arguments: str) -> PlaybookRun:
        return run_playbook(*arguments, "--inventory", str(self.inventory))

    def ok(self, *arguments: str) -> PlaybookRun:
        result = self.run(*arguments)
        assert result.status == 0, result.output
        return result


@pytest.fixture(scope="module")
def playbooks(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    inventory = tmp_path_factory.mktemp("inventory") / "hosts.json"
    inventory.write_text(json.dumps({"postgres": {"hosts": {settings["local_host_name"]: {}}}}))
    return Playbooks(inventory)


def psql(host: Host, query: str) -> str:
    """What the administrator's query answers."""
    command = f'docker exec mlops-postgres psql --host=/tmp --username=postgres --no-align --tuples-only -c "{query}"'
    return host.check_output(f"{command} mlflow")


def in_a_container(host: Host, password: str, port: int) -> str:
    """The command that logs in with a password, through the port of the host."""
    image = containers(host)["postgres"]["Image"]
    query = "SELECT current_user || ' ' || current_database()"
    return (
        f"docker run --rm --network=host --env=PGPASSWORD={shlex.quote(password)} {image} psql --host=127.0.0.1 "
        f'--port={port} --username=mlflow --no-align --tuples-only -c "{query}" mlflow'
    )


def login(host: Host, password: str, port: int) -> str:
    """Who one is with this password, and in which database."""
    return host.check_output(in_a_container(host, password, port)).strip()


def fill(client: MlflowClient, directory: Path) -> None:
    """200 runs and 20 models, with everything that an MLflow client can say of them."""
    experiments = [client.create_experiment(f"migration-{number}", tags={"né": "π"}) for number in range(5)]
    artifact = directory / "weights.bin"

    def log_run(number: int) -> str:
        run = client.create_run(experiments[number % 5], run_name=f"run-{number}")
        values = [number / 7, math.nan, math.inf, -math.inf, 1e-300, float(number)]
        client.log_batch(
            run.info.run_id,
            metrics=[Metric("loss", value, 1000 + step, step) for step, value in enumerate(values)],
            params=[Param("depth", str(number)), Param("text", "naïve 'quoted' \\ ☃ \n second line")],
            tags=[RunTag("team", f"group-{number % 3}")],
        )
        client.set_terminated(run.info.run_id, "FAILED" if number % 10 == 9 else "FINISHED")
        return run.info.run_id

    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(log_run, range(RUNS)))
    for number in range(0, RUNS, 20):
        artifact.write_bytes(bytes([number]) * 50_000)
        client.log_artifact(runs[number], str(artifact))
    client.delete_run(runs[1])
    client.delete_experiment(experiments[4])

    def register(number: int) -> None:
        name = f"migrated-{number}"
        client.create_registered_model(name, tags={"owner": str(number)}, description="it's kept")
        for version in (1, 2):
            client.create_model_version(name, f"runs:/{runs[number * 5]}/model", runs[number * 5], {"v": str(version)})
        client.set_registered_model_alias(name, "champion", "2")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(register, range(MODELS)))


def everything(client: MlflowClient, directory: Path) -> dict[str, Any]:
    """All that the MLflow API tells, as text, so that NaN equals NaN."""
    experiments = client.search_experiments(view_type=ViewType.ALL, max_results=1000)
    found: dict[str, Any] = {f"experiment {one.experiment_id}": repr(dict(one)) for one in experiments}
    ids = [one.experiment_id for one in experiments]
    runs, token = [], None
    while token is None or token:
        page = client.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        runs += page
        token = page.token or ""
    for run in runs:
        found[f"run {run.info.run_id}"] = json.dumps(run.to_dictionary(), sort_keys=True)
    for run in runs[:: len(runs) // 20 or 1]:
        history = client.get_metric_history(run.info.run_id, "loss")
        found[f"history {run.info.run_id}"] = repr([dict(metric) for metric in history])
    for model in client.search_registered_models(max_results=1000):
        found[f"model {model.name}"] = repr((model.aliases, model.tags, model.description, model.creation_timestamp))
    for version in client.search_model_versions(max_results=1000):
        found[f"version {version.name} {version.version}"] = repr(sorted(dict(version).items(), key=str))
    with_artifacts = {str(number) for number in range(0, RUNS, 20)}
    for run in runs:
        # Those of this test; runs of others have artifacts in directories.
        if run.data.tags.get("team") and run.data.params["depth"] in with_artifacts:
            for file in client.list_artifacts(run.info.run_id):
                path = client.download_artifacts(run.info.run_id, file.path, str(directory))
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                found[f"artifact {run.info.run_id} {file.path}"] = digest
    return found


class TestMigration:
    def test_a_run_that_would_switch_the_database_silently_is_refused(self, host: Host, playbooks: Playbooks) -> None:
        before = container_ids(host)
        result = playbooks.run("site.yml")
        assert result.status != 0
        assert "Nothing was changed. mlflow_store_change" in result.output
        assert "are in SQLite, and the inventory now says the appliance's PostgreSQL" in result.output
        assert "playbooks/migrate_to_postgres.yml" in result.output
        assert container_ids(host) == before

    def test_a_migration_that_fails_leaves_mlflow_on_sqlite(self, host: Host, playbooks: Playbooks) -> None:
        # Too little memory for the copy: the kernel kills it.
        result = playbooks.run(MIGRATE, "--tags", "postgres", "--extra-vars", "mlflow_memory=40m")
        assert result.status != 0
        assert "The migration to PostgreSQL failed, and MLflow runs on SQLite as before." in result.output
        assert host.file(STORE).content_string.strip() == "sqlite"
        assert {"mlflow", "postgres"} <= healthy_services(host)

    def test_all_is_equal_after_the_migration(
        self, host: Host, playbooks: Playbooks, mlflow_url: str, tmp_path: Path
    ) -> None:
        client = MlflowClient(mlflow_url)
        # On a host that was filled before, by a test that then failed, that is enough.
        if client.get_experiment_by_name("migration-0") is None:
            fill(client, tmp_path)
        before = everything(client, tmp_path)
        assert sum(name.startswith("run ") for name in before) >= RUNS
        assert sum(name.startswith("artifact ") for name in before) >= RUNS / 20

        result = playbooks.ok(MIGRATE, "--tags", "postgres")

        assert "Equal in both databases:" in result.output
        after = everything(client, tmp_path)
        assert after.keys() == before.keys()
        assert {name for name in before if before[name] != after[name]} == set()
        assert host.file(SQLITE).exists, "the old database is kept"
        print(f"the migration took {result.seconds:.0f} s")

    def test_a_migration_that_was_cut_off_before_its_end_is_done_again(self, host: Host, playbooks: Playbooks) -> None:
        # All is copied, and the host does not know it yet.
        host.check_output(f"echo sqlite >{STORE}")
        result = playbooks.ok(MIGRATE, "--tags", "postgres")
        assert "Equal in both databases:" in result.output
        assert host.file(STORE).content_string.strip() == "postgres"

    def test_sequences_go_on_where_they_were(self, host: Host, mlflow_url: str) -> None:
        client = MlflowClient(mlflow_url)
        known = {one.experiment_id for one in client.search_experiments(view_type=ViewType.ALL, max_results=1000)}
        created = client.create_experiment("after-the-migration")
        assert created not in known
        assert psql(host, f"SELECT name FROM experiments WHERE experiment_id = {created}") == "after-the-migration"

    def test_it_is_done_once(self, host: Host, playbooks: Playbooks) -> None:
        before = container_ids(host)
        assert playbooks.ok(MIGRATE, "--tags", "postgres").changed == 0
        assert container_ids(host) == before

    def test_a_run_without_a_change_keeps_every_container(self, host: Host, playbooks: Playbooks) -> None:
        # The exporter, and Prometheus, which looks at it.
        playbooks.ok("site.yml")
        before = container_ids(host)
        assert playbooks.ok("site.yml").changed == 0
        assert container_ids(host) == before

    def test_data_that_postgresql_has_of_its_own_are_never_replaced(self, host: Host, playbooks: Playbooks) -> None:
        count = psql(host, "SELECT count(*) FROM experiments WHERE name = 'after-the-migration'")
        assert count == "1"
        host.check_output(f"echo sqlite >{STORE}")
        try:
            result = playbooks.run(MIGRATE, "--tags", "postgres")
        finally:
            host.check_output(f"echo postgres >{STORE}")
        assert result.status != 0
        assert "PostgreSQL already holds data of its own" in result.output
        assert psql(host, "SELECT count(*) FROM experiments WHERE name = 'after-the-migration'") == count
        wait_until(lambda: "mlflow" in healthy_services(host), 60, "MLflow runs as before")

    def test_the_way_back_is_refused_too(self, host: Host) -> None:
        before = container_ids(host)
        result = run_playbook("site.yml")
        assert result.status != 0
        assert "are in the appliance's PostgreSQL, and the inventory now says SQLite" in result.output
        assert container_ids(host) == before


class TestDatabase:
    def test_a_password_is_needed_and_in_no_place_to_read(self, host: Host) -> None:
        password = host.file(PASSWORD).content_string.strip()
        assert len(password) >= 32
        for service in ("postgres", "mlflow"):
            pid = containers(host)[service]["State"]["Pid"]
            inspected = host.check_output(f"docker inspect mlops-{service}")
            unit = host.check_output(f"systemctl cat mlops-{service}")
            running = host.check_output(f"cat /proc/{pid}/environ /proc/{pid}/cmdline | tr '\\0' ' '")
            log = host.check_output(f"journalctl --unit=mlops-{service} --output=cat --no-pager")
            for place in (inspected, unit, running, log):
                assert password not in place, service
        without = "import psycopg2; psycopg2.connect('postgresql://mlflow@postgres/mlflow')"
        refused = host.run(f'docker exec --env=PGPASSFILE=/none mlops-mlflow python -c "{without}"')
        assert refused.rc != 0
        assert "no password supplied" in refused.stderr

    def test_data_are_safe_and_passwords_hashed(self, host: Host) -> None:
        assert psql(host, "SHOW data_checksums") == "on"
        assert psql(host, "SHOW fsync") == "on"
        assert psql(host, "SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256%'") == "2"
        # Of the memory limit, 512m.
        assert psql(host, "SHOW shared_buffers") == "128MB"

    def test_data_of_another_major_version_are_refused(self, host: Host, playbooks: Playbooks) -> None:
        version = "/var/lib/docker/volumes/mlops_postgres_data/_data/data/PG_VERSION"
        before = container_ids(host)
        host.check_output(f"cp --preserve {version} /run/PG_VERSION && echo 16 >{version}")
        try:
            result = playbooks.run("site.yml", "--tags", "postgres", "--extra-vars", "postgres_memory=600m")
            assert result.status != 0
            assert "the data on the volume are of major version 16, this image has PostgreSQL 17" in result.output
            assert container_ids(host) == before
        finally:
            host.check_output(f"cp --preserve /run/PG_VERSION {version}")

    def test_a_wrong_setting_is_refused_before_it_is_applied(self, host: Host, playbooks: Playbooks) -> None:
        before = container_ids(host)
        result = playbooks.run("site.yml", "--tags", "postgres", "-e", '{"postgres_settings": {"max_wal_sise": "1GB"}}')
        assert result.status != 0
        assert 'unrecognized configuration parameter "max_wal_sise"' in result.output.replace('\\"', '"')
        assert container_ids(host) == before

    def test_pg_isready_answers_in_the_container(self, host: Host) -> None:
        assert "accepting connections" in host.check_output("docker exec mlops-postgres pg_isready -U mlflow")

    def test_its_logs_lead_from_the_name_it_had(self, playbooks: Playbooks) -> None:
        playbooks.ok("playbooks/logs.yml", "--extra-vars", "service=postgres follow=false")
        shown = subprocess.run([ROOT / ".local" / "logs"], capture_output=True, text=True, check=True).stdout
        assert "database system is ready to accept connections" in shown

    def test_it_answers_on_localhost_as_the_inventory_says(self, host: Host, settings: dict[str, Any]) -> None:
        port = settings["local_host_postgres_port"]
        # A request for TLS, which PostgreSQL declines in one letter.
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(struct.pack("!ii", 8, 80877103))
            assert client.recv(1) == b"N"
        assert login(host, host.file(PASSWORD).content_string, port) == "mlflow mlflow"
        refused = host.run(in_a_container(host, "a guess", port))
        assert "password authentication failed" in refused.stderr

    def test_without_a_port_it_has_none_on_the_host(self, host: Host, playbooks: Playbooks) -> None:
        try:
            playbooks.ok("site.yml", "--tags", "postgres", "--extra-vars", "postgres_port=0")
            assert not containers(host)["postgres"]["HostConfig"]["PortBindings"]
        finally:
            playbooks.ok("site.yml", "--tags", "postgres")

    def test_a_changed_password_holds_from_the_next_run_on_and_stays(
        self, host: Host, playbooks: Playbooks, settings: dict[str, Any], mlflow_url: str
    ) -> None:
        port, made = settings["local_host_postgres_port"], host.file(PASSWORD).content_string
        chosen = "a:b\\c'd %s/@e $HOME ï"
        extra = json.dumps({"postgres_password": chosen})
        try:
            changed = playbooks.ok("site.yml", "--tags", "postgres", "--diff", "--extra-vars", extra)
            assert chosen not in changed.output
            assert login(host, chosen, port) == "mlflow mlflow"
            refused = host.run(in_a_container(host, made, port))
            assert "password authentication failed" in refused.stderr
            MlflowClient(mlflow_url).create_experiment(f"password-{time.time():.0f}")
            # Not given any more, it is kept.
            before = container_ids(host)
            assert playbooks.ok("site.yml", "--tags", "postgres").changed == 0
            assert container_ids(host) == before
        finally:
            extra = json.dumps({"postgres_password": made})
            playbooks.ok("site.yml", "--tags", "postgres", "--extra-vars", extra)

    def test_it_stops_cleanly(self, host: Host) -> None:
        log = host.check_output("journalctl --unit=mlops-postgres --output=cat --lines=60 --no-pager")
        assert "received fast shutdown request" in log
        assert "not properly shut down" not in log.rpartition("received fast shutdown request")[2]

    def test_a_creation_that_was_cut_off_is_made_anew(self, host: Host) -> None:
        """On a volume of its own, in the container that the unit would make."""
        image = containers(host)["postgres"]["Image"]
        host.check_output(
            "docker volume rm --force mlops-test-postgres"
            " && /usr/local/lib/mlops/own-volumes 10001:10001 mlops-test-postgres"
        )
        run = (
            "docker run --detach --name=mlops-test-postgres --user=10001:10001 --read-only --tmpfs=/tmp "
            "--network=none --volume=mlops-test-postgres:/var/lib/postgresql:nocopy "
            "--volume=/etc/mlops/postgres:/etc/postgresql:ro --volume=/run/mlops/postgres:/run/secrets:ro "
            f"{image} sh /etc/postgresql/start"
        )
        exists = "docker exec mlops-test-postgres test -e /var/lib/postgresql/"
        try:
            host.check_output(run)
            wait_until(lambda: host.run(f"{exists}data.new/PG_VERSION").rc == 0, 30, "the creation began")
            host.check_output("docker rm --force mlops-test-postgres")
            mount = "/var/lib/docker/volumes/mlops-test-postgres/_data"
            assert not host.file(f"{mount}/data").exists, "it was killed too late for this test"
            host.check_output(run)
            ready = "docker exec mlops-test-postgres pg_isready --host=127.0.0.1"
            wait_until(lambda: host.run(ready).rc == 0, 60, "the second start made it whole")
        finally:
            host.run("docker rm --force mlops-test-postgres; docker volume rm --force mlops-test-postgres")


def test_only_its_clients_reach_it(host: Host, playbooks: Playbooks, settings: dict[str, Any]) -> None:
    name = settings["local_host_name"]
    members = {"hosts": {name: {}}}
    playbooks.inventory.write_text(json.dumps({"postgres": members, "monitoring": members}))
    playbooks.ok("site.yml", "--tags", "monitoring")
    cells = found(host, target_of(name))
    opens = {source for (source, place), is_open in cells.items() if place == "postgres:5432" and is_open}
    assert opens == {"mlflow", "postgres_exporter"}
    wrong = {place: is_open for place, is_open in cells.items() if is_open is not allowed(*place)}
    assert wrong == {}


def test_the_exporter_reads_statistics_and_nothing_else(
    host: Host, playbooks: Playbooks, settings: dict[str, Any]
) -> None:
    members = {"hosts": {settings["local_host_name"]: {}}}
    playbooks.inventory.write_text(json.dumps({"postgres": members, "monitoring": members}))
    playbooks.ok("site.yml", "--tags", "monitoring")
    metrics = host.check_output(f"docker exec mlops-prometheus curl --silent {EXPORTER}").splitlines()
    assert "pg_up 1" in metrics
    failed = [line for line in metrics if line.startswith("pg_scrape_collector_success") and line.endswith(" 0")]
    assert failed == []
    for name in ("pg_database_size_bytes", "pg_stat_database_xact_commit", "pg_stat_activity_count", "pg_settings_max"):
        assert any(line.startswith(name) for line in metrics), name
    assert psql(host, "SELECT has_table_privilege('exporter', 'runs', 'SELECT')") == "f"
    assert psql(host, "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = 'exporter'") == "f"


@dataclass
class Acknowledged:
    """What MLflow answered with 200: runs, with the steps of their metric."""

    steps: dict[str, list[int]] = field(default_factory=dict)
    failures: int = 0


def log_runs(url: str, experiment: str, stop: threading.Event, said: Acknowledged) -> None:
    """Log runs one after the other, and keep what was acknowledged; ask again after a failure."""
    api = f"{url}/api/2.0/mlflow/runs"

    def post(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = requests.post(f"{api}/{path}", json=body, timeout=10)
        except requests.RequestException:
            answer = None
        if answer is None or answer.status_code != 200:
            said.failures += 1
            time.sleep(0.2)
            return None
        return dict(answer.json())

    while not stop.is_set():
        created = post("create", {"experiment_id": experiment, "start_time": int(time.time() * 1000)})
        if created is None:
            continue
        run_id = created["run"]["info"]["run_id"]
        said.steps[run_id] = []
        for step in range(5):
            metric = {"run_id": run_id, "key": "loss", "value": step, "timestamp": step, "step": step}
            if post("log-metric", metric) is not None:
                said.steps[run_id].append(step)


def test_no_acknowledged_run_is_lost_when_the_database_is_killed(host: Host, mlflow_url: str) -> None:
    client = MlflowClient(mlflow_url)
    experiment = client.create_experiment(f"killed-{time.time():.0f}")
    mlflow_container = container_ids(host)["mlflow"]
    stop = threading.Event()
    clients = [Acknowledged() for _ in range(4)]
    threads = [threading.Thread(target=log_runs, args=(mlflow_url, experiment, stop, one)) for one in clients]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            time.sleep(4)
            before = container_ids(host)["postgres"]
            host.check_output("kill -9 $(docker inspect --format '{{.State.Pid}}' mlops-postgres)")
            seconds = wait_until(
                lambda before=before: is_healthy_again(host, "postgres", before), 60, "PostgreSQL is healthy again"
            )
            print(f"PostgreSQL was healthy again after {seconds:.1f} s")
        time.sleep(4)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    wait_until(lambda: {"mlflow", "postgres"} <= healthy_services(host), 60, "all is healthy again")
    assert all(client.failures for client in clients), "the clients felt it"
    lost = []
    for one in clients:
        for run_id, steps in one.steps.items():
            history = {metric.step for metric in client.get_metric_history(run_id, "loss")}
            lost += [(run_id, step) for step in steps if step not in history]
    runs = sum(len(one.steps) for one in clients)
    print(f"{runs} runs were acknowledged, {sum(one.failures for one in clients)} requests failed and were repeated")
    assert lost == []
    assert runs > 20
    assert container_ids(host)["mlflow"] == mlflow_container, "MLflow needed no restart"


@pytest.fixture
def outside(host: Host) -> Iterator[dict[str, str]]:
    """A PostgreSQL and an object store that are not the appliance's; the settings that lead there."""
    password = "a:b\\c'd %s/@e"
    images = {service: document["Image"] for service, document in containers(host).items()}
    place = "/run/mlops-test-secrets"
    host.check_output(f"install --directory --owner=10001 --mode=0700 {place}")
    for name in ("postgres_password", "postgres_exporter_password"):
        host.check_output(f"printf %s {shlex.quote(password)} >{place}/{name} && chown 10001 {place}/{name}")
    run = "docker run --detach --rm --network=mlops --user=10001:10001 --tmpfs=/tmp"
    host.check_output(
        f"{run} --name=mlops-test-database --tmpfs=/var/lib/postgresql:uid=10001,mode=0700 "
        f"--volume=/etc/mlops/postgres:/etc/postgresql:ro "
        f"--volume={place}:/run/secrets:ro {images['postgres']} sh /etc/postgresql/start"
    )
    store = (Path(__file__).parent / "object_store.py").read_text()
    host.check_output(f"{run} --name=mlops-test-store {images['mlflow']} python -c {shlex.quote(store)}")
    wait_until(
        lambda: host.run("docker exec mlops-test-database pg_isready --host=127.0.0.1").rc == 0, 60, "it is ready"
    )
    yield {
        "mlflow_store_change": "abandon",
        "mlflow_backend_store_uri": "postgresql://mlflow@mlops-test-database/mlflow",
        "mlflow_backend_store_password": password,
        "mlflow_artifacts_destination": "s3://bucket/artifacts",
        "mlflow_artifacts_credentials": (
            "[default]\naws_access_key_id = test-key\naws_secret_access_key = test-secret-value\n"
            "region = eu-central-1\nendpoint_url = http://mlops-test-store:9000\n"
        ),
    }
    host.run(f"docker rm --force --volumes mlops-test-database mlops-test-store; rm -r {place}")


def test_a_database_and_an_object_store_of_ones_own(
    host: Host,
    playbooks: Playbooks,
    outside: dict[str, str],
    mlflow_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A client fetches from the object store itself otherwise, and this one cannot reach it.
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    client = MlflowClient(mlflow_url)
    before = {one.name for one in client.search_experiments()}
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(range(256)) * 1000)
    try:
        # The host outside group postgres: one cannot have both.
        result = run_playbook("site.yml", "--tags", "serve", "--diff", "--extra-vars", json.dumps(outside))
        assert result.status == 0, result.output
        inspected = host.check_output("docker inspect mlops-mlflow; systemctl cat mlops-mlflow")
        for name in ("mlflow_backend_store_password", "mlflow_artifacts_credentials"):
            secret = outside[name].splitlines()[-3 if "credentials" in name else 0].rpartition(" = ")[2]
            assert secret not in result.output, name
            assert secret not in inspected, name
        assert [one.name for one in client.search_experiments()] == ["Default"]
        run_id = client.create_run("0").info.run_id
        client.log_artifact(run_id, str(file))
        assert [found.path for found in client.list_artifacts(run_id)] == ["weights.bin"]
        (tmp_path / "back").mkdir()
        back = Path(client.download_artifacts(run_id, "weights.bin", str(tmp_path / "back")))
        assert back.read_bytes() == file.read_bytes()
        kept = host.check_output(f"find /var/lib/docker/volumes/mlops_mlflow_artifacts -path '*{run_id}*'")
        assert kept == "", "the artifact is in the object store"
    finally:
        playbooks.ok("site.yml", "--tags", "postgres", "--extra-vars", "mlflow_store_change=abandon")
    assert {one.name for one in client.search_experiments()} == before
