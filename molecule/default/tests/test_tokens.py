"""Tokens of the model API: made, used, rotated and revoked while another client goes on asking."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

import pytest
import requests
from conftest import run_playbook, steady_client, wait_until
from testinfra.host import Host

QUESTION = {"inputs": ["parse json"]}


@pytest.fixture(scope="module", autouse=True)
def tokens_needed(host: Host, api_url: str) -> Iterator[None]:
    """Have the model API ask for tokens, and for none afterwards."""
    result = run_playbook(
        *("site.yml", "--tags", "serve,train"),
        *("--extra-vars", "nginx_api_tokens=true training_only_when_missing=true nginx_api_logged_percent=100"),
    )
    assert result.status == 0, result.output
    token = make("readiness")
    wait_until(lambda: status(api_url, token, "GET", "/ready") == 200, 60, "a model is served")
    yield
    host.check_output("rm -r /etc/mlops/tokens")
    result = run_playbook("site.yml")
    assert result.status == 0, result.output
    assert requests.get(f"{api_url}/ready", timeout=10).status_code == 200, "nobody needs a token any more"


def make(client: str) -> str:
    """Make a token as an operator would."""
    result = run_playbook("playbooks/token.yml", "--extra-vars", f"client={client}")
    assert result.status == 0, result.output
    (token,) = re.findall(r"^[\w-]{43}$", result.output, flags=re.MULTILINE)
    return str(token)


def revoke(client: str, digest: str = "") -> None:
    """Revoke tokens as an operator would."""
    result = run_playbook("playbooks/revoke.yml", "--extra-vars", json.dumps({"client": client, "digest": digest}))
    assert result.status == 0, result.output


def digest_of(token: str) -> str:
    """What the host keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def status(url: str, token: str, method: str = "POST", path: str = "/invocations") -> int:
    """How the model API answers a token."""
    headers = {"Authorization": f"Bearer {token}"}
    body = QUESTION if method == "POST" else None
    return requests.request(method, f"{url}{path}", json=body, headers=headers, timeout=10).status_code


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic dTpw"}])
def test_without_a_token_that_is_known_only_health_answers(api_url: str, headers: dict[str, str]) -> None:
    assert requests.get(f"{api_url}/health", headers=headers, timeout=10).status_code == 200
    for path in ("/invocations", "/ready", "/", "/docs", "/openapi.json"):
        answer = requests.post(f"{api_url}{path}", json=QUESTION, headers=headers, timeout=10)
        assert answer.status_code == 401, path
        assert answer.json()["error_code"] == "UNAUTHENTICATED"
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_tokens_come_and_go_and_no_request_of_another_client_fails(api_url: str) -> None:
    with steady_client(api_url, Authorization=f"Bearer {make('steady')}") as failed:
        old, new = make("shop"), make("shop")
        assert status(api_url, old) == status(api_url, new) == 200, "both hold while a client changes over"
        revoke("shop", digest_of(old)[:12])
        assert (status(api_url, old), status(api_url, new)) == (401, 200)
        revoke("shop")
        assert status(api_url, new) == 401
    assert failed == []


def test_the_list_has_clients_and_never_a_token(host: Host) -> None:
    token = make("listed")
    shown = run_playbook("playbooks/tokens.yml").output
    assert re.search(
        rf"^listed +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  {digest_of(token)[:12]}$", shown, flags=re.MULTILINE
    )
    assert token not in shown
    assert host.file("/etc/mlops/tokens").mode == 0o750
    assert host.file(f"/etc/mlops/tokens/{digest_of(token)}").mode == 0o640


def test_a_client_is_known_by_name_in_the_log_and_its_token_is_nowhere(host: Host, api_url: str) -> None:
    token = make("logged")
    assert status(api_url, token) == 200

    def lines() -> list[str]:
        return str(host.check_output("journalctl -u mlops-nginx --since -60s --output cat")).splitlines()

    # nginx keeps its log for a second.
    wait_until(lambda: any('"client_name":"logged"' in line for line in lines()), 30, "the client is in the log")
    for command in ("journalctl --since -10min --output cat", "docker inspect mlops-nginx mlops-serving"):
        assert token not in host.check_output(command), command
    assert host.run("grep -rqF -e %s /etc/mlops /var/lib/mlops", token).rc == 1
