"""Lists of what images are made of, and known holes: what is read and told, and that unknown is never green."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from role_programs import loaded

STATUS = """\
Package: libcurl4t64
Status: install ok installed
Architecture: amd64
Source: curl
Version: 8.14.1-2+deb13u1
Maintainer: nobody
Description: a library

Package: login
Status: install ok installed
Architecture: amd64
Source: shadow (1:4.17.4-2)
Version: 1:4.16.0-2+really2.41-5
Maintainer: nobody
Description: a program

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
Maintainer: nobody
Description: removed, its configuration kept
"""
OS_RELEASE = 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
PROGRAM = "#!/bin/sh\n"


components = loaded("components", "appliance_components")


def distribution(site: Path, name: str, version: str, *fields: str) -> None:
    directory = site / f"{name}-{version}.dist-info"
    directory.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *fields]
    (directory / "METADATA").write_text("\n".join(lines) + "\n")


def engine(commands: Callable[[str, str], Path], *images: dict[str, Any]) -> None:
    """Have docker be one that has these images, the first of which is asked about."""
    ids = " ".join(image["Id"] for image in images)
    commands("docker", f"[ $2 = ls ] && echo {ids} && exit\ncat <<'END'\n{json.dumps(images[:1])}\nEND")


def inspected(layers: list[Path], built: str = "2026-11-26T14:53:41.123456789Z") -> dict[str, Any]:
    data = {"UpperDir": str(layers[0])}
    if layers[1:]:
        data["LowerDir"] = ":".join(map(str, layers[1:]))
    return {"Id": "sha256:1", "Created": built, "GraphDriver": {"Name": "overlay2", "Data": data}}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file system of an image with Debian packages and a Python environment."""
    root = tmp_path / "image"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text(OS_RELEASE)
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("/usr/lib/os-release")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(STATUS)
    site = root / "opt/venv/lib/python3.13/site-packages"
    distribution(site, "Flask", "3.1.2", "License-Expression: BSD-3-Clause")
    distribution(site, "typing.extensions", "4.0+local.1", "Classifier: License :: OSI Approved :: MIT License")
    distribution(root / "usr/lib/python3/dist-packages", "chardet", "5.2.0")
    return root


@pytest.fixture
def document(image: Path) -> dict[str, Any]:
    made: dict[str, Any] = components.component_list("web", "web:1", inspected([image]), image)
    return made


class TestList:
    def test_it_is_a_valid_document_of_cyclonedx(self, document: dict[str, Any]) -> None:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None

    def test_it_has_what_dpkg_has_installed_with_the_source_package(self, document: dict[str, Any]) -> None:
        found = [PackageURL.from_string(item["purl"]) for item in components.of_kind(document, "deb")]
        assert [(item.namespace, item.name, item.version) for item in found] == [
            ("debian", "libcurl4t64", "8.14.1-2+deb13u1"),
            ("debian", "login", "1:4.16.0-2+really2.41-5"),
        ]
        assert [dict(item.qualifiers)["upstream"] for item in found] == [
            "curl@8.14.1-2+deb13u1",
            "shadow@1:4.17.4-2",
        ]
        assert {dict(item.qualifiers)["distro"] for item in found} == {"debian-13"}

    def test_it_has_python_distributions_with_licences_and_not_those_of_debian(self, document: dict[str, Any]) -> None:
        found = components.of_kind(document, "pypi")
        assert [PackageURL.from_string(item["purl"]).version for item in found] == ["3.1.2", "4.0+local.1"]
        assert [(item["name"], item["licenses"]) for item in found] == [
            ("flask", [{"expression": "BSD-3-Clause"}]),
            ("typing-extensions", [{"license": {"name": "MIT License"}}]),
        ]

    @pytest.mark.parametrize(
        "fields", ["Name: x\nVersion: 1\n -r /etc/shadow", "Name: x @ file:///etc\nVersion: 1", "Name: x", "Version: 1"]
    )
    def test_a_distribution_without_a_name_and_version_of_one_is_not_in_it(self, image: Path, fields: str) -> None:
        directory = image / "opt/venv/lib/python3.13/site-packages/x-1.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"{fields}\n")
        made = components.component_list("web", "web:1", inspected([image]), image)
        assert [item["name"] for item in components.of_kind(made, "pypi")] == ["flask", "typing-extensions"]

    def test_it_says_which_image_it_is_of(self, document: dict[str, Any]) -> None:
        assert components.told_of(document) == {
            "service": "web",
            "reference": "web:1",
            "id": "sha256:1",
            "built": "2026-11-26T14:53:41.123456789Z",
        }

    def test_an_image_of_nothing_that_is_known_has_a_valid_list_too(self, tmp_path: Path) -> None:
        made = components.component_list("web", "web:1", inspected([tmp_path]), tmp_path)
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made)) is None
        assert made["components"] == []

    def test_a_link_within_the_image_is_followed(self, image: Path) -> None:
        (image / "usr/lib/os-release").rename(image / "usr/lib/os-release.debian")
        (image / "usr/lib/os-release").symlink_to("os-release.debian")
        assert components.operating_system(image)["ID"] == "debian"

    def test_a_link_in_an_image_does_not_lead_to_the_hosts_own_files(
        self, image: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        own = tmp_path_factory.mktemp("own")
        (own / "status").write_text(STATUS)
        (own / "METADATA").write_text("Name: own\nVersion: 1\n")
        (image / "usr/lib/os-release").unlink()
        shutil.rmtree(image / "var/lib/dpkg")
        (image / "var/lib/dpkg").symlink_to(own)
        site = image / "opt/venv/lib/python3.13/site-packages"
        (site / "a-1.dist-info").symlink_to(own)
        (site / "b-1.dist-info").mkdir()
        (site / "b-1.dist-info/METADATA").symlink_to(own / "METADATA")
        # It would be waited for until somebody writes.
        (site / "c-1.dist-info").mkdir()
        os.mkfifo(site / "c-1.dist-info/METADATA")
        (site / "c-1.dist-info/PKG-INFO").write_text("Name: c\nVersion: 1\n")
        made = components.component_list("web", "web:1", inspected([image]), image)
        assert [item["name"] for item in made["components"]] == ["flask", "typing-extensions"]


class TestImage:
    def test_one_of_a_single_layer_is_read_where_it_is(self, image: Path) -> None:
        with components.opened(inspected([image])) as root:
            assert root == image

    def test_one_whose_layers_are_no_directories_is_exported(
        self, image: Path, commands: Callable[[str, str], Path]
    ) -> None:
        log = commands("docker", f'[ "$1" = export ] && cd {image} && exec tar --create *; echo container')
        with components.opened({"Id": "sha256:1", "GraphDriver": None}) as root:
            made = components.component_list("web", "web:1", {"Id": "sha256:1", "Created": "2026-11-26"}, root)
        assert [item["name"] for item in made["components"]] == [
            "debian",
            "libcurl4t64",
            "login",
            "flask",
            "typing-extensions",
        ]
        assert log.read_text().splitlines()[-1] == "rm container"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program before those of the machine; returns the file in which its calls are noted."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def put(name: str, text: str) -> Path:
        log = programs / f"{name}.log"
        program = programs / name
        program.write_text(f'{PROGRAM}echo "$@" >> {log}\n{text}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return log

    return put


@pytest.fixture
def advisories(tmp_path: Path) -> Path:
    """A directory with debsecan's data, which a program in its place only names."""
    directory = tmp_path / "advisories"
    directory.mkdir()
    (directory / "trixie").write_text("data")
    return directory


@pytest.fixture
def appliance(tmp_path: Path, image: Path, advisories: Path, commands: Callable[[str, str], Path]) -> Any:
    """A host with one image that is listed, debsecan and pip-audit that each know of holes in it."""
    root = tmp_path / "host"
    (root / "var/lib/mlops").mkdir(parents=True)
    (root / "etc/mlops/components").mkdir(parents=True)
    (root / "etc/mlops/components/requirements.txt").write_text("pip-audit==1\n")
    settings = {"debian": advisories.as_uri(), "python": "http://127.0.0.1:1/v1/query"}
    (root / "etc/mlops/components/components.json").write_text(json.dumps(settings))
    engine(commands, inspected([image]))
    commands("systemctl", "")
    commands(
        "debsecan", "echo 'CVE-2025-1 libcurl4t64 (fixed, remotely exploitable, high urgency)'; echo 'CVE-2025-2 login'"
    )
    host = components.Appliance(root)
    hole = {"id": "PYSEC-1", "aliases": ["GHSA-1", "CVE-2025-3"], "fix_versions": ["3.1.3"], "description": ""}
    report = {
        "dependencies": [{"name": "flask", "version": "3.1.2", "vulns": [hole]}, {"name": "x", "skip_reason": "y"}]
    }
    environment(host, f"cat <<'END'\n{json.dumps(report)}\nEND\nexit 1")
    host.list_images({"web": "web:1"})
    return host


def environment(host: Any, text: str) -> None:
    """Have pip-audit be a program that says this."""
    digest = components.hashlib.sha256(host.requirements.read_bytes()).hexdigest()[:12]
    program = host.environment / digest / "bin" / "pip-audit"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"{PROGRAM}{text}\n")
    program.chmod(0o755)


def metrics(host: Any) -> dict[str, float]:
    lines = host.metrics.read_text().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def holes(host: Any) -> dict[str, float]:
    return {name: value for name, value in metrics(host).items() if name.startswith("mlops_known_holes{")}


class TestCheck:
    def test_before_the_first_one_nothing_is_known_and_everything_says_so(self, appliance: Any) -> None:
        found = metrics(appliance)
        assert found['mlops_image_built_timestamp_seconds{image="web"}'] == 1795704821
        assert found['mlops_known_holes_checked{image="web",source="debian"}'] == 0
        assert found["mlops_known_holes_check_timestamp_seconds"] == 0
        assert holes(appliance) == {}
        assert "last looked for: never" in appliance.status.read_text()
        assert "Not checked: debian: not since it was made (all images)." in appliance.status.read_text()

    def test_it_counts_holes_by_image_source_severity_and_whether_there_is_a_fix(self, appliance: Any) -> None:
        said = appliance.check()
        assert holes(appliance) == {
            'mlops_known_holes{image="web",source="debian",severity="high",fixed="yes"}': 1,
            'mlops_known_holes{image="web",source="debian",severity="unknown",fixed="no"}': 1,
            'mlops_known_holes{image="web",source="python",severity="unknown",fixed="yes"}': 1,
        }
        assert metrics(appliance)['mlops_known_holes_checked{image="web",source="debian"}'] == 1
        assert metrics(appliance)["mlops_known_holes_check_timestamp_seconds"] > 0
        assert "2 with a fix, 1 without." in said
        assert "Not checked" not in said
        shown = appliance.show()
        assert "web: CVE-2025-1 in libcurl4t64, severity high" in shown
        assert "web: CVE-2025-3 in flask" in shown

    def test_none_is_told_apart_from_unknown(self, appliance: Any, commands: Callable[[str, str], Path]) -> None:
        commands("debsecan", "")
        environment(appliance, "echo '{\"dependencies\": []}'")
        appliance.check()
        assert set(holes(appliance).values()) == {0}
        assert metrics(appliance)['mlops_known_holes_checked{image="web",source="python"}'] == 1

    def test_without_the_advisories_it_is_unknown_and_what_was_known_stays(
        self, appliance: Any, advisories: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        appliance.check()
        before = holes(appliance)
        (advisories / "trixie").unlink()
        environment(appliance, "echo 'ERROR: Could not connect to the OSV server' >&2; exit 1")
        again = components.Appliance(appliance.metrics.parents[4])
        said = again.check()
        assert holes(again) == before
        for source in ("debian", "python"):
            assert metrics(again)[f'mlops_known_holes_checked{{image="web",source="{source}"}}'] == 0
            assert f"Not checked: {source}: " in said
        assert capsys.readouterr().err.count("web: ") == 2
        assert "Could not connect" in said
        assert "+?" not in said
        assert "+?" in again.show()

    def test_data_that_debsecan_cannot_read_are_no_all_clear(
        self, appliance: Any, commands: Callable[[str, str], Path]
    ) -> None:
        commands("debsecan", "echo 'zlib.error: incorrect header check' >&2; exit 1")
        assert "debsecan cannot read the data" in appliance.check()

    def test_an_index_without_pip_audit_is_said(self, appliance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        appliance.requirements.write_text("pip-audit==2\n")
        monkeypatch.setattr(components.sys, "executable", "/bin/false")
        said = appliance.check()
        assert "pip-audit cannot be installed" in said
        assert metrics(appliance)['mlops_known_holes_checked{image="web",source="debian"}'] == 1

    def test_an_image_of_another_system_is_unknown_to_debsecan(self, image: Path, appliance: Any) -> None:
        (image / "usr/lib/os-release").write_text("ID=alpine\nVERSION_ID=3.22\n")
        appliance.list_images({"web": "web:1"})
        assert "debsecan knows of Debian, and this image has alpine" in appliance.check()

    @pytest.mark.parametrize("built", [None, "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
    def test_an_image_that_does_not_say_when_it_was_made_has_no_age(
        self, image: Path, appliance: Any, commands: Callable[[str, str], Path], built: str | None
    ) -> None:
        made = inspected([image], built or "")
        if built is None:
            del made["Created"]
        engine(commands, made)
        appliance.list_images({"web": "web:1"})
        assert not any(name.startswith("mlops_image_built") for name in metrics(appliance))

    def test_a_new_image_is_unknown_until_it_is_checked(
        self, image: Path, appliance: Any, commands: Callable[[str, str], Path]
    ) -> None:
        appliance.check()
        engine(commands, {**inspected([image]), "Id": "sha256:2"}, inspected([image]))
        appliance.list_images({"web": "web:2"})
        assert holes(appliance) == {}
        assert "not since it was made" in appliance.status.read_text()

    def test_an_image_that_is_gone_is_no_longer_listed(
        self, appliance: Any, commands: Callable[[str, str], Path], image: Path
    ) -> None:
        engine(commands, {**inspected([image]), "Id": "sha256:2"})
        appliance.list_images({"other": "other:1"})
        assert list(appliance.lists()) == ["other"]


def test_a_hole_counts_once_for_all_packages_of_a_source() -> None:
    found = components.debian_holes("CVE-2025-1 curl (fixed)\nCVE-2025-1 libcurl4t64 (fixed)\nCVE-2025-1 other\n")
    assert [(hole["component"], hole["fixed"]) for hole in found] == [("curl, libcurl4t64", "yes"), ("other", "no")]


def test_the_status_for_debsecan_has_the_source_package_and_its_version(document: dict[str, Any]) -> None:
    text = components.dpkg_status(components.of_kind(document, "deb"))
    assert "Package: login\nStatus: install ok installed\nVersion: 1:4.16.0-2+really2.41-5\n" in text
    assert "Source: shadow (1:4.17.4-2)\n" in text
