"""Which images a host needs, what they are called, and in which order they are built."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from conftest import PLUGINS, load_plugin

images = load_plugin("filter/images.py")

BUILDS: dict[str, dict[str, Any]] = {
    "base": {"context": "base", "paths": ["Dockerfile"], "parents": {}},
    "python": {"context": "python", "paths": ["Dockerfile"], "parents": {"BASE": "base"}},
    "proxy": {"context": "proxy", "paths": ["Dockerfile"], "parents": {"BASE": "base"}},
    "server": {
        "context": "app",
        "target": "server",
        "paths": ["Dockerfile", "server"],
        "parents": {"PYTHON": "python"},
    },
    "tool": {"context": "app", "target": "tool", "paths": ["Dockerfile", "tool"], "parents": {"SERVER": "server"}},
}
REFERENCES = {image: f"mlops-{image}:1" for image in BUILDS}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    dockerfiles = [f"{context}/Dockerfile" for context in ("base", "python", "proxy", "app")]
    for name in [*dockerfiles, "app/server/a.py", "app/tool/b.py"]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {name}\n")
    return tmp_path


def renamed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {image for image in before if before[image] != after[image]}


class TestReferences:
    def test_is_the_name_of_the_image_and_a_digest(self, project: Path) -> None:
        assert images.image_references(BUILDS, str(project))["server"].startswith("mlops-server:")

    def test_does_not_depend_on_where_the_project_is(self, project: Path, tmp_path: Path) -> None:
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        before = images.image_references(BUILDS, str(project))
        for directory in ("base", "python", "proxy", "app"):
            (project / directory).rename(moved / directory)
        assert images.image_references(BUILDS, str(moved)) == before

    @pytest.mark.parametrize(
        ("file", "changed"),
        [
            ("base/Dockerfile", {"base", "python", "proxy", "server", "tool"}),
            ("python/Dockerfile", {"python", "server", "tool"}),
            ("proxy/Dockerfile", {"proxy"}),
            ("app/server/a.py", {"server", "tool"}),
            ("app/server/new.py", {"server", "tool"}),
            ("app/tool/b.py", {"tool"}),
            ("app/tests/test_a.py", set()),
            ("app/server/__pycache__/a.pyc", set()),
        ],
    )
    def test_changes_with_a_file_of_the_image_or_of_a_parent(self, project: Path, file: str, changed: set[str]) -> None:
        before = images.image_references(BUILDS, str(project))
        (project / file).parent.mkdir(exist_ok=True)
        (project / file).write_text("changed")
        assert renamed(before, images.image_references(BUILDS, str(project))) == changed

    def test_changes_with_the_name_of_a_file(self, project: Path) -> None:
        before = images.image_references(BUILDS, str(project))
        (project / "app/tool/b.py").rename(project / "app/tool/c.py")
        assert renamed(before, images.image_references(BUILDS, str(project))) == {"tool"}

    def test_changes_when_a_file_becomes_executable(self, project: Path) -> None:
        before = images.image_references(BUILDS, str(project))
        (project / "app/tool/b.py").chmod(0o755)
        assert renamed(before, images.image_references(BUILDS, str(project))) == {"tool"}

    def test_does_not_change_with_other_permissions_which_a_clone_does_not_keep(self, project: Path) -> None:
        before = images.image_references(BUILDS, str(project))
        (project / "app/tool/b.py").chmod(0o600)
        assert images.image_references(BUILDS, str(project)) == before

    def test_changes_with_the_stage_that_is_built(self, project: Path) -> None:
        before = images.image_references(BUILDS, str(project))
        builds = BUILDS | {"tool": BUILDS["tool"] | {"target": "other"}}
        assert renamed(before, images.image_references(builds, str(project))) == {"tool"}

    def test_changes_with_what_every_image_depends_on(self, project: Path) -> None:
        before = images.image_references(BUILDS, str(project), ["certificate"])
        assert renamed(before, images.image_references(BUILDS, str(project), ["another"])) == set(BUILDS)

    def test_a_missing_input_is_named(self, project: Path) -> None:
        (project / "proxy/Dockerfile").unlink()
        with pytest.raises(AnsibleFilterError, match=r"proxy/Dockerfile is missing"):
            images.image_references(BUILDS, str(project))


class TestBuilds:
    def build(self, wanted: list[str], *present: str) -> list[str]:
        there = [REFERENCES[image] for image in present]
        result: list[str] = images.image_builds(wanted, BUILDS, REFERENCES, there)
        return result

    def test_an_empty_host_gets_the_parents_too_and_first(self) -> None:
        assert self.build(["server", "proxy"]) == ["base", "python", "proxy", "server"]

    def test_nothing_is_built_that_no_service_of_the_run_needs(self) -> None:
        assert self.build(["proxy"]) == ["base", "proxy"]

    def test_a_host_that_has_the_images_builds_nothing(self) -> None:
        assert self.build(["server", "proxy"], "server", "proxy") == []

    def test_a_parent_that_is_gone_is_not_missed_while_its_child_is_there(self) -> None:
        assert self.build(["server"], "server") == []

    def test_only_what_is_missing_is_built(self) -> None:
        assert self.build(["tool"], "base", "python") == ["server", "tool"]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    directory = tmp_path / "archives"
    directory.mkdir()
    return directory


def save(archive: Path, manifest: Any) -> None:
    content = json.dumps(manifest).encode()
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


class TestSources:
    def source(self, service: str, source: str, image: str = "", archives: str = "") -> dict[str, str]:
        result: dict[str, dict[str, str]] = images.image_sources(
            [service], REFERENCES, {service: image}, {service: source}, "build", archives
        )
        return result[service]

    def refusal(self, service: str, source: str, image: str = "", archives: str = "") -> str:
        with pytest.raises(AnsibleFilterError) as refused:
            self.source(service, source, image, archives)
        return str(refused.value)

    def test_a_built_image_has_its_digest_for_a_name(self) -> None:
        assert self.source("server", "build") == {"source": "build", "reference": "mlops-server:1"}

    def test_a_registry_provides_the_image_that_the_operator_names(self) -> None:
        found = self.source("server", "registry", image="registry.example/server:2")
        assert found == {"source": "registry", "reference": "registry.example/server:2"}

    def test_an_image_by_tag_and_digest_is_known_by_its_digest(self) -> None:
        found = self.source("server", "registry", image=f"registry.example:5000/team/server:2@sha256:{'a' * 64}")
        assert found["reference"] == f"registry.example:5000/team/server@sha256:{'a' * 64}"

    def test_what_the_operator_does_not_choose_comes_from_where_the_others_come_from(self) -> None:
        assert self.source("server", "")["source"] == "build"

    def test_an_image_of_ones_own_comes_from_a_registry_unless_said_otherwise(self) -> None:
        assert self.source("server", "", image="registry.example/server:2")["source"] == "registry"

    def test_an_archive_says_itself_what_its_image_is_called(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["server:3"]}])
        found = self.source("server", "archive", archives=str(archives))
        assert found == {"source": "archive", "reference": "server:3", "archive": str(archives / "server.tar")}

    def test_an_archive_of_several_images_provides_the_one_that_is_named(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["other:1"]}, {"RepoTags": ["server:3", "server:4"]}])
        assert self.source("server", "archive", "server:4", str(archives))["reference"] == "server:4"

    def test_an_archive_that_lacks_the_named_image_is_refused(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["server:3"]}])
        message = self.refusal("server", "archive", "server:4", str(archives))
        assert "does not hold server:4" in message
        assert "server:3" in message

    def test_a_missing_archive_is_named_with_its_setting(self, archives: Path) -> None:
        message = self.refusal("server", "archive", archives=str(archives))
        assert "mlops_image_archives" in message
        assert str(archives / "server.tar") in message

    @pytest.mark.parametrize(
        ("manifest", "complaint"),
        [
            ([{"RepoTags": None}], "without a name"),
            ([], "without a name"),
            ([{}], "no archive made by docker save"),
        ],
    )
    def test_an_archive_that_cannot_be_used_is_refused(self, archives: Path, manifest: Any, complaint: str) -> None:
        save(archives / "server.tar", manifest)
        assert complaint in self.refusal("server", "archive", archives=str(archives))

    def test_a_file_that_is_no_archive_is_refused(self, archives: Path) -> None:
        (archives / "server.tar").write_text("<html>not found</html>")
        assert "no archive made by docker save" in self.refusal("server", "archive", archives=str(archives))

    def test_a_registry_needs_to_know_which_image(self) -> None:
        assert "server_image:" in self.refusal("server", "registry")

    def test_an_image_of_ones_own_is_never_built(self) -> None:
        assert "server_image_source" in self.refusal("server", "build", image="registry.example/server:2")

    def test_a_service_without_a_build_says_what_to_choose(self) -> None:
        message = self.refusal("dashboards", "build")
        assert "dashboards_image_source" in message
        assert "registry" in message
        assert "archive" in message


class TestChecksums:
    def checksums(self, archive: Path) -> None:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        (archive.parent / "SHA256SUMS").write_text(f"{'0' * 64}  other.tar\n{digest}  {archive.name}\n")

    def test_an_archive_with_its_checksum_is_loaded(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["server:3"]}])
        self.checksums(archives / "server.tar")
        assert images.verified_archive(str(archives / "server.tar")) == str(archives / "server.tar")

    def test_one_that_was_exchanged_is_refused_with_the_way_out(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["server:3"]}])
        self.checksums(archives / "server.tar")
        save(archives / "server.tar", [{"RepoTags": ["server:4"]}])
        with pytest.raises(AnsibleFilterError) as refused:
            images.verified_archive(str(archives / "server.tar"))
        assert str(archives / "SHA256SUMS") in str(refused.value)
        assert "sha256sum *.tar > SHA256SUMS" in str(refused.value)

    def test_one_without_checksums_is_refused(self, archives: Path) -> None:
        save(archives / "server.tar", [{"RepoTags": ["server:3"]}])
        with pytest.raises(AnsibleFilterError, match="SHA256SUMS: No such file"):
            images.verified_archive(str(archives / "server.tar"))


class TestContexts:
    @pytest.fixture(autouse=True)
    def temporary_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "DEFAULT_LOCAL_TMP", str(tmp_path))

    def archive(self, project: Path, wanted: list[str]) -> str:
        return str(images.image_contexts(wanted, BUILDS, str(project), REFERENCES, {"index": "index.txt"}))

    def members(self, project: Path, wanted: list[str]) -> dict[str, int]:
        with tarfile.open(self.archive(project, wanted)) as archive:
            return {member.name: member.mode for member in archive}

    def test_hold_what_the_images_are_made_from_and_nothing_else(self, project: Path) -> None:
        (project / "app/tests").mkdir()
        (project / "app/tests/test_a.py").write_text("")
        members = self.members(project, ["server", "proxy"])
        assert set(members) == {"app/Dockerfile", "app/server/a.py", "proxy/Dockerfile", "bake.json"}

    def test_keep_scripts_executable(self, project: Path) -> None:
        (project / "app/tool/b.py").chmod(0o700)
        modes = {"app/Dockerfile": 0o644, "app/tool/b.py": 0o755, "bake.json": 0o644}
        assert self.members(project, ["tool"]) == modes

    def test_are_the_same_archive_for_the_same_files(self, project: Path) -> None:
        first = self.archive(project, ["tool"])
        (project / "app/tool/b.py").touch()
        assert self.archive(project, ["tool"]) == first

    def test_a_file_that_changes_and_keeps_its_size_gets_another_time(self, project: Path) -> None:
        """Docker's builder would take it for the one that it was sent before."""
        times = []
        for text in ("one\n", "two\n", "one\n"):
            (project / "app/tool/b.py").write_text(text)
            with tarfile.open(self.archive(project, ["tool"])) as archive:
                times.append(archive.getmember("app/tool/b.py").mtime)
        assert times[0] != times[1]
        assert times[0] == times[2]

    def test_say_how_the_images_are_built(self, project: Path) -> None:
        with tarfile.open(self.archive(project, ["python", "server"])) as archive:
            bake = json.load(archive.extractfile("bake.json") or io.BytesIO())
        assert bake["group"]["default"]["targets"] == ["python", "server"]
        server = bake["target"]["server"]
        assert (server["context"], server["target"], server["tags"]) == ("app", "server", ["mlops-server:1"])
        assert server["args"] == {"PYTHON": "mlops-python:1"}
        assert server["secret"] == ["id=index,src=index.txt"]

    def test_a_parent_is_built_first_when_it_is_not_there_yet(self, project: Path) -> None:
        with tarfile.open(self.archive(project, ["python", "server"])) as archive:
            targets = json.load(archive.extractfile("bake.json") or io.BytesIO())["target"]
        assert targets["server"]["contexts"] == {"mlops-python:1": "target:python"}
        assert targets["python"]["contexts"] == {}, "the host has its parent"


class TestTheAppliance:
    """The builds of the role ``images`` themselves."""

    def test_can_be_named(self) -> None:
        root = PLUGINS.parent
        variables = yaml.safe_load((root / "roles/images/vars/main.yml").read_text())
        references = images.image_references(variables["__images_builds"], str(root))
        assert {"mlflow", "nginx", "serving", "training"} < set(references)
