"""The configuration of nginx follows from the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from nginx_conf import rendered

TLS = {"nginx_tls_key": "tls.key", "mlops_server_names": ["mlops.example.org", "localhost"]}


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Any]:
    """Settings with a certificate and an authority of clients, which are files."""
    for name in ("tls.crt", "ca.crt"):
        (tmp_path / name).write_text(f"{name}\n")
    return {**TLS, "nginx_tls_certificate": str(tmp_path / "tls.crt")}


def server(text: str, port: str) -> str:
    """The block of the server that answers on a port of the container."""
    (block,) = re.findall(
        rf"^    server {{\n        listen {port}\b[^\n]* default_server.*?^    }}", text, flags=re.MULTILINE | re.DOTALL
    )
    return block


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^\s*{name} ([^;]+);", text, flags=re.MULTILINE)


class TestByDefault:
    def test_it_listens_on_loopback_and_asks_nobody_for_a_name(self) -> None:
        text = rendered("nginx.conf")
        assert rendered("__nginx_publish") == ["127.0.0.1:80:80", "127.0.0.1:8080:8080"]
        for word in ("ssl", "js_set", "return 401", "return 403", "Strict-Transport"):
            assert word not in text, word

    def test_slow_clients_leave_room(self) -> None:
        text = rendered("nginx.conf")
        for name in ("client_header_timeout", "client_body_timeout", "send_timeout", "reset_timedout_connection"):
            assert len(directives(text, name)) == 1, name
        assert int(directives(text, "worker_connections")[0]) >= 4000
        assert directives(server(text, "80"), "limit_conn") == ["ui_connections 200"]

    def test_limits_are_by_address(self) -> None:
        zones = directives(rendered("nginx.conf"), "limit_req_zone") + directives(
            rendered("nginx.conf"), "limit_conn_zone"
        )
        assert [zone.split()[0] for zone in zones] == ["$binary_remote_addr"] * 3

    def test_nobody_gives_himself_a_name(self) -> None:
        assert "X-Client $client" in directives(server(rendered("nginx.conf"), "8080"), "proxy_set_header")


class TestExposed:
    EVERYWHERE = "0.0.0.0/0"

    def test_it_listens_on_every_address_or_on_the_one_that_is_named(self) -> None:
        assert rendered("__nginx_publish", nginx_exposed=True) == ["0.0.0.0:80:80", "0.0.0.0:8080:8080"]
        named = rendered("__nginx_publish", nginx_exposed=True, nginx_bind_address="10.1.2.3")
        assert named == ["10.1.2.3:80:80", "10.1.2.3:8080:8080"]
        assert rendered("nginx_bind_address", mlops_bind_address="0.0.0.0") == "0.0.0.0", "a local target"

    def test_other_networks_are_refused_by_every_public_server_and_the_host_never(self, tls: dict[str, Any]) -> None:
        network = {"network": {"IPAM": {"Config": [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]}}}
        text = rendered("nginx.conf", **tls, nginx_allowed_networks=["10.1.0.0/16"], __nginx_network=network)
        (admitted,) = re.findall(r"geo \$admitted {(.*?)}", text, flags=re.DOTALL)
        assert admitted.split("\n")[1:-1] == [
            f"        {line};" for line in ("default 0", "127.0.0.0/8 1", "::1 1", "172.18.0.1 1", "10.1.0.0/16 1")
        ]
        for port in ("80", "443", "8080"):
            assert "if ($admitted = 0) {\n            return 403;" in server(text, port), port
        assert "$admitted" not in text[text.index("listen 8081") : text.index("stub_status;")]

    def test_tokens_are_on_unless_certificates_take_their_place(self) -> None:
        assert rendered("nginx_api_tokens", nginx_exposed=True) is True
        assert rendered("nginx_api_tokens", nginx_exposed=True, nginx_api_client_ca="ca.crt") is False
        assert rendered("nginx_api_tokens") is False


class TestClients:
    def test_all_but_health_needs_a_token_which_stays_at_the_proxy(self) -> None:
        text = rendered("nginx.conf", nginx_api_tokens=True)
        api = server(text, "8080")
        health, rest = re.findall(r"location (?:= /health|/) {.*?\n        }", api, flags=re.DOTALL)
        assert "return 401" not in health
        assert 'if ($client = "") {\n                return 401;' in rest
        assert 'Authorization ""' in directives(api, "proxy_set_header")
        assert "return 401" not in server(text, "80")
        assert "/etc/mlops/tokens:/etc/nginx/tokens:ro" in rendered("__nginx_volumes", nginx_api_tokens=True)
        assert "/etc/mlops/tokens:/etc/nginx/tokens:ro" not in rendered("__nginx_volumes")

    def test_limits_are_by_client(self) -> None:
        text = rendered("nginx.conf", nginx_api_tokens=True)
        assert directives(text, "limit_req_zone")[0].startswith("$client ")
        assert directives(text, "limit_conn_zone")[0].startswith("$client ")

    @pytest.mark.parametrize(
        ("subject", "client"),
        [
            ("SUCCESS CN=shop", "shop"),
            ("SUCCESS CN=shop 1.eu,O=Example", "shop 1.eu"),
            ("SUCCESS O=Example,CN=shop", "shop"),
            (r"SUCCESS O=a\,CN=admin", None),
            (r"SUCCESS CN=a\,b", None),
            ("FAILED:expired CN=shop", None),
            ("NONE ", None),
        ],
    )
    def test_a_certificate_names_its_client(self, tls: dict[str, Any], subject: str, client: str | None) -> None:
        authority = str(Path(tls["nginx_tls_certificate"]).with_name("ca.crt"))
        text = rendered("nginx.conf", **tls, nginx_api_client_ca=authority)
        (quoted,) = re.findall(r'"~(\^SUCCESS [^"]+)" \$certificate_name;', text)
        # nginx takes a backslash before a backslash away.
        match = re.search(quoted.replace("\\\\", "\\").replace("?<", "?P<").replace("?P<!", "?<!"), subject)
        assert (match and match["certificate_name"]) == client
        assert "ssl_verify_client optional;" in server(text, "8080")
        assert "ssl_verify_client" not in server(text, "443")


class TestTls:
    def test_a_handshake_for_another_name_is_refused_and_port_80_leads_to_no_other(self, tls: dict[str, Any]) -> None:
        text = rendered("nginx.conf", **tls)
        assert text.count("ssl_reject_handshake on;") == 1
        for port in ("443", "8080"):
            assert directives(server(text, port), "server_name") == ["mlops.example.org localhost host.example.org"]
        assert "return 301 https://$own_name$request_uri;" in server(text, "80")
        assert re.search(r"map \$host \$own_name {\s+hostnames;\s+default mlops.example.org;", text)
        assert "https://$own_name:8443$request_uri" in rendered("nginx.conf", **tls, nginx_https_port=8443)

    def test_it_is_of_mozillas_intermediate_profile(self, tls: dict[str, Any]) -> None:
        text = rendered("nginx.conf", **tls)
        assert directives(text, "ssl_protocols") == ["TLSv1.2 TLSv1.3"]
        (ciphers,) = directives(text, "ssl_ciphers")
        assert all(re.fullmatch(r"ECDHE-(RSA|ECDSA)-.*(GCM-SHA\d+|POLY1305)", name) for name in ciphers.split(":"))
        assert directives(text, "ssl_ecdh_curve") == ["X25519MLKEM768:X25519:prime256v1:secp384r1"]
        own = rendered("nginx.conf", **tls, nginx_image="nginx:1.29")
        assert directives(own, "ssl_ecdh_curve") == ["X25519:prime256v1:secp384r1"]
        assert directives(text, "ssl_session_tickets") == ["off"]
        assert directives(text, "http2") == ["on"]

    def test_browsers_are_told_to_keep_to_it_on_errors_too(self, tls: dict[str, Any]) -> None:
        text = rendered("nginx.conf", **tls)
        errors = re.findall(r"location @json_error {.*?\n        }", text, flags=re.DOTALL)
        assert len(errors) == 2
        assert all("Strict-Transport-Security" in block for block in errors)


NAMES = ["mlops.example.org", "mlops", "localhost", "127.0.0.1", "10.1.2.3", "::1", "*.example.org"]


class TestCertificate:
    def test_it_is_read_at_each_handshake(self, tls: dict[str, Any]) -> None:
        text = rendered("nginx.conf", **tls)
        assert directives(text, "ssl_certificate") == directives(text, "ssl_certificate_key") == ["$certificate"]
        assert "default /etc/nginx/certificate/nginx.pem;" in text
        assert "/etc/mlops/certificate:/etc/nginx/certificate:ro" in rendered("__nginx_volumes", **tls)
        assert not any("certificate" in volume for volume in rendered("__nginx_volumes"))

    def test_its_files_on_the_controller_are_those_of_the_settings_or_of_the_own_authority(
        self, tls: dict[str, Any]
    ) -> None:
        assert rendered("nginx_tls") == "none"
        assert rendered("nginx_tls", **tls) == "files"
        assert rendered("__nginx_key", **tls) == "tls.key"
        own = {"nginx_tls": "own_ca", "nginx_own_ca": "/srv/ca"}
        assert rendered("__nginx_key", **own) == "/srv/ca/host.example.org.key"
        assert rendered("__nginx_chain", **own) == "/srv/ca/host.example.org.crt"
        assert "ssl_certificate" in rendered("nginx.conf", **own)

    def test_an_acme_server_is_asked_for_dns_names_only(self) -> None:
        assert rendered("__nginx_acme_names", mlops_server_names=NAMES) == ["mlops.example.org"]

    def test_it_sees_its_answer_whoever_may_come_and_nothing_else(self) -> None:
        text = rendered(
            "nginx.conf", nginx_tls="acme", mlops_server_names=NAMES[:3], nginx_allowed_networks=["10.1.0.0/16"],
            __nginx_network={"network": {"IPAM": {"Config": []}}},
        )  # fmt: skip
        challenge, rest = re.findall(r"location (.*?) {(.*?)\n        }", server(text, "80"), flags=re.DOTALL)
        assert challenge[0] == "/.well-known/acme-challenge/"
        assert "$admitted" not in challenge[1]
        assert "$admitted" in rest[1]
        assert "acme" not in server(text, "443") + server(text, "8080")
        assert "/var/lib/mlops/acme-challenge:/etc/nginx/acme:ro" in rendered("__nginx_volumes", nginx_tls="acme")

    def test_what_runs_is_certbot_and_then_the_use_of_what_it_has(self, tls: dict[str, Any]) -> None:
        unit = next(item for item in rendered("__nginx_certificate_files_own", **tls) if "service" in item["path"])
        assert directives_of(unit["content"]) == [
            "/usr/local/lib/mlops/use-certificate /etc/mlops/secrets/nginx_tls_key /etc/mlops/certificate/chain.pem"
        ]
        acme = {"nginx_tls": "acme", "mlops_server_names": NAMES[:1], "nginx_acme_email": "ops@example.org"}
        unit = next(item for item in rendered("__nginx_certificate_files_own", **acme) if "service" in item["path"])
        certbot, use = directives_of(unit["content"])
        assert "--email=ops@example.org" in certbot
        assert certbot.endswith("--domain=mlops.example.org")
        directory = "/var/lib/mlops/acme/live/acme-v02.api.letsencrypt.org"
        assert use.endswith(f" {directory}/privkey.pem {directory}/fullchain.pem")


def directives_of(unit: str) -> list[str]:
    """What a unit runs, each on one line."""
    return re.findall(r"^ExecStart=(.*)", unit.replace("\\\n", ""), flags=re.MULTILINE)


class TestModels:
    MODELS = ({"name": "code-search"}, {"name": "Wine (2)", "replicas": 2}, {"name": "churn"})

    def text(self, **settings: Any) -> str:
        return rendered("nginx.conf", serving_models=list(self.MODELS), **settings)

    def test_each_has_its_path_and_the_first_the_root(self) -> None:
        asked = dict(
            re.findall(r"location =? ?(\S+|\"[^\"]+\") {[^}]*?proxy_pass http://(\S+);", server(self.text(), "8080"))
        )
        assert asked['"/models/Wine (2)/"'] == "serving-wine-2/"
        assert asked['"/models/Wine (2)"'] == "serving-wine-2/model"
        assert asked['"/v2/models/Wine (2)/"'] == "serving-wine-2"
        assert asked['"/models/code-search/"'] == "serving/"
        assert asked["/"] == "serving"

    def test_the_limits_of_one_are_not_those_of_another(self) -> None:
        zones = [zone.split("zone=")[1].split(":")[0] for zone in directives(self.text(), "limit_req_zone")]
        assert zones == ["api", "api-wine-2", "api-churn"]
        used = {zone.split()[0] for zone in directives(server(self.text(), "8080"), "limit_req")}
        assert used == {f"zone={zone}" for zone in zones}

    def test_metrics_of_all_are_hidden_and_unknown_names_are_404(self) -> None:
        api = server(self.text(), "8080")
        for path in ('= "/models/churn/metrics"', "/models/", "/v2/models/"):
            assert f"location {path} {{\n            return 404;" in api

    def test_with_tokens_all_but_health_asks_for_one(self) -> None:
        api = server(self.text(nginx_api_tokens=True), "8080")
        locations = re.findall(r"location ((?:= )?(?:\"[^\"]+\"|/\S*)) {(.*?)\n        }", api, flags=re.DOTALL)
        open_to_all = {path for path, block in locations if "return 401" not in block and "return 404" not in block}
        assert {path for path in open_to_all if "/.model/" not in path} == {"= /health"}
        assert all("internal;" in block for path, block in locations if "/.model/" in path)

    def test_replicas_are_of_one_model(self) -> None:
        upstreams = dict(re.findall(r"upstream (\S+) {(.*?)}", self.text(), flags=re.DOTALL))
        assert re.findall(r"/([\w-]+)\.sock", upstreams["serving-wine-2"]) == ["serving-wine-2", "serving-wine-2_2"]
        assert re.findall(r"/([\w-]+)\.sock", upstreams["serving"]) == ["serving"]


class TestReplicas:
    def test_no_request_that_was_sent_goes_to_another_replica(self) -> None:
        for replicas in (1, 3):
            text = rendered("nginx.conf", serving_replicas=replicas)
            assert directives(text, "proxy_next_upstream") == ["error timeout"]

    def test_what_one_answers_503_is_asked_of_all_others(self) -> None:
        text = rendered("nginx.conf", serving_replicas=3)
        others = dict(re.findall(r"upstream without_(\w+) {(.*?)}", text, flags=re.DOTALL))
        assert set(others) == {"serving", "serving_2", "serving_3"}
        for replica, block in others.items():
            assert set(re.findall(r"/(\w+)\.sock", block)) == others.keys() - {replica}
        assert "@elsewhere" not in rendered("nginx.conf", serving_replicas=1)
