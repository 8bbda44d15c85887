"""The unit that systemd_container writes, and what it refuses to write."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from ansible.module_utils.container_unit import (
    OWN_VOLUMES,
    ConfigFile,
    ContainerSpec,
    Health,
    InvalidSpecError,
    Secret,
    fingerprint_of,
    render_unit,
    systemd_quote,
    validate,
)


def spec(**changes: Any) -> ContainerSpec:
    values: dict[str, Any] = {
        "name": "web",
        "image": "image:1",
        "description": "a web server",
        "health": Health("curl localhost"),
        "user": "10020:10020",
    }
    return ContainerSpec(**{**values, **changes})


def create_options(text: str) -> list[str]:
    line = next(line for line in text.splitlines() if "docker create" in line)
    return shlex.split(line.partition("=")[2])


def directives(text: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{name}=")]


@pytest.mark.parametrize(
    "option",
    [
        "--user=10020:10020",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        "--memory=256m",
        "--memory-swap=256m",
        "--cpus=1",
        "--pids-limit=256",
        "--pull=never",
        "--network-alias=web",
        "--label=mlops.unit=mlops-web.service",
    ],
)
def test_a_container_is_confined_and_named_without_being_asked(option: str) -> None:
    assert option in create_options(render_unit(spec(), "f"))


def test_systemd_owns_the_life_of_the_container() -> None:
    text = render_unit(spec(after=("database",)), "f")
    assert directives(text, "Restart") == ["always"]
    assert directives(text, "PartOf") == ["mlops.target"]
    assert directives(text, "WantedBy") == ["mlops.target"]
    assert directives(text, "After") == ["docker.service mlops-firewall.service mlops-database.service"]
    assert directives(text, "Wants") == ["mlops-firewall.service mlops-database.service"]
    assert directives(text, "ExecStart") == ["/usr/bin/docker start --attach mlops-web"]


def test_started_means_healthy() -> None:
    assert directives(render_unit(spec(start_timeout=45), "f"), "ExecStartPost") == [
        "/usr/local/lib/mlops/await-healthy mlops-web 45"
    ]


def test_a_stale_container_is_removed_in_bounded_time_before_the_new_one_is_made() -> None:
    _, second, *_ = directives(render_unit(spec(), "f"), "ExecStartPre")
    assert shlex.split(second) == ["-/bin/sh", "-c", "timeout 30 docker rm --force --volumes mlops-web >/dev/null 2>&1"]


def test_a_volume_without_a_name_is_made_with_the_container_and_goes_with_it() -> None:
    scratch = spec(volumes=("data:/data", "/var/tmp"))
    validate(scratch)
    text = render_unit(scratch, "f")
    assert {"--volume=data:/data:nocopy", "--volume=/var/tmp"} <= set(create_options(text))
    (removal,) = directives(text, "ExecStopPost")
    assert "docker rm --force --volumes mlops-web" in removal


def test_a_service_owns_the_volumes_that_it_writes_before_its_container_is_made() -> None:
    text = render_unit(spec(volumes=("data:/data", "shared:/shared:ro", "/srv/corpus:/corpus", "/var/tmp")), "f")
    steps = directives(text, "ExecStartPre")
    taking = f"{OWN_VOLUMES} 10020:10020 data"
    assert taking in steps
    assert steps.index(taking) < next(index for index, step in enumerate(steps) if "docker create" in step)
    # The owner of the image's directory would be the empty volume's again.
    assert {"--volume=data:/data:nocopy", "--volume=shared:/shared:ro,nocopy"} <= set(create_options(text))


def test_a_service_without_a_volume_has_none_to_own() -> None:
    assert OWN_VOLUMES not in render_unit(spec(volumes=("/srv/corpus:/corpus:ro",)), "f")


def test_no_container_starts_without_the_firewall_and_one_that_runs_stays() -> None:
    text = render_unit(spec(), "f")
    first, *_ = directives(text, "ExecStartPre")
    assert first == "/usr/bin/systemctl is-active --quiet mlops-firewall.service"
    assert directives(text, "Requires") == ["docker.service"]


def test_a_container_has_an_address_by_which_the_firewall_knows_its_service() -> None:
    service, replica, other = (spec(name=name).mac_address for name in ("web", "web_2", "database"))
    assert service.startswith("02:6d:6c:")
    assert (service[-2:], replica[-2:]) == ("01", "02")
    assert service[:-2] == replica[:-2]
    assert service[:-2] != other[:-2]
    assert f"--mac-address={service}" in create_options(render_unit(spec(), "f"))


def test_only_who_has_a_way_out_has_a_sign_of_it_and_a_resolver() -> None:
    inside, outside = spec(), spec(egress=True)
    assert int(outside.mac_address[-2:], 16) == int(inside.mac_address[-2:], 16) | 0x80
    assert "--dns=0.0.0.0" in create_options(render_unit(inside, "f"))
    assert not [option for option in create_options(render_unit(outside, "f")) if option.startswith("--dns")]


def test_a_secret_reaches_the_container_as_a_file_that_only_its_user_reads() -> None:
    text = render_unit(spec(secrets=(Secret("web_key", "/run/secrets/key", "TOP SECRET"),)), "f")
    assert "TOP SECRET" not in text
    assert (
        "/usr/bin/install --owner=10020 --group=10020 --mode=0400 /etc/mlops/secrets/web_key /run/mlops/web/web_key"
        in directives(text, "ExecStartPre")
    )
    assert "--mount=type=bind,source=/run/mlops/web/web_key,target=/run/secrets/key,readonly" in create_options(text)
    assert directives(text, "RuntimeDirectoryMode") == ["0700"]


def test_a_secret_is_not_in_the_representation_either() -> None:
    assert "TOP SECRET" not in repr(spec(secrets=(Secret("key", "/key", "TOP SECRET"),)))


def test_configuration_files_are_mounted_read_only() -> None:
    text = render_unit(spec(files=(ConfigFile("web.conf", "x", "/etc/web.conf"),)), "f")
    assert "--mount=type=bind,source=/etc/mlops/web/web.conf,target=/etc/web.conf,readonly" in create_options(text)


@pytest.mark.parametrize(
    ("argument", "written"),
    [
        ("plain-1.2:3/x", "plain-1.2:3/x"),
        ("two words", '"two words"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("100%", "100%%"),
        ("$HOME", '"$$HOME"'),
        ("a\nb", '"a\\nb"'),
        ("", '""'),
    ],
)
def test_arguments_reach_the_program_to_the_letter(argument: str, written: str) -> None:
    assert systemd_quote(argument) == written


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "We b"}, "name"),
        ({"image": ""}, "image"),
        ({"user": "0:0"}, "user"),
        ({"user": "root"}, "user"),
        ({"memory": "lots"}, "memory"),
        ({"cpus": 0.0}, "cpus"),
        ({"pids_limit": 0}, "pids_limit"),
        ({"publish": ("80",)}, "publish"),
        ({"publish": ("127.0.0.1:99999:80",)}, "publish"),
        ({"volumes": ("data",)}, "volumes"),
        ({"volumes": ("data:/a:ro:/b",)}, "volumes"),
        ({"volumes": ("",)}, "volumes"),
        ({"name": "web_128"}, "name"),
        ({"capabilities": ("NET_RAW",)}, "capabilities"),
        ({"tmpfs": {"tmp": "1m"}}, "tmpfs"),
        ({"tmpfs": {"/tmp": "big"}}, "tmpfs[/tmp]"),
        ({"files": (ConfigFile("../passwd", "x", "/x"),)}, "file name"),
        ({"files": (ConfigFile("conf", "x", "relative"),)}, "target of conf"),
        ({"after": ("not a name",)}, "name"),
        ({"description": "two\nlines"}, "description"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_a_way_out(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        validate(spec(**changes))
    message = str(caught.value)
    assert message.startswith(f"{named}: ")
    assert "cannot work: " in message


@pytest.mark.parametrize(
    "change",
    [
        {"spec": spec(environment={"A": "1"})},
        {"spec": spec(files=(ConfigFile("f", "other", "/f"),))},
        {"image_id": "other"},
        {"secrets": {"s": "other"}},
        {"key": b"other"},
    ],
)
def test_the_fingerprint_follows_everything_the_container_depends_on(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"spec": spec(), "image_id": "one", "secrets": {"s": "1"}, "key": b"k"}
    assert fingerprint_of(**base) == fingerprint_of(**base)
    assert fingerprint_of(**{**base, **change}) != fingerprint_of(**base)
