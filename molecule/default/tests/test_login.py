"""MLflow with a login: who may do what, and what goes on meanwhile; without one again, all is as before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conftest import (
    PlaybookRun,
    container_ids,
    healthy_services,
    host_secrets,
    readable_secrets,
    run_playbook,
    steady_client,
    wait_until,
)
from testinfra.host import Host

MODEL = "code-search"
PASSWORDS = {name: f'{name}\'s own \\ 100% "secret"' for name in ("reader", "writer", "releaser", "boss")}
PEOPLE = [
    {"name": f"a.{role}", "password": PASSWORDS[role], "role": role} for role in ("reader", "writer", "releaser")
] + [{"name": "a.boss", "password": PASSWORDS["boss"], "role": "administrator"}]
# Every path that answers without a login: is it alive, what is it, and what the UI's pages are made of.
PUBLIC = ("/health", "/static-files/", "/favicon.ico")
SERVER_INFO = "/mlflow/server-info"
# In MLflow's container: every address of the server, with all that its routes leave open filled in.
LIST_ROUTES = r"""
import os, re
os.environ.update(MLFLOW_FLASK_SERVER_SECRET_KEY="x", _MLFLOW_SGI_NAME="uvicorn", PROMETHEUS_EXPORTER_ENV_VAR="/tmp/m")
from mlflow.server import auth
app = auth.create_app()
routes = [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]
routes += [(method, rule.rule) for rule in auth.app.url_map.iter_rules() for method in rule.methods]
for method, path in sorted(set(routes)):
    if method not in ("HEAD", "OPTIONS"):
        print("ROUTE", method, re.sub(r"[<{][^>}]*[>}]", "1", path))
"""

Auth = tuple[str, str] | None


def site(people: list[dict[str, str]], **settings: Any) -> PlaybookRun:
    """Run site.yml with a login."""
    variables = {"mlflow_login": True, "mlflow_users": people, **settings}
    result = run_playbook("site.yml", "-vvv", "--diff", "--extra-vars", json.dumps(variables))
    assert result.status == 0, result.output
    assert not any(person["password"] in result.output for person in people)
    return result


@pytest.fixture(scope="module")
def before(mlflow_url: str) -> dict[str, Any]:
    """What MLflow knew before it had a login."""
    return known(mlflow_url, None)


@pytest.fixture(scope="module", autouse=True)
def login(before: dict[str, Any]) -> Iterator[PlaybookRun]:
    """Have a login and people, and neither afterwards."""
    assert before["aliases"]
    yield site(PEOPLE)
    result = run_playbook("site.yml")
    assert result.status == 0, result.output


@pytest.fixture
def who(host: Host) -> dict[str, Auth]:
    """Everybody's name and password."""
    secrets = "/etc/mlops/secrets"
    admin = host.check_output(f"cat {secrets}/mlflow_admin_password")
    monitoring = host.check_output(f"cat {secrets}/mlflow_monitoring_password")
    services: dict[str, Auth] = {"monitoring": ("monitoring", monitoring)}
    for name in ("serving", "training", "release"):
        text = host.check_output(f"cat {secrets}/mlflow_{name}_credentials")
        services[name] = (name, text.strip().rpartition(" = ")[2])
    people: dict[str, Auth] = {person["name"][2:]: (person["name"], person["password"]) for person in PEOPLE}
    nobodies: dict[str, Auth] = {"nobody": None, "a wrong password": ("a.boss", "not the boss's"), "empty": ("", "")}
    return {**nobodies, **people, **services, "admin": ("admin", admin)}


def ask(url: str, auth: Auth, method: str, call: str, **body: Any) -> requests.Response:
    """Call MLflow's API."""
    arguments: dict[str, Any] = {"params": body} if method == "GET" else {"json": body}
    return requests.request(method, f"{url}/api/2.0/mlflow/{call}", auth=auth, timeout=30, **arguments)


def known(url: str, auth: Auth) -> dict[str, Any]:
    """Runs, versions and the champion."""
    runs = ask(url, auth, "POST", "runs/search", experiment_ids=["0", "1", "2", "3"], max_results=1000).json()["runs"]
    model = ask(url, auth, "GET", "registered-models/get", name=MODEL).json()["registered_model"]
    return {"runs": {run["info"]["run_id"] for run in runs}, "aliases": model["aliases"]}


def champion(url: str, auth: Auth) -> dict[str, Any]:
    """The champion's version, as MLflow tells of it."""
    found = ask(url, auth, "GET", "registered-models/alias", name=MODEL, alias="champion").json()
    return dict(found["model_version"])


def copy_of(version: dict[str, Any]) -> dict[str, str]:
    """What registers the files of a version as another one."""
    return {"name": MODEL, "source": version["source"], "model_id": version["source"].rpartition("/")[2]}


class Actions:
    """What somebody may try; each returns the status with which MLflow answers."""

    def __init__(self, url: str, admin: Auth) -> None:
        self._url, self._admin = url, admin
        self._champion = champion(url, admin)

    def read(self, auth: Auth) -> int:
        return ask(self._url, auth, "GET", "model-versions/get", name=MODEL, version="1").status_code

    def list_files(self, auth: Auth) -> int:
        run = ask(self._url, self._admin, "GET", "runs/get", run_id=self._champion["run_id"]).json()["run"]["info"]
        path = run["artifact_uri"].partition(":/")[2].lstrip("/")
        files = f"{self._url}/api/2.0/mlflow-artifacts/artifacts"
        return requests.get(files, params={"path": path}, auth=auth, timeout=30).status_code

    def create(self, auth: Auth) -> int:
        answer = ask(self._url, auth, "POST", "registered-models/create", name="login-test")
        ask(self._url, self._admin, "DELETE", "registered-models/delete", name="login-test")
        return answer.status_code

    def log(self, auth: Auth) -> int:
        experiment = self._run()["experiment_id"]
        answer = ask(self._url, auth, "POST", "runs/create", experiment_id=experiment)
        if answer.ok:
            ask(self._url, self._admin, "POST", "runs/delete", run_id=answer.json()["run"]["info"]["run_id"])
        return answer.status_code

    def register(self, auth: Auth) -> int:
        answer = ask(self._url, auth, "POST", "model-versions/create", **self._copy())
        if answer.ok:
            version = answer.json()["model_version"]["version"]
            ask(self._url, self._admin, "DELETE", "model-versions/delete", name=MODEL, version=version)
        return answer.status_code

    def promote(self, auth: Auth) -> int:
        version = self._champion["version"]
        alias = {"name": MODEL, "alias": "champion", "version": version}
        statuses = {
            requests.post(f"{self._url}/{api}/2.0/mlflow/registered-models/alias", json=alias, auth=auth, timeout=30)
            .status_code
            for api in ("api", "ajax-api")
        }  # fmt: skip
        assert len(statuses) == 1, "each way in has the same rule"
        return statuses.pop()

    def other_alias(self, auth: Auth) -> int:
        version = self._champion["version"]
        answer = ask(
            self._url, auth, "POST", "registered-models/alias", name=MODEL, alias="login-test", version=version
        )
        ask(self._url, self._admin, "DELETE", "registered-models/alias", name=MODEL, alias="login-test")
        return answer.status_code

    def delete(self, auth: Auth) -> int:
        ask(self._url, self._admin, "POST", "registered-models/create", name="login-test")
        status = ask(self._url, auth, "DELETE", "registered-models/delete", name="login-test").status_code
        ask(self._url, self._admin, "DELETE", "registered-models/delete", name="login-test")
        return status

    def administer(self, auth: Auth) -> int:
        status = ask(
            self._url, auth, "POST", "users/create", username="mallory", password="mallory's password"
        ).status_code
        ask(self._url, self._admin, "DELETE", "users/delete", username="mallory")
        return status

    def metrics(self, auth: Auth) -> int:
        return requests.get(f"{self._url}/metrics", auth=auth, timeout=30).status_code

    def _run(self) -> dict[str, Any]:
        run = ask(self._url, self._admin, "GET", "runs/get", run_id=self._champion["run_id"]).json()
        return dict(run["run"]["info"])

    def _copy(self) -> dict[str, Any]:
        return copy_of(self._champion)


ACTIONS = (
    *("read", "list_files", "create", "log", "register", "promote"),
    *("other_alias", "delete", "administer", "metrics"),
)  # fmt: skip
MAY: dict[str, set[str]] = {
    "reader": {"read", "list_files", "metrics"},
    "writer": {"read", "list_files", "create", "log", "register", "other_alias", "metrics"},
    "releaser": set(ACTIONS) - {"administer"},
    "boss": set(ACTIONS),
    "admin": set(ACTIONS),
    "serving": {"read", "list_files", "metrics"},
    "training": {"read", "list_files", "create", "log", "register", "promote", "other_alias", "metrics"},
    "release": set(ACTIONS) - {"administer"},
    "monitoring": {"metrics"},
}


@pytest.mark.parametrize("name", ["nobody", "a wrong password", "empty", *MAY])
def test_each_may_do_what_the_table_says_and_nothing_else(name: str, who: dict[str, Auth], mlflow_url: str) -> None:
    actions = Actions(mlflow_url, who["admin"])
    found = {action: getattr(actions, action)(who[name]) for action in ACTIONS}
    refused = 403 if name in MAY else 401
    assert found == {action: 200 if action in MAY.get(name, set()) else refused for action in ACTIONS}


def test_training_may_not_promote_when_the_inventory_says_so(who: dict[str, Auth], mlflow_url: str) -> None:
    site(PEOPLE, training_may_promote=False)
    assert Actions(mlflow_url, who["admin"]).promote(who["training"]) == 403
    answer = ask(
        mlflow_url, who["training"], "POST", "registered-models/alias", name=MODEL, alias="champion", version="1"
    )
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert "releaser" in answer.json()["message"]
    assert Actions(mlflow_url, who["admin"]).other_alias(who["training"]) == 200
    site(PEOPLE)
    assert Actions(mlflow_url, who["admin"]).promote(who["training"]) == 200


@pytest.mark.parametrize("name", ["training", "serving", "reader"])
def test_who_waits_for_a_first_champion_is_told_that_there_is_none(
    name: str, who: dict[str, Auth], mlflow_url: str
) -> None:
    answer = ask(mlflow_url, who[name], "GET", "registered-models/alias", name="not-made-yet", alias="champion")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_nothing_else_answers_without_a_login(host: Host, mlflow_url: str, ui_url: str) -> None:
    listed = host.run(f"docker exec --interactive mlops-mlflow python - <<'PYTHON'\n{LIST_ROUTES}\nPYTHON")
    routes = [line.split()[1:] for line in listed.stdout.splitlines() if line.startswith("ROUTE")]
    assert len(routes) > 300, listed.stderr
    session, open_ = requests.Session(), set()
    for url in (mlflow_url, ui_url):
        for method, path in [*routes, ["GET", "/metrics"], ["GET", "/docs"], ["GET", "/openapi.json"]]:
            answer = session.request(method, url + path, json={} if method != "GET" else None, timeout=30)
            # nginx has answers of its own, and hides the metrics.
            if answer.status_code not in ({401} if url == mlflow_url else {401, 403, 404}):
                open_.add(path)
    assert {path for path in open_ if not path.startswith(PUBLIC) and not path.endswith(SERVER_INFO)} == set()
    assert session.get(f"{mlflow_url}/health", timeout=10).status_code == 200


def test_the_model_server_follows_a_releaser(who: dict[str, Auth], mlflow_url: str, api_url: str) -> None:
    former = champion(mlflow_url, who["admin"])
    made = ask(mlflow_url, who["training"], "POST", "model-versions/create", **copy_of(former)).json()["model_version"]
    alias = {"name": MODEL, "alias": "champion"}

    def serves(version: str) -> bool:
        return bool(requests.get(f"{api_url}/ready", timeout=30).json().get("version") == version)

    with steady_client(api_url) as failed:
        for version in (made["version"], former["version"]):
            ask(mlflow_url, who["releaser"], "POST", "registered-models/alias", **alias, version=version)
            wait_until(lambda version=version: serves(version), 60, f"version {version} is served")
    assert failed == []
    ask(mlflow_url, who["releaser"], "DELETE", "model-versions/delete", name=MODEL, version=made["version"])


class Attack:
    """Training's account changes files that versions share: a comment more in a list of requirements."""

    MARK = "# overwritten"

    def __init__(self, url: str, version: dict[str, Any], who: dict[str, Auth]) -> None:
        self._url, self._who = url, who
        model = version["source"].rpartition("/")[2]
        answer = ask(url, who["training"], "GET", f"logged-models/{model}").json()["model"]["info"]
        path = answer["artifact_uri"].partition(":/")[2].lstrip("/")
        self._file = f"{url}/api/2.0/mlflow-artifacts/artifacts/{path}/requirements.txt"
        self._right = requests.get(self._file, auth=who["training"], timeout=30).text
        assert self._right
        assert self.MARK not in self._right

    def __enter__(self) -> None:
        self._put(f"{self._right}\n{self.MARK}\n", self._who["training"])

    def __exit__(self, *_: object) -> None:
        self._put(self._right, self._who["admin"])

    def _put(self, content: str, auth: Auth) -> None:
        assert requests.put(self._file, data=content.encode(), auth=auth, timeout=30).status_code == 200


@pytest.fixture
def copies(who: dict[str, Auth], mlflow_url: str) -> Iterator[list[dict[str, Any]]]:
    """Two versions of training's with the champion's files; afterwards all is as it was."""
    former = champion(mlflow_url, who["admin"])
    versions = [
        ask(mlflow_url, who["training"], "POST", "model-versions/create", **copy_of(former)).json()["model_version"]
        for _ in range(2)
    ]
    yield versions
    alias = {"name": MODEL, "alias": "champion", "version": former["version"]}
    assert ask(mlflow_url, who["admin"], "POST", "registered-models/alias", **alias).status_code == 200
    site(PEOPLE)
    for version in versions:
        ask(mlflow_url, who["admin"], "DELETE", "model-versions/delete", name=MODEL, version=version["version"])


def test_what_training_s_account_overwrites_is_loaded_only_where_no_signature_is_required(
    host: Host, who: dict[str, Auth], copies: list[dict[str, Any]], mlflow_url: str, api_url: str
) -> None:
    former, versions = champion(mlflow_url, who["admin"]), copies
    attack = Attack(mlflow_url, former, who)
    serving = "docker exec mlops-serving"

    def has(version: dict[str, Any]) -> bool:
        files = f"/var/lib/models/{MODEL}/{version['version']}-*"
        return bool(host.run(f"{serving} sh -c \"grep -rqF '{attack.MARK}' {files}\"").rc == 0)

    def served() -> dict[str, Any]:
        return dict(requests.get(f"{api_url}/model", timeout=30).json())

    def point_to(version: dict[str, Any]) -> None:
        alias = {"name": MODEL, "alias": "champion", "version": version["version"]}
        assert ask(mlflow_url, who["releaser"], "POST", "registered-models/alias", **alias).status_code == 200
        host.check_output("docker kill --signal=HUP mlops-serving")

    def follows(version: dict[str, Any]) -> None:
        wait_until(lambda: served().get("version") == version["version"], 60, f"{version['version']} is served")

    with attack:
        point_to(versions[0])
        follows(versions[0])
        assert has(versions[0]), "whoever may write the files decides what runs"
    point_to(former)
    follows(former)
    site(PEOPLE, serving_require_signature=True)
    wait_until(lambda: served().get("signed") is True, 60, "what was served is served, and signed")
    host.check_output(f"{serving} sh -c 'rm -rf /var/lib/models/{MODEL}/{versions[0]['version']}-*'")
    with steady_client(api_url) as failed:
        point_to(versions[0])
        said = f"version {versions[0]['version']} was rejected: it is not signed"
        wait_until(lambda: served()["rejected"] == said, 60, "a version that nobody signed is refused")

        variables = {"mlflow_login": True, "mlflow_users": PEOPLE, "serving_require_signature": True}
        promotion = {**variables, "model": MODEL, "version": versions[1]["version"]}
        promoted = run_playbook("playbooks/promote.yml", "--extra-vars", json.dumps(promotion))
        assert promoted.status == 0, promoted.output
        follows(versions[1])
        assert served()["signed"] is True

        # As a host that has not fetched it yet.
        point_to(former)
        follows(former)
        host.check_output(f"{serving} sh -c 'rm -rf /var/lib/models/{MODEL}/{versions[1]['version']}-*'")
        with attack:
            point_to(versions[1])
            said = f"version {versions[1]['version']} was rejected: its signature does not fit: "
            wait_until(lambda: said in str(served()["rejected"]), 60, "what was overwritten is refused")
            assert served()["version"] == former["version"], "and the former goes on"
            assert not has(versions[1])
        metrics = host.check_output(f"{serving} curl --silent http://127.0.0.1:8000/metrics")
        # Whoever tells it to look again has it try again.
        counted = re.search(r'model_server_model_rejections_total\{reason="signature"\} (\S+)', metrics)
        assert counted, metrics
        assert float(counted[1]) >= 2
        assert f'"version": "{versions[1]["version"]}", "reason": "its signature does not fit' in host.check_output(
            "journalctl --unit mlops-serving --since -5min --output cat"
        )
        point_to(versions[1])
        follows(versions[1])
        point_to(former)
        follows(former)
    assert failed == []


def test_whether_there_is_a_champion_is_asked_with_a_login(host: Host) -> None:
    variables = {"mlflow_login": True, "mlflow_users": PEOPLE, "training_only_when_missing": True}
    result = run_playbook("site.yml", "--tags", "train", "--extra-vars", json.dumps(variables))
    assert result.status == 0, result.output
    assert "A training run ends well" not in result.output, "there is a champion, and the question needed a login"
    assert host.check_output("stat --format %a:%u /run/mlops/training/mlflow_credentials") == "400:10011"


def test_health_and_metrics_log_in(host: Host, prometheus_url: str) -> None:
    assert "mlflow" in healthy_services(host)

    def is_up() -> bool:
        query = {"query": 'up{job="mlflow"}'}
        (found,) = requests.get(f"{prometheus_url}/api/v1/query", params=query, timeout=10).json()["data"]["result"]
        return bool(found["value"][1] == "1")

    wait_until(is_up, 40, "Prometheus reads MLflow's metrics")


def test_secrets_are_in_their_files_only(host: Host, login: PlaybookRun, who: dict[str, Auth]) -> None:
    people = {auth[0]: auth[1] for name, auth in who.items() if auth and name in MAY}
    # As HTTP has them.
    logins = {f"{name}'s login": f"{name}:{password}" for name, password in people.items()}
    secrets = host_secrets(host) | people | logins
    assert {"mlflow_session_key", "mlflow_encryption_passphrase", "mlflow_serving_credentials"} <= set(secrets)
    assert readable_secrets(host, secrets, run=login.output) == [], "[secret, its form, where it is readable]"
    assert host.check_output("stat --format %a:%U /etc/mlops/secrets/mlflow_* | sort --unique") == "600:root"


def test_a_second_run_changes_nothing_and_check_mode_tells_the_truth(host: Host) -> None:
    former = container_ids(host)
    assert site(PEOPLE).changed == 0
    assert container_ids(host) == former
    variables = {"mlflow_login": True, "mlflow_users": PEOPLE[:-1]}
    told = run_playbook("site.yml", "--check", "--extra-vars", json.dumps(variables))
    assert (told.status, told.changed) == (0, 1), told.output


def test_somebody_who_leaves_or_changes_the_password_does_so_at_once(who: dict[str, Auth], mlflow_url: str) -> None:
    changed = {**PEOPLE[0], "password": "another password of hers"}
    assert ask(mlflow_url, who["writer"], "GET", "users/current").status_code == 200
    site([changed, *PEOPLE[2:]])
    assert ask(mlflow_url, who["writer"], "GET", "users/current").status_code == 401
    assert ask(mlflow_url, who["reader"], "GET", "users/current").status_code == 401
    assert ask(mlflow_url, ("a.reader", changed["password"]), "GET", "users/current").status_code == 200
    site(PEOPLE)
    assert ask(mlflow_url, who["reader"], "GET", "users/current").status_code == 200


def test_without_a_login_again_all_is_as_before(before: dict[str, Any], mlflow_url: str, who: dict[str, Auth]) -> None:
    assert known(mlflow_url, who["admin"]) == before, "runs and models are there for the administrator"
    assert known(mlflow_url, who["reader"]) == before, "and for people"
    result = run_playbook("site.yml")
    assert result.status == 0, result.output
    assert known(mlflow_url, None) == before
