"""What is refused before anything is changed, and with which words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import preflight
import pytest
import yaml
from conftest import load_plugin
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

settings = load_plugin("action/preflight.py")

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
PROFILES = {"dev": ["mlflow"], "train": ["training"], "serve": ["mlflow", "serving"], "full": ["mlflow", "serving"]}
SERVICE_GROUPS = {"serving": ["serving"], "exporter": ["serving", "monitoring"]}
SPECS = {
    "web": {
        "web_port": {"type": "int"},
        "web_level": {"type": "str", "choices": ["low", "high"]},
        "web_certificate": {"type": "path"},
        "web_password": {"type": "int", "no_log": True},
    }
}

EXPOSED = {
    "nginx_exposed": True,
    "nginx_bind_address": "0.0.0.0",
    "mlflow_login": True,
    "nginx_tls_certificate": "tls.crt",
    "nginx_tls_key": "tls.key",
    "nginx_allowed_networks": ["10.1.0.0/16", "192.168.7.9", "2001:db8::/32"],
    "nginx_api_tokens": True,
    "nginx_api_client_ca": "",
}
CLOSED = {"nginx_exposed": False, "nginx_bind_address": "127.0.0.1", "nginx_allowed_networks": []}

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
"""


def self_signed(password: str = "") -> tuple[str, str]:
    """A certificate and its key, encrypted with a password unless that is empty."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return signed.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def test_signatures_need_a_login() -> None:
    assert settings.unguarded_signatures({}) == []
    assert settings.unguarded_signatures({"serving_require_signature": True, "mlflow_login": "yes"}) == []
    (complaint,) = settings.unguarded_signatures({"serving_require_signature": "yes"})
    assert complaint.startswith("serving_require_signature: without a login")


DIGEST = f"sha256:{'a' * 64}"


class TestImages:
    def test_a_list_of_components_says_of_which_image_it_is(self, tmp_path: Path) -> None:
        assert preflight.listed_images(tmp_path / "none") == []
        (tmp_path / "web.cdx.json").write_text('{"metadata": {"component": {"name": "web:2"}}}')
        (tmp_path / "holes.json").write_text("{}")
        # As a host that lost its power leaves it: it is made anew.
        (tmp_path / "cut.cdx.json").write_text("")
        assert preflight.listed_images(tmp_path) == ["web=web:2"]

    def test_one_of_a_registry_needs_a_digest(self) -> None:
        (complaint,) = settings.unsure_images({"web_image": "registry.example:5000/web:2"}, ["web"])
        assert complaint.startswith("web_image: 'registry.example:5000/web:2' has no digest")
        assert "write registry.example:5000/web:2@sha256:" in complaint
        assert "docker pull registry.example:5000/web:2" in complaint

    @pytest.mark.parametrize("digest", ["sha256:abc", "sha256:", f"md5:{'a' * 64}", f"{DIGEST}0"])
    def test_a_digest_that_is_none_is_refused(self, digest: str) -> None:
        assert settings.unsure_images({"web_image": f"web:2@{digest}"}, ["web"]) != []

    @pytest.mark.parametrize("image", [f"web@{DIGEST}", f"registry.example:5000/team/web:2@{DIGEST}", ""])
    def test_one_with_a_digest_and_none_are_accepted(self, image: str) -> None:
        assert settings.unsure_images({"web_image": image}, ["web"]) == []

    def test_a_registry_has_to_be_told_which_image(self) -> None:
        (complaint,) = settings.unsure_images({"web_image_source": "registry"}, ["web"])
        assert complaint.startswith("web_image: a registry is to provide the image")

    def test_archives_have_a_directory(self) -> None:
        (complaint,) = settings.unsure_images({"mlops_image_source": "archive", "mlops_image_archives": ""}, ["web"])
        assert complaint == "mlops_image_archives: name the directory on the controller that has web.tar."

    def test_services_that_are_not_of_this_run_are_not_looked_at(self) -> None:
        assert settings.unsure_images({"web_image": "web:2"}, ["other"]) == []

    def archived(self, directory: Path) -> list[str]:
        values = {"mlops_image_source": "archive", "mlops_image_archives": str(directory), "web_image": "web:2"}
        complaints: list[str] = settings.unsure_images({**values, "web_image_source": "archive"}, ["web", "other"])
        return complaints

    def test_archives_need_a_file_of_checksums(self, tmp_path: Path) -> None:
        (complaint,) = self.archived(tmp_path)
        assert complaint.startswith(f"mlops_image_archives: {tmp_path}/SHA256SUMS is missing")
        assert "sha256sum *.tar > SHA256SUMS" in complaint

    def test_each_archive_needs_a_line_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "SHA256SUMS").write_text(f"{'a' * 64}  web.tar\nnothing  other.tar\n")
        (complaint,) = self.archived(tmp_path)
        assert "SHA256SUMS has no checksum of other.tar" in complaint

    def test_archives_with_checksums_are_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "SHA256SUMS").write_text(f"{'a' * 64}  web.tar\n{'b' * 64} *other.tar\n")
        assert self.archived(tmp_path) == []


class TestPasswords:
    @pytest.mark.parametrize("value", ["admin", "Password123!", "change-me", "123456", "postgres", "mlflow_password"])
    def test_one_that_everybody_tries_is_refused_by_the_name_of_the_setting_only(self, value: str) -> None:
        (complaint,) = settings.default_passwords({"web_password": value, "web_level": value})
        assert complaint.startswith("web_password: it is a well-known default")
        assert value not in complaint

    @pytest.mark.parametrize("value", ["", "correct horse battery staple", "Xq3-admin-7vT"])
    def test_none_and_a_good_one_are_accepted(self, value: str) -> None:
        assert settings.default_passwords({"web_password": value}) == []


class TestLogins:
    @pytest.mark.parametrize("name", ["grafana_admin_password", "postgres_password"])
    @pytest.mark.parametrize("value", [" led by a space", "two\nlines", "nul\0nul", "carriage return\r"])
    def test_a_password_that_would_not_arrive_whole_is_refused_and_not_shown(self, name: str, value: str) -> None:
        (complaint,) = settings.unfit_logins({name: value})
        assert complaint.startswith(f"{name}: it begins or ends with a space, or holds a line break")
        assert value not in complaint

    def test_a_password_that_grafana_refuses_is_refused_by_the_name_of_its_setting(self) -> None:
        (complaint,) = settings.unfit_logins({"grafana_admin_password": "xyz"})
        assert complaint.startswith("grafana_admin_password: Grafana refuses a password of fewer than 4 characters")
        assert "xyz" not in complaint

    @pytest.mark.parametrize("value", ["", "with space, 'quotes', \\ and :", "naïve-☃", "$__file{/x} %(x)s ${HOME}"])
    def test_a_good_password_is_accepted(self, value: str) -> None:
        assert settings.unfit_logins({"grafana_admin_password": value, "postgres_password": value}) == []

    @pytest.mark.parametrize("user", ["admin", "grace.hopper@example.org"])
    def test_a_login_of_plain_characters_is_accepted(self, user: str) -> None:
        assert settings.unfit_logins({"grafana_admin_user": user}) == []

    @pytest.mark.parametrize("user", ["", "a:b", 'a"b', "a b", "-a"])
    def test_a_login_that_grafana_could_not_be_told_is_refused(self, user: str) -> None:
        (complaint,) = settings.unfit_logins({"grafana_admin_user": user})
        assert complaint.startswith(f"grafana_admin_user: {user!r} is refused")


class TestNetwork:
    """Closed by default, and refused when half open."""

    @pytest.mark.parametrize("values", [{}, CLOSED, EXPOSED])
    def test_closed_is_accepted_and_so_is_open_with_all_that_it_takes(self, values: dict[str, object]) -> None:
        assert settings.half_open(values) == []
        assert settings.open_addresses(values, is_local=False) == []

    def test_a_half_open_one_is_refused_with_everything_that_is_missing_at_once(self) -> None:
        (complaint,) = settings.half_open({"nginx_exposed": "yes"})
        assert complaint.startswith("nginx_exposed: it opens MLflow and the model API to a network, and lacks ")
        for name in ("mlflow_login", "nginx_tls_certificate", "nginx_allowed_networks", "nginx_api_tokens"):
            assert name in complaint
        assert "SSH tunnel" in complaint

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("mlflow_login", False),
            ("nginx_tls_certificate", ""),
            ("nginx_tls_key", ""),
            ("nginx_allowed_networks", []),
            ("nginx_api_tokens", False),
        ],
    )
    def test_each_thing_that_is_missing_is_named_alone(self, name: str, value: object) -> None:
        (complaint,) = settings.half_open(EXPOSED | {name: value})
        assert name in complaint
        assert ";" not in complaint

    @pytest.mark.parametrize("name", ["nginx_tls_certificate", "nginx_tls_key"])
    def test_a_certificate_comes_with_its_key(self, name: str) -> None:
        (complaint,) = settings.half_open({name: "tls.pem"})
        assert complaint.startswith("nginx_tls_certificate, nginx_tls_key: one without the other")

    @pytest.mark.parametrize("way", ["acme", "own_ca"])
    def test_a_certificate_may_come_from_elsewhere(self, way: str) -> None:
        values = EXPOSED | {"nginx_tls": way, "nginx_tls_certificate": "", "nginx_tls_key": ""}
        values |= {"mlops_server_names": ["mlops.example.org", "localhost"]}
        assert settings.half_open(values) == settings.unfit_certificate(values) == []
        (complaint,) = settings.half_open(values | {"nginx_tls": "none"})
        assert "nginx_tls: acme or own_ca" in complaint

    def test_files_are_needed_where_they_are_named_as_the_way(self) -> None:
        (complaint,) = settings.half_open({"nginx_tls": "files"})
        assert complaint.startswith("nginx_tls: 'files' needs nginx_tls_certificate and nginx_tls_key")

    @pytest.mark.parametrize("way", ["none", "acme", "own_ca"])
    def test_two_ways_at_once_are_refused(self, way: str) -> None:
        complaints = settings.unfit_certificate(
            EXPOSED | {"nginx_tls": way, "mlops_server_names": ["mlops.example.org"]}
        )
        assert [complaint.partition(":")[0] for complaint in complaints] == ["nginx_tls"]
        assert "contradict each other" in complaints[0]

    def test_an_acme_server_needs_a_dns_name_each_written_out_and_port_80(self) -> None:
        values = {
            "nginx_tls": "acme",
            "nginx_bind_address": "127.0.0.1",
            "mlops_server_names": ["localhost", "10.1.2.3"],
        }
        no_name, closed = settings.unfit_certificate(values)
        assert no_name.startswith("mlops_server_names: an ACME server gives certificates for DNS names")
        assert closed.startswith("nginx_tls: 'acme' with nginx_bind_address '127.0.0.1'")
        (wildcard,) = settings.unfit_certificate(
            values | {"nginx_bind_address": "0.0.0.0", "mlops_server_names": ["mlops.example.org", "*.example.org"]}
        )
        assert wildcard.startswith("mlops_server_names: '*.example.org': no certificate for all names of a domain")

    def test_a_pair_is_looked_at_before_anything_is_changed(self) -> None:
        pairs = [self_signed(), self_signed()]
        assert settings.unfit_pair(*pairs[0]) == []
        for certificate, key, said in (
            (pairs[0][0], pairs[1][1], "nginx_tls_key: it is not the key of nginx_tls_certificate"),
            ("no certificate", pairs[0][1], "nginx_tls_certificate: the file does not begin with a certificate"),
            (pairs[0][0], "no key", "nginx_tls_key: the file holds no key in PEM format"),
            (
                pairs[0][0],
                self_signed("a password")[1],
                "nginx_tls_key: the file holds no key in PEM format that opens",
            ),
        ):
            (complaint,) = settings.unfit_pair(certificate, key)
            assert complaint.startswith(said)

    def test_the_whole_world_is_written_out(self) -> None:
        assert settings.half_open(EXPOSED | {"nginx_allowed_networks": ["0.0.0.0/0"]}) == []

    @pytest.mark.parametrize("network", ["10.1.0.1/16", "example.org", "10.1.0.0/33", "all"])
    def test_what_is_no_network_is_refused_with_one_that_is(self, network: str) -> None:
        (complaint,) = settings.half_open({"nginx_allowed_networks": [network]})
        assert complaint.startswith(f"nginx_allowed_networks: {network!r} is no network: ")
        assert "10.1.0.0/16" in complaint

    def test_certificates_of_clients_take_the_place_of_tokens(self) -> None:
        values = EXPOSED | {"nginx_api_client_ca": "ca.pem"}
        (complaint,) = settings.half_open(values)
        assert complaint.startswith("nginx_api_client_ca: clients of the model API show a certificate or a token")
        assert settings.half_open(values | {"nginx_api_tokens": False}) == []

    def test_certificates_of_clients_take_tls(self) -> None:
        (complaint,) = settings.half_open({"nginx_api_client_ca": "ca.pem"})
        assert complaint.startswith("nginx_api_client_ca: clients show a certificate over TLS only")

    @pytest.mark.parametrize("name", settings.BIND_ADDRESSES)
    def test_an_address_that_is_not_loopback_is_refused_with_the_way_out(self, name: str) -> None:
        (complaint,) = settings.open_addresses({name: "0.0.0.0"}, is_local=False)
        assert complaint.startswith(f"{name}: '0.0.0.0' would open ports to a network")
        assert "SSH tunnel" in complaint
        assert "nginx_exposed" in complaint

    def test_only_nginx_is_opened(self) -> None:
        (complaint,) = settings.open_addresses(dict.fromkeys(settings.BIND_ADDRESSES, "10.1.2.3"), is_local=False)
        assert complaint.startswith(", ".join(settings.BIND_ADDRESSES))
        opened = {"nginx_exposed": True, "nginx_bind_address": "10.1.2.3"}
        assert settings.open_addresses(opened, is_local=False) == []
        (complaint,) = settings.open_addresses({**opened, "mlflow_bind_address": "10.1.2.3"}, is_local=False)
        assert complaint.startswith("mlflow_bind_address: ")

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "[::1]"])
    def test_every_loopback_address_is_accepted(self, address: str) -> None:
        assert settings.open_addresses({"mlflow_bind_address": address}, is_local=False) == []

    def test_a_local_target_publishes_on_every_address_of_its_own(self) -> None:
        values = dict.fromkeys(settings.BIND_ADDRESSES, "0.0.0.0")
        assert settings.open_addresses(values, is_local=True) == []
        assert settings.half_open({"nginx_exposed": True}) != [], "but half open is refused there, too"

    @pytest.mark.parametrize(
        "folder", ["inventories/local", "molecule/default/inventory", "molecule/production/inventory"]
    )
    def test_the_hosts_that_are_made_on_this_machine_are_known_as_such(self, folder: str) -> None:
        hosts = yaml.safe_load((ROOT / folder / "hosts.yml").read_text())["all"]["hosts"]
        name = yaml.safe_load((ROOT / folder / "group_vars" / "all.yml").read_text())["local_host_name"]
        assert list(hosts) == [name]

    def test_the_example_opens_nothing(self) -> None:
        example = yaml.safe_load((ROOT / "inventories" / "production" / "group_vars" / "mlops.yml").read_text())
        assert [name for name in example if "address" in name or "exposed" in name] == []

    def test_what_is_no_address_is_refused_by_name(self) -> None:
        (complaint,) = settings.open_addresses({"grafana_bind_address": "everywhere"}, is_local=True)
        assert complaint.startswith("grafana_bind_address: 'everywhere' is no address")


class TestAccounts:
    @pytest.mark.parametrize(
        ("user", "reason"),
        [
            ({"name": "a:b", "password": "long enough, this"}, "give a name of letters"),
            ({"name": "admin", "password": "long enough, this"}, "is the appliance's own"),
            ({"name": "grace", "password": "short"}, "fewer than 12 characters"),
            ({"name": "grace", "password": "Password1234!"}, "well-known default"),
            ({"name": "grace", "password": "naïve-naïve-naïve"}, "plain ASCII"),
        ],
    )
    def test_one_that_cannot_be_is_refused_without_its_password(self, user: dict[str, str], reason: str) -> None:
        (complaint,) = settings.unfit_accounts({"mlflow_users": [user]})
        assert complaint.startswith(f"mlflow_users: account {user['name']!r}")
        assert reason in complaint
        assert user["password"] not in complaint

    def test_the_appliances_own_are_those_that_the_role_makes(self) -> None:
        services = yaml.safe_load((ROLES / "mlflow" / "vars" / "main.yml").read_text())["__mlflow_services"]
        assert {"admin", *(service["name"] for service in services)} == settings.MLFLOW_OWN_ACCOUNTS

    def test_one_that_is_there_twice_is_refused(self) -> None:
        user = {"name": "grace", "password": "long enough, this"}
        (complaint,) = settings.unfit_accounts({"mlflow_users": [user, user]})
        assert "is there twice" in complaint

    def test_the_administrators_password_is_held_to_the_same(self) -> None:
        (complaint,) = settings.unfit_accounts({"mlflow_admin_password": "short"})
        assert complaint.startswith("mlflow_admin_password: MLflow refuses")
        assert settings.unfit_accounts({"mlflow_admin_password": "", "mlflow_users": []}) == []

    def test_every_account_of_the_appliance_is_its_own(self) -> None:
        made = yaml.safe_load((ROLES / "mlflow" / "vars" / "main.yml").read_text())["__mlflow_services"]
        assert {"admin", *(account["name"] for account in made)} == settings.MLFLOW_OWN_ACCOUNTS


class TestProject:
    WINE = str(ROOT / "app" / "examples" / "wine")

    SEARCH: ClassVar[dict[str, object]] = {
        "training_project": WINE,
        "training_search": {"metric": "rmse", "parameters": {"regularization": {"low": 0.1, "high": 10, "log": True}}},
    }

    @staticmethod
    def complaints(**values: object) -> list[str]:
        return list(settings.wrong_project(values, ROOT / "app"))

    def test_the_examples_are_run_as_their_settings_say(self) -> None:
        for file in (ROOT / "app" / "examples").glob("*/settings.yml"):
            values = yaml.safe_load(file.read_text())
            assert self.complaints(**values | {"training_project": str(file.parent)}) == []

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"training_project": "/no/such/place"}, "training_project: /no/such/place is no directory"),
            (
                {"training_project": WINE, "training_parameters": {"seeed": 1}},
                "no parameter 'seeed', did you mean 'seed'",
            ),
            (
                {"training_project": WINE, "training_parameters": {"regularization": "much"}},
                "regularization is 'much': the project wants a number",
            ),
            ({"training_project": WINE, "training_entry_point": "mian"}, "training_entry_point: the project has no"),
            ({"training_project": WINE, "training_gate": {"metric": "rmse"}}, "training_gate: {'metric': 'rmse'}"),
            (
                {"training_project": WINE, "training_gate": {"metric": "rmse", "direction": "lower"}},
                "training_gate: direction 'lower'",
            ),
            ({"training_project": "https://git.example.org/wine"}, "names no revision: write URL#REVISION"),
            ({"training_project": "git@git.example.org:wine"}, "names no revision: write URL#REVISION"),
            ({"training_project": "https://me:pass@git.example.org/wine#v1"}, "its URL holds a password"),
            (SEARCH | {"training_search": {"metric": "rmse"}}, "training_search.parameters must name what is varied"),
            (SEARCH | {"training_parameters": {"regularization": 1}}, "both set regularization: leave one out"),
            (
                {
                    "training_project": WINE,
                    "training_search": {"metric": "rmse", "parameters": {"a": {"low": 2, "high": 1}}},
                },
                "training_search.parameters.a.low is 2, more than its high, 1",
            ),
            (
                {
                    "training_project": WINE,
                    "training_search": {"metric": "rmse", "parameters": {"regul": {"choices": [1]}}},
                },
                "no parameter 'regul'",
            ),
            ({"training_search": {"metric": "rmse"}}, "training_search: it is a project's"),
            ({"training_parameters": {"seed": 1}}, "training_parameters: it is a project's"),
            ({"training_gate": {"metric": "rmse", "direction": "minimize"}}, "training_gate: it is a project's"),
        ],
    )
    def test_what_cannot_be_run_is_refused(self, values: dict[str, object], words: str) -> None:
        (complaint,) = self.complaints(**values)
        assert words in complaint

    def test_no_project_and_a_revision_are_in_order(self) -> None:
        assert self.complaints(training_project="", training_parameters={}, training_gate={}) == []
        assert self.complaints(**self.SEARCH) == []
        assert self.complaints(training_project="git@git.example.org:wine#v1.0") == []
        assert self.complaints(training_project="ssh://git@git.example.org/wine#main") == []


class TestRequest:
    def test_a_tag_that_is_no_profile_is_refused_with_the_valid_ones(self) -> None:
        (complaint,) = settings.unknown_tags(["sreve"], PROFILES)
        assert (
            complaint
            == "tag 'sreve': no such profile, did you mean 'serve'; the profiles are: dev, train, serve, full."
        )

    @pytest.mark.parametrize("tag", ["all", "serve", "train"])
    def test_profiles_and_tags_of_ansible_itself_are_accepted(self, tag: str) -> None:
        assert settings.unknown_tags([tag], PROFILES) == []

    def test_a_profile_whose_group_is_empty_is_refused_rather_than_a_silent_no_op(self) -> None:
        (complaint,) = settings.missing_groups(["serve"], {"mlops": ["a"], "serving": []}, {"serve": "serving"})
        assert "no host of the inventory is in group 'serving'" in complaint
        assert "mlops" in complaint

    @pytest.mark.parametrize(
        ("tags", "groups", "services"),
        [
            (["all"], ["mlops", "serving"], ["mlflow", "serving"]),
            (["all"], ["mlops"], ["mlflow"]),
            (["full"], ["mlops"], ["mlflow"]),
            (["serve"], ["mlops", "serving"], ["mlflow", "serving"]),
            (["train"], ["mlops", "serving"], ["training"]),
            (["dev", "train"], ["mlops", "serving"], ["mlflow", "training"]),
        ],
    )
    def test_groups_say_what_a_host_has_and_tags_what_the_run_does(
        self, tags: list[str], groups: list[str], services: list[str]
    ) -> None:
        assert settings.wanted_services(tags, groups, PROFILES, SERVICE_GROUPS) == services

    @pytest.mark.parametrize(
        ("groups", "services"),
        [(["mlops", "serving"], []), (["mlops", "monitoring"], []), (["mlops", "serving", "monitoring"], ["exporter"])],
    )
    def test_a_service_needs_all_of_its_groups(self, groups: list[str], services: list[str]) -> None:
        assert settings.wanted_services(["full"], groups, {"full": ["exporter"]}, SERVICE_GROUPS) == services


class TestSettings:
    def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(self) -> None:
        (complaint,) = settings.unknown_settings(["web_prot", "other"], SPECS, [])
        assert complaint.startswith("web_prot: no such setting, did you mean 'web_port'")

    def test_facts_that_the_appliance_sets_itself_are_no_misspelling(self) -> None:
        assert settings.unknown_settings(["web_images"], SPECS, ["web_images"]) == []

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [("web_port", "eighty", "cannot be converted to an int"), ("web_level", "middling", "low, high")],
    )
    def test_a_wrong_value_is_named_with_the_reason(self, name: str, value: str, reason: str) -> None:
        (complaint,) = settings.wrong_values({name: value}, SPECS)
        assert complaint.startswith(f"{name}: '{value}' is refused: ")
        assert reason in complaint

    def test_a_secret_value_is_never_repeated(self) -> None:
        (complaint,) = settings.wrong_values({"web_password": "hunter2"}, SPECS)
        assert complaint.startswith("web_password: is refused")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        (complaint,) = settings.wrong_values({"web_certificate": str(tmp_path / "ca.pem")}, SPECS)
        assert complaint.startswith("web_certificate: ")
        assert "is no file on the controller" in complaint

    def test_right_values_pass(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").touch()
        values = {"web_port": 80, "web_level": "low", "web_certificate": str(tmp_path / "ca.pem")}
        assert settings.wrong_values(values, SPECS) == []

    def test_two_settings_cannot_claim_one_port(self) -> None:
        (complaint,) = settings.port_clashes({"a_port": 80, "b_port": 80})
        assert complaint == "b_port: port 80 is already claimed by a_port: change one of them."

    def test_a_port_out_of_range_is_refused(self) -> None:
        (complaint,) = settings.port_clashes({"a_port": 70000})
        assert complaint.startswith("a_port: 70000 is no port")


class TestHost:
    def test_listening_sockets_count_and_connections_do_not(self) -> None:
        assert preflight.listening_ports([TCP]) == {8080}

    def test_ports_of_running_containers_are_known(self) -> None:
        document = (
            '[{"HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "81/tcp": null}}}]'
        )
        assert preflight.published_ports(document) == {8080}

    @pytest.mark.parametrize("release", ['ID=debian\nVERSION_ID="13"\n', 'ID=debian\nVERSION_ID="14"\n'])
    def test_debian_13_and_newer_are_supported(self, release: str) -> None:
        assert preflight.wrong_system(release) == []

    @pytest.mark.parametrize("release", ['ID=debian\nVERSION_ID="12"\n', 'ID=ubuntu\nVERSION_ID="24.04"\n'])
    def test_other_systems_are_refused_by_name(self, release: str) -> None:
        (complaint,) = preflight.wrong_system(release)
        assert "Debian 13" in complaint

    def test_a_full_disk_is_named_with_its_setting_even_for_a_path_that_is_not_there_yet(self, tmp_path: Path) -> None:
        (complaint,) = preflight.full_disks({str(tmp_path / "not" / "yet"): 10**9})
        assert complaint.startswith("preflight_disk_free_mb: ")
        assert preflight.full_disks({str(tmp_path): 0}) == []

    def test_a_time_that_systemd_does_not_understand_is_named_with_its_setting_and_the_reason(self) -> None:
        def systemd(command: list[str]) -> tuple[int, str, str]:
            assert command[:3] == ["systemd-analyze", "calendar", "--"]
            return (0, "", "") if command[3] == "daily" else (1, "", "Failed to parse calendar specification")

        calendars = {"backup_schedule": "daily", "training_schedule": "nightly"}
        (complaint,) = preflight.wrong_calendars(calendars, systemd)
        assert complaint.startswith("training_schedule: 'nightly' is no time to systemd: Failed to parse")
        assert "'*-*-* 03:00:00'" in complaint


class TestModels:
    """Which models a host serves that its inventory does not name."""

    def test_those_with_the_alias_on_every_page_of_the_registry(self) -> None:
        class Registry:
            """Answers as MLflow does."""

            PAGES: ClassVar = {
                "": [("wine", "champion"), ("draft", "challenger")],
                "2": [("churn", "champion")],
            }

            def ask(self, _method: str, _call: str, **arguments: Any) -> dict[str, Any]:
                models = [
                    {"name": name, "aliases": [{"alias": alias, "version": "1"}]}
                    for name, alias in self.PAGES[arguments["page_token"]]
                ]
                page = {"registered_models": [*models, {"name": "new"}]}
                return page if arguments["page_token"] else {**page, "next_page_token": "2"}

        assert preflight.registered_models(Registry(), "champion") == ["churn", "wine"]

    def test_those_that_are_served_when_nobody_can_be_asked(self) -> None:
        create = 'ExecStartPre=/usr/bin/docker create "--env=MODEL_NAME={}" --env=MODEL_URI=models:/x image:1\n'
        units = {
            "mlops-serving": create.format("code-search"),
            "mlops-serving-model-b": create.format("Model B"),
            "mlops-serving-model-b_2": create.format("Model B"),
            "mlops-mlflow": "ExecStartPre=/usr/bin/docker create image:1\n",
        }
        assert preflight.served_models(units) == ["Model B", "code-search"]

    def test_one_that_is_listed_is_served_as_listed_and_the_others_follow(self) -> None:
        servers = load_plugin("filter/models.py").model_servers(
            [{"name": "wine", "version": "3"}],
            "models:/x@champion",
            {"version": "@champion", "replicas": 1},
            ["churn", "wine"],
        )
        assert [(server["uri"], server["service"]) for server in servers] == [
            ("models:/wine/3", "serving"),
            ("models:/churn@champion", "serving-churn"),
        ]


class TestStore:
    """No run begins on another database than the one with the data, unasked."""

    @pytest.mark.parametrize(
        ("present", "wanted", "change", "refused"),
        [
            ("", "postgres", "refuse", False),
            ("sqlite", "sqlite", "refuse", False),
            ("sqlite", "postgres", "refuse", True),
            ("sqlite", "postgres", "migrate", False),
            ("postgres", "sqlite", "refuse", True),
            ("postgres", "sqlite", "migrate", True),
            ("postgres", "sqlite", "abandon", False),
            ("postgresql://u@a/m", "postgresql://u@b/m", "refuse", True),
            ("sqlite", "postgresql://u@b/m", "migrate", True),
        ],
    )
    def test_a_switch_is_refused_unless_it_is_asked_for(
        self, present: str, wanted: str, change: str, refused: bool
    ) -> None:
        assert bool(preflight.refused_store(present, wanted, change)) is refused

    def test_the_refusal_names_the_setting_and_every_way_out(self) -> None:
        (complaint,) = preflight.refused_store("sqlite", "postgres", "refuse")
        assert complaint.startswith("mlflow_store_change: the runs and models of this host are in SQLite")
        assert "playbooks/migrate_to_postgres.yml" in complaint
        assert "mlflow_store_change=abandon" in complaint

    def test_a_run_that_would_leave_services_cut_off_is_refused(self) -> None:
        units = {
            "mlops-mlflow": "ExecStartPre=/usr/bin/docker create --name=mlops-mlflow",
            "mlops-nginx": "ExecStartPre=/usr/bin/docker create --name=mlops-nginx --mac-address=02:6d:6c:00:00:01",
            "mlops-health": "ExecStart=/usr/local/lib/mlops/restart-unhealthy",
        }
        assert preflight.unreachable(units, ["nginx", "serving"]) == []
        (complaint,) = preflight.unreachable(units, ["mlflow", "nginx"])
        assert complaint.startswith("tags: ")
        assert "a former version made mlflow, which this run leaves alone" in complaint
        assert "`make site`" in complaint

    def test_a_host_without_memory_has_its_data_in_sqlite(self, tmp_path: Path) -> None:
        assert preflight.present_store("", tmp_path, None) == "", "a volume without a database"
        (tmp_path / "mlflow.db").touch()
        assert preflight.present_store("", tmp_path, None) == "sqlite"

    def test_data_that_went_with_their_volume_hold_nobody_back(self, tmp_path: Path) -> None:
        assert preflight.present_store("sqlite", None, None) == ""
        assert preflight.present_store("postgres", None, None) == ""
        (tmp_path / "data").mkdir()
        assert preflight.present_store("postgres", None, tmp_path) == "postgres"
        assert preflight.present_store("postgresql://u@a/m", None, None) == "postgresql://u@a/m"

    @pytest.mark.parametrize(
        "uri",
        [
            "postgresql://u@db.example.org/m?sslmode=require",
            "mysql+pymysql://u@db.example.org/m?ssl_ca=/etc/ssl/certs/ca-certificates.crt",
        ],
    )
    def test_an_external_database_is_one_that_mlflow_has_a_driver_for(self, uri: str) -> None:
        assert settings.wrong_store({"wanted": uri}, ["mlops"]) == []
        (complaint,) = settings.wrong_store({"wanted": uri}, ["mlops", "postgres"])
        assert "two databases" in complaint

    @pytest.mark.parametrize(
        "uri",
        [
            "postgresql://u:hidden@db.example.org/m",
            "postgresql://u@db.example.org/m?password=hidden",
            "mysql+pymysql://u:hidden@db.example.org/m",
        ],
    )
    def test_a_password_in_the_uri_is_refused_and_not_shown(self, uri: str) -> None:
        (complaint,) = settings.wrong_store({"wanted": uri}, ["mlops"])
        assert "move the password to mlflow_backend_store_password" in complaint
        assert "hidden" not in complaint

    @pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
    def test_a_mysql_without_its_driver_is_refused_with_how_to_write_it(self, scheme: str) -> None:
        (complaint,) = settings.wrong_store({"wanted": f"{scheme}://u@db.example.org/m"}, ["mlops"])
        assert complaint.startswith(f"mlflow_backend_store_uri: {scheme}:// names no driver: write mysql+pymysql://")

    @pytest.mark.parametrize("uri", ["mssql://u@db.example.org/m", "mysql+mysqldb://u@db.example.org/m", "database"])
    def test_other_databases_are_refused_with_those_that_work(self, uri: str) -> None:
        (complaint,) = settings.wrong_store({"wanted": uri}, ["mlops"])
        assert complaint.startswith("mlflow_backend_store_uri: give the URI of a PostgreSQL")
        assert "mysql+pymysql://" in complaint

    @pytest.mark.parametrize("store", ["sqlite", "postgres"])
    def test_the_appliances_own_databases_are_right(self, store: str) -> None:
        assert settings.wrong_store({"wanted": store}, ["mlops", "postgres"]) == []

    @pytest.mark.parametrize("uri", ["models:/wine@champion", "models:/wine/3", "models:/wine/latest"])
    def test_a_model_is_asked_for_as_mlflow_writes_it(self, uri: str) -> None:
        assert settings.wrong_model_uri(uri) == []

    @pytest.mark.parametrize("uri", ["wine", "models:/wine", "models:/wine@", "runs:/0123/model", "models:/wine/3/x"])
    def test_what_is_no_model_is_refused_with_what_to_give(self, uri: str) -> None:
        (complaint,) = settings.wrong_model_uri(uri)
        assert complaint.startswith(f"serving_model_uri: {uri!r} is no URI of a registered model: give models:/")

    def test_a_stage_that_mlflow_has_dropped_is_refused_by_name(self) -> None:
        (complaint,) = settings.wrong_model_uri("models:/wine/Production")
        assert complaint.startswith("serving_model_uri: 'Production' is no version, and MLflow has no stages any more")

    def test_models_are_served_side_by_side(self) -> None:
        models = [{"name": "wine", "version": "@champion"}, {"name": "Code Search (2)", "version": 3}, {"name": "c"}]
        assert settings.wrong_models(models) == []
        assert settings.wrong_models([]) == []

    @pytest.mark.parametrize(
        ("models", "complaint"),
        [
            ([{"name": "a b"}, {"name": "A_B"}], "'A_B' and 'a b' would have the same unit"),
            ([{"name": "wine"}, {"name": "wine", "version": 2}], "'wine' and 'wine' would have the same unit"),
            ([{"name": "wine/x"}], "'wine/x' cannot be served beside others"),
            ([{"name": '{"};'}], "cannot be served beside others"),
            ([{"name": "__"}], "'__' cannot be served beside others"),
            ([{"name": "wine", "version": "Production"}], "version 'Production' of 'wine': give"),
            ([{"name": "wine", "memory": "lots"}], "memory 'lots' of 'wine': give a size"),
            ([{"name": "wine", "replicas": 0}], "replicas 0 of 'wine': give a number above 0"),
        ],
    )
    def test_models_that_cannot_be_are_refused_with_what_to_do(
        self, models: list[dict[str, Any]], complaint: str
    ) -> None:
        (said,) = settings.wrong_models(models)
        assert said.startswith("serving_models: ")
        assert complaint in said

    def test_an_unknown_key_of_a_model_is_refused(self) -> None:
        specs = settings.role_options(ROLES)
        (said,) = settings.wrong_values({"serving_models": [{"name": "wine", "worker": 2}]}, specs)
        assert "serving_models" in said
        assert "worker" in said

    def test_artifacts_are_kept_where_they_outlive_the_container(self) -> None:
        (complaint,) = settings.wrong_artifacts("/srv/artifacts", "", own_image=True)
        assert "mlflow_artifacts_destination: '/srv/artifacts' is no place that outlives the container" in complaint

    @pytest.mark.parametrize(
        ("destination", "credentials"),
        [
            (settings.LOCAL_ARTIFACTS, ""),
            ("s3://bucket", ""),
            ("s3://bucket/path", "[default]\naws_access_key_id = key%\n"),
            ("gs://bucket/path", ""),
            ("gs://bucket/path", '{"type": "service_account"}'),
            ("wasbs://c@account.blob.core.windows.net/path", "AccountName=account;AccountKey=a2V5"),
            ("wasbs://c@account.blob.core.windows.net", "BlobEndpoint=http://a;SharedAccessSignature=sig"),
        ],
    )
    def test_artifacts_are_kept_in_the_object_stores_that_mlflow_has_a_client_for(
        self, destination: str, credentials: str
    ) -> None:
        assert settings.wrong_artifacts(destination, credentials, own_image=False) == []

    @pytest.mark.parametrize("destination", ["hdfs://host/path", "abfss://c@a.dfs.core.windows.net/p", "file:///srv"])
    def test_another_object_store_needs_an_image_of_ones_own(self, destination: str) -> None:
        (complaint,) = settings.wrong_artifacts(destination, "", own_image=False)
        assert complaint.startswith(f"mlflow_artifacts_destination: {destination!r}: MLflow's image has no client for ")
        for scheme in ("s3://", "gs://", "wasbs://"):
            assert scheme in complaint
        assert settings.wrong_artifacts(destination, "", own_image=True) == []

    @pytest.mark.parametrize("destination", ["s3:/bucket", "gs:///path", "wasbs://container/path"])
    def test_an_object_store_without_its_bucket_is_refused_with_how_to_write_it(self, destination: str) -> None:
        (complaint,) = settings.wrong_artifacts(destination, "", own_image=False)
        assert complaint.startswith(f"mlflow_artifacts_destination: {destination!r} is not of the form ")

    @pytest.mark.parametrize(
        ("destination", "credentials"),
        [
            ("s3://bucket/path", '{"type": "hidden"}'),
            ("s3://bucket/path", "AccountName=account;AccountKey=hidden"),
            ("gs://bucket/path", "[default]\naws_access_key_id = hidden\n"),
            ("gs://bucket/path", "/path/to/hidden.json"),
            ("gs://bucket/path", "5"),
            ("wasbs://c@account.blob.core.windows.net/path", ""),
            ("wasbs://c@account.blob.core.windows.net/path", '{"type": "hidden"}'),
        ],
    )
    def test_credentials_of_another_object_store_are_refused_and_not_shown(
        self, destination: str, credentials: str
    ) -> None:
        (complaint,) = settings.wrong_artifacts(destination, credentials, own_image=False)
        assert complaint.startswith(f"mlflow_artifacts_credentials: for {destination.partition('/')[0]}// give the ")
        assert "hidden" not in complaint


class TestRoles:
    """The roles keep their promises to preflight and to one another."""

    @pytest.mark.parametrize("role", sorted(settings.role_options(ROLES)))
    def test_defaults_and_argument_specs_agree(self, role: str) -> None:
        # An appliance-wide setting has its default where it is used: a role may only set variables of its own.
        specified = {
            name: option["default"]
            for name, option in settings.role_options(ROLES)[role].items()
            if "default" in option and not name.startswith("mlops_")
        }
        file = ROLES / role / "defaults" / "main.yml"
        assert specified == ((yaml.safe_load(file.read_text()) or {}) if file.exists() else {})

    @pytest.mark.parametrize("role", sorted(settings.role_options(ROLES)))
    def test_every_setting_says_what_it_is(self, role: str) -> None:
        for name, option in settings.role_options(ROLES)[role].items():
            assert option.get("description"), f"{name} has no description"
            assert "type" in option, f"{name} has no type"
            assert not option.get("required"), f"{name} is required: give it a default, or refuse it in preflight"

    def test_a_setting_belongs_to_one_role(self) -> None:
        owners: dict[str, str] = {}
        for role, options in settings.role_options(ROLES).items():
            for name in options:
                assert name not in owners, f"{name} is an option of {owners[name]} and of {role}"
                owners[name] = role

    def test_the_tags_of_site_yml_are_the_profiles_of_preflight(self) -> None:
        profiles = yaml.safe_load((ROLES / "preflight" / "vars" / "main.yml").read_text())["__preflight_profiles"]
        (play,) = (play for play in yaml.safe_load((ROOT / "site.yml").read_text()) if play["hosts"] == "mlops")
        tags = {item["role"]: set(item["tags"]) - {"never"} for item in play["roles"] if item["tags"] != ["always"]}
        services = {service for members in profiles.values() for service in members}
        assert services <= tags.keys(), "every service of a profile has a role in site.yml"
        for profile, members in profiles.items():
            assert set(members) == {role for role, names in tags.items() if profile in names}, f"profile {profile}"

    def test_the_closing_summary_has_the_roles_whose_settings_preflight_reads(self) -> None:
        (play,) = yaml.safe_load((ROOT / "playbooks" / "summary.yml").read_text())
        roles = {item["role"] for item in play["roles"]}
        options = settings.role_options(ROLES)
        home = {name: role for role in options for name in options[role]}
        read = {name for name in home if re.search(rf"\b{name}\b", (ROLES / "preflight/tasks/main.yml").read_text())}
        # A default may be another role's setting.
        while more := {
            name
            for setting in read
            for name in re.findall(r"\w+", str(options[home[setting]][setting].get("default", "")))
            if name in home and name not in read
        }:
            read |= more
        assert {home[name] for name in read if not name.startswith("mlops_")} <= roles
