"""What is refused before anything is changed, and with which words."""

from __future__ import annotations

import re
from pathlib import Path

import preflight
import pytest
import yaml
from conftest import load_plugin

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

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
"""


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

    def test_the_training_container_is_confined_like_the_services(self) -> None:
        # It runs once and is gone, so a test on the host could not look at it.
        tasks = yaml.safe_load((ROLES / "training" / "tasks" / "main.yml").read_text())
        (options,) = (
            task["community.docker.docker_container"]
            for outer in tasks
            for task in outer.get("block", [outer])
            if "community.docker.docker_container" in task
        )
        assert options["user"] == "10001:10001"
        assert options["cap_drop"] == ["ALL"]
        assert options["security_opts"] == ["no-new-privileges"]
        assert options["read_only"] is True
        assert options["memory"] == options["memory_swap"]
        assert options["cpus"]
        assert options["pids_limit"] <= 512
        assert all("size=" in place for place in options["tmpfs"])
        assert not {"capabilities", "privileged"} & options.keys()
