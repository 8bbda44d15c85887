"""MLflow on a MariaDB and in object stores of one's own: large artifacts pass, credentials stay where they belong."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from conftest import PlaybookRun, containers, run_playbook, wait_until
from mlflow.tracking import MlflowClient
from testinfra.host import Host

HERE = Path(__file__).parent
PLACE = "/run/mlops-test-stores"
CONTAINERS = "mlops-test-mariadb mlops-test-store mlops-test-google"
# Leading and trailing blanks, quotes and a comment sign: PyMySQL reads it from a file of MySQL's format.
PASSWORD = '  \'in:side\\d %s/@e"#; $x`=[z]" '
MARIADB = """\
FROM {base}
USER root
# mariadb-install-db needs a program of the client's package.
RUN apt-get update --quiet=2 \\
    && apt-get install --yes --quiet=2 --no-install-recommends mariadb-server-core mariadb-client-core
USER 10001:10001
"""
START_MARIADB = """\
mariadb-install-db --no-defaults --datadir=/tmp/data --skip-test-db >/dev/null &&
exec mariadbd --no-defaults --datadir=/tmp/data --socket=/tmp/socket --character-set-server=utf8mb4 \
    --skip-name-resolve --init-file=/run/secrets/mariadb.sql
"""


def write(host: Host, name: str, content: bytes) -> str:
    """Put a file where the test's containers read it."""
    path = f"{PLACE}/{name}"
    host.check_output(f"echo {base64.b64encode(content).decode()} | base64 --decode >{path} && chown 10001 {path}")
    return path


def emulator() -> bytes:
    """The emulator of Google Cloud Storage, as an archive that Python imports from."""
    spec = find_spec("gcp_storage_emulator")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in package.rglob("*.py"):
            file.write(path, path.relative_to(package.parent))
    return archive.getvalue()


@pytest.fixture(scope="module")
def outside(host: Host) -> Iterator[dict[str, dict[str, object]]]:
    """A MariaDB and three object stores that are not the appliance's; the settings that lead there, by name."""
    host.check_output(f"install --directory --owner=10001 --mode=0700 {PLACE}")
    image = containers(host)["mlflow"]["Image"]
    base = host.check_output("docker images --format '{{.Repository}}:{{.Tag}}' mlops-base").split()[0]
    dockerfile = shlex.quote(MARIADB.format(base=base))
    host.check_output(f"printf %s {dockerfile} | docker build --quiet --tag mlops-test-mariadb - >/dev/null")
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "''")
    # A statement a line is what it reads.
    user = f"CREATE DATABASE mlflow;\nCREATE USER mlflow IDENTIFIED BY '{quoted}';\nGRANT ALL ON mlflow.* TO mlflow;\n"
    write(host, "mariadb.sql", user.encode())
    host.check_output(
        f"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {PLACE}/key && chown 10001 {PLACE}/key"
    )
    google = {
        "type": "service_account",
        "project_id": "test",
        "private_key_id": "1",
        "private_key": host.check_output(f"cat {PLACE}/key") + "\n",
        "client_email": "mlflow@test.iam.example.org",
        "client_id": "1",
        "token_uri": "http://mlops-test-google:9001/token",
    }
    run = f"docker run --detach --rm --network=mlops --user=10001:10001 --volume={PLACE}:/run/secrets:ro"
    host.check_output(f"{run} --name=mlops-test-mariadb --tmpfs=/tmp mlops-test-mariadb sh -c '{START_MARIADB}'")
    store = write(host, "object_store.py", (HERE / "object_store.py").read_bytes())
    host.check_output(
        f"{run} --name=mlops-test-store --volume=/var/tmp --env=TMPDIR=/var/tmp {image} "
        f"python {store.replace(PLACE, '/run/secrets')}"
    )
    write(host, "emulator.zip", emulator())
    write(host, "google_store.py", (HERE / "google_store.py").read_bytes())
    host.check_output(
        f"{run} --name=mlops-test-google --env=PYTHONPATH=/run/secrets/emulator.zip {image} "
        "python /run/secrets/google_store.py"
    )
    yield {
        "mariadb and s3": {
            "mlflow_backend_store_uri": "mysql+pymysql://mlflow@mlops-test-mariadb/mlflow",
            "mlflow_backend_store_password": PASSWORD,
            "mlflow_artifacts_destination": "s3://bucket/artifacts",
            "mlflow_artifacts_credentials": (
                "[default]\naws_access_key_id = test-key\naws_secret_access_key = aws-inside\n"
                "region = eu-central-1\nendpoint_url = http://mlops-test-store:9000\n"
            ),
        },
        "google": {
            "mlflow_artifacts_destination": "gs://bucket/artifacts",
            "mlflow_artifacts_credentials": json.dumps(google),
            "mlflow_environment": {"API_ENDPOINT_OVERRIDE": "http://mlops-test-google:9000"},
        },
        "azure": {
            "mlflow_artifacts_destination": "wasbs://container@testaccount.blob.core.windows.net/artifacts",
            "mlflow_artifacts_credentials": (
                "DefaultEndpointsProtocol=http;AccountName=testaccount;AccountKey=YXp1cmUtaW5zaWRl;"
                "BlobEndpoint=http://mlops-test-store:9000/testaccount"
            ),
        },
    }
    host.run(f"docker rm --force --volumes {CONTAINERS}; docker rmi mlops-test-mariadb; rm -r {PLACE}")


@pytest.fixture(scope="module")
def moved(host: Host, mlflow_url: str) -> Iterator[Callable[..., PlaybookRun]]:
    """Run `site.yml` with MLflow's data elsewhere; afterwards all is where it was."""
    before = {one.name for one in MlflowClient(mlflow_url).search_experiments()}

    def run(settings: dict[str, object]) -> PlaybookRun:
        everything = json.dumps({"mlflow_store_change": "abandon", **settings})
        result = run_playbook("site.yml", "--tags", "serve", "--diff", "--extra-vars", everything)
        assert result.status == 0, result.output
        return result

    yield run
    back = run_playbook("site.yml", "--tags", "serve", "--extra-vars", "mlflow_store_change=abandon")
    assert back.status == 0, back.output
    assert {one.name for one in MlflowClient(mlflow_url).search_experiments()} == before
    assert host.file("/var/lib/mlops/mlflow-store").content_string.strip() == "sqlite"


def passes(url: str, megabytes: int) -> bool:
    """Whether a file of this size, sent as it is made, comes back as it was sent."""
    sent, received = hashlib.sha256(), hashlib.sha256()

    def made() -> Iterator[bytes]:
        block = hashlib.sha256(url.encode()).digest() * 32768
        for number in range(megabytes):
            piece = number.to_bytes(8, "big") + block[8:]
            sent.update(piece)
            yield piece

    requests.put(url, data=made(), timeout=300).raise_for_status()
    with requests.get(url, stream=True, timeout=300) as answer:
        answer.raise_for_status()
        for piece in answer.iter_content(1024 * 1024):
            received.update(piece)
    return sent.digest() == received.digest()


def volumes(host: Host) -> set[str]:
    """All of the host's volumes, those without a name among them."""
    return set(host.check_output("docker volume ls --quiet").split())


@pytest.mark.parametrize(
    ("name", "secrets", "sizes"),
    [
        ("mariadb and s3", ["in:side", "aws-inside"], [30, 1024]),
        ("google", ["PRIVATE KEY-----"], [30]),
        ("azure", ["YXp1cmUtaW5zaWRl"], [30]),
    ],
)
def test_artifacts_of_all_sizes_are_in_the_store_and_credentials_nowhere(
    name: str,
    secrets: list[str],
    sizes: list[int],
    host: Host,
    outside: dict[str, dict[str, object]],
    moved: Callable[..., PlaybookRun],
    mlflow_url: str,
) -> None:
    wait_until(
        lambda: host.run("docker logs mlops-test-mariadb 2>&1 | grep 'ready for conn'").rc == 0, 60, "it is ready"
    )
    # The runs stay in the same database while the artifacts go elsewhere.
    result = moved({**outside["mariadb and s3"], **outside[name]})
    inspected = host.check_output("docker inspect mlops-mlflow; systemctl cat mlops-mlflow; ps -e -o args")
    for secret in secrets:
        assert secret not in result.output
        assert secret not in inspected
    client = MlflowClient(mlflow_url)
    run_id = client.create_run("0", run_name="ein Lauf ☃").info.run_id
    client.log_metric(run_id, "loss", float("nan"))
    client.log_param(run_id, "text", "naïve 'quoted' \\ ☃")
    known = volumes(host)
    for size in sizes:
        assert passes(f"{mlflow_url}/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/{size}.bin", size), size
    (found,) = client.search_runs(["0"], "params.text LIKE '%☃'", max_results=1)
    assert found.info.run_name == "ein Lauf ☃"
    assert {(one.path, one.file_size) for one in client.list_artifacts(run_id)} == {
        (f"{size}.bin", size * 1024 * 1024) for size in sizes
    }
    assert volumes(host) == known
    assert host.check_output("docker exec mlops-mlflow ls -A /var/tmp") == "", "what passed through is gone"
    kept = host.check_output(f"find /var/lib/docker/volumes/mlops_mlflow_artifacts -path '*{run_id}*'")
    assert kept == "", "the artifacts are in the object store"
    if name == "google":
        assert "token for mlflow@test.iam" in host.check_output("docker logs mlops-test-google")


def test_what_passes_through_has_a_volume_that_goes_with_its_container(host: Host) -> None:
    before = volumes(host)
    (mounted,) = (mount for mount in containers(host)["mlflow"]["Mounts"] if mount["Destination"] == "/var/tmp")
    assert mounted["Name"] in before
    host.check_output("systemctl restart mlops-mlflow")
    after = volumes(host)
    assert mounted["Name"] not in after
    assert len(after) == len(before)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("mlflow_backend_store_uri", "mysql://mlflow@db.example.org/mlflow", "names no driver: write mysql+pymysql://"),
        ("mlflow_artifacts_destination", "hdfs://store/artifacts", "has no client for hdfs://: give s3://bucket/path"),
    ],
)
def test_a_store_that_mlflow_cannot_use_is_refused_by_its_setting(
    failing_site: Callable[..., PlaybookRun], setting: str, value: str, said: str
) -> None:
    result = failing_site("--tags", "serve", "--extra-vars", f"{setting}={value}")
    output = " ".join(result.output.split())
    assert f"{setting}: " in output
    assert said in output
    assert result.changed == 0
