# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Filters that decide which images a host needs, what they are called and in which order they are built.

A build is what the role ``images`` describes an image with: ``context`` (a directory of the project), ``paths`` (files
and directories of the context that the image is made from), ``parents`` (images it stands on, by the build argument
that names them) and optionally ``target`` (a stage of the Dockerfile).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.constants import DEFAULT_LOCAL_TMP
from ansible.errors import AnsibleFilterError

Builds = Mapping[str, Mapping[str, Any]]

PREFIX = "mlops"
TAG_DIGITS = 12
CHECKSUMS = "SHA256SUMS"
# Left behind by tools, and never part of an image.
IGNORED = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"})


def image_references(builds: Builds, root: str, inputs: Iterable[str] = ()) -> dict[str, str]:
    """Name every image after a digest of all that it is made from, so that an unchanged image is not built again.

    Args:
        builds: the builds, parents first.
        root: the project's directory.
        inputs: texts that every image depends on, such as certificates and mirrors.

    Returns:
        A reference, ``mlops-<image>:<digest>``, by image.

    Raises:
        AnsibleFilterError: a path of a build is not there.
    """
    references: dict[str, str] = {}
    shared = list(inputs)
    for image, build in builds.items():
        files = {
            name: [hashlib.sha256(file.read_bytes()).hexdigest(), _is_executable(file)]
            for name, file in _context_files(build, root)
        }
        parents = {argument: references[parent] for argument, parent in build["parents"].items()}
        document = json.dumps([image, build.get("target"), parents, files, shared], sort_keys=True)
        references[image] = f"{PREFIX}-{image}:{hashlib.sha256(document.encode()).hexdigest()[:TAG_DIGITS]}"
    return references


def image_sources(
    services: Iterable[str],
    references: Mapping[str, str],
    own: Mapping[str, str],
    sources: Mapping[str, str],
    default: str,
    archives: str,
) -> dict[str, dict[str, str]]:
    """Where each service's image comes from, and the reference it then has.

    Args:
        services: services that need an image.
        references: what `image_references` returned.
        own: references of images that the operator chose, by service; empty for none.
        sources: ``build``, ``registry`` or ``archive``, by service; empty where the operator did not choose.
        default: the source of a service for which the operator chose neither an image nor a source.
        archives: directory of the controller with archives of images.

    Returns:
        ``source`` and ``reference`` by service, and ``archive``, a file of the controller, for that source.

    Raises:
        AnsibleFilterError: a source cannot provide the image; the message names the setting.
    """
    found: dict[str, dict[str, str]] = {}
    for service in services:
        image = own.get(service, "")
        source = sources.get(service) or ("registry" if image else default)
        if source == "archive":
            archive = Path(archives).expanduser() / f"{service}.tar"
            reference = _archived_reference(archive, image)
            found[service] = {"source": source, "reference": reference, "archive": str(archive)}
        elif source == "registry":
            if not image:
                raise AnsibleFilterError(f"{service}_image: a registry is to provide the image, so say which image.")
            # The tag is for people: the digest alone says which image, and is what the engine then lists.
            found[service] = {"source": source, "reference": re.sub(r":[^:/@]+@", "@", image)}
        elif image:
            raise AnsibleFilterError(f"{service}_image: {image} is not built here: leave {service}_image_source out.")
        elif service not in references:
            raise AnsibleFilterError(
                f"{service}_image_source: there is no build of {service}: "
                f"choose registry, with {service}_image, or archive."
            )
        else:
            found[service] = {"source": source, "reference": references[service]}
    return found


def verified_archive(archive: str) -> str:
    """The path of an archive whose content is what ``SHA256SUMS`` beside it says.

    Args:
        archive: file of the controller.

    Raises:
        AnsibleFilterError: it is not, or there is no such line.
    """
    path = Path(archive)
    try:
        lines = (path.parent / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise AnsibleFilterError(f"mlops_image_archives: {error.filename}: {error.strerror}") from error
    if not {f"{digest}  {path.name}", f"{digest} *{path.name}"} & set(lines):
        raise AnsibleFilterError(
            f"mlops_image_archives: {path} is not the file of which {path.parent / CHECKSUMS} has the checksum: it was "
            "damaged or exchanged. Bring it again; when it was saved anew, write the checksums anew where that was "
            f"done: sha256sum *.tar > {CHECKSUMS}"
        )
    return archive


def image_builds(
    wanted: Iterable[str], builds: Builds, references: Mapping[str, str], present: Iterable[str]
) -> list[str]:
    """Images that have to be built, parents first. A parent is built only for a child that is not there.

    Args:
        wanted: images that are needed.
        builds: the builds, parents first.
        references: what `image_references` returned.
        present: references that the host has.
    """
    there = set(present)
    needed: set[str] = set()

    def need(image: str) -> None:
        if references[image] not in there:
            needed.add(image)
            for parent in builds[image]["parents"].values():
                need(parent)

    for image in wanted:
        need(image)
    return [image for image in builds if image in needed]


def image_contexts(
    images: Iterable[str], builds: Builds, root: str, references: Mapping[str, str], secrets: Mapping[str, str]
) -> str:
    """Pack what some images are built from, because one archive travels faster than many files.

    Args:
        images: images to be built.
        builds: the builds.
        root: the project's directory.
        references: what `image_references` returned.
        secrets: files of the host, relative to where the archive is unpacked, by the name under which builds read them.

    Returns:
        A gzip-compressed tar archive on the controller, which Ansible removes when it ends. Its paths are relative to
        the project's directory; ``bake.json`` says how the images are built from them, side by side.
    """
    wanted = list(images)
    contents = {
        f"{builds[image]['context']}/{name}": (file.read_bytes(), _is_executable(file))
        for image in wanted
        for name, file in _context_files(builds[image], root)
    }
    contents["bake.json"] = (_bake(wanted, builds, references, secrets).encode(), False)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, (content, executable) in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if executable else 0o644
            # Docker's builder keeps what it was sent: a file of the same name, size and time is the same file to it.
            member.mtime = int.from_bytes(hashlib.sha256(content).digest()[:4])
            archive.addfile(member, io.BytesIO(content))
    packed = gzip.compress(stream.getvalue(), mtime=0)
    path = Path(DEFAULT_LOCAL_TMP) / f"image-contexts-{hashlib.sha256(packed).hexdigest()}.tar.gz"
    path.write_bytes(packed)
    return str(path)


def _bake(images: list[str], builds: Builds, references: Mapping[str, str], secrets: Mapping[str, str]) -> str:
    """What ``docker buildx bake`` is to build, in the JSON of https://docs.docker.com/build/bake/reference/."""
    targets = {
        image: {
            "context": builds[image]["context"],
            "tags": [references[image]],
            "args": {argument: references[parent] for argument, parent in builds[image]["parents"].items()},
            # A parent that is built too is its target: a reference alone would be looked for before it is there.
            "contexts": {
                references[parent]: f"target:{parent}"
                for parent in builds[image]["parents"].values()
                if parent in images
            },
            "labels": {
                "org.opencontainers.image.title": f"{PREFIX}-{image}",
                "org.opencontainers.image.version": references[image].partition(":")[2],
            },
            "secret": [f"id={name},src={file}" for name, file in secrets.items()],
            **({"target": builds[image]["target"]} if "target" in builds[image] else {}),
        }
        for image in images
    }
    return json.dumps({"group": {"default": {"targets": images}}, "target": targets}, indent=2)


def _context_files(build: Mapping[str, Any], root: str) -> Iterator[tuple[str, Path]]:
    """The files a build is made from, each with its name relative to the context."""
    context = Path(root) / build["context"]
    for path in build["paths"]:
        start = context / path
        if not start.exists():
            raise AnsibleFilterError(f"{start} is missing: an image is made from it.")
        for file in [start] if start.is_file() else sorted(start.rglob("*")):
            if file.is_file() and not IGNORED & set(file.relative_to(context).parts):
                yield str(file.relative_to(context)), file


def _is_executable(file: Path) -> bool:
    return bool(file.stat().st_mode & 0o100)


def _archived_reference(archive: Path, wanted: str) -> str:
    """The reference in an archive that ``docker save`` wrote: the wanted one, or without a wish the first."""
    try:
        with tarfile.open(archive) as content:
            manifest = content.extractfile("manifest.json")
            references = [name for image in json.load(manifest or io.BytesIO()) for name in image["RepoTags"] or ()]
    except OSError as error:
        raise AnsibleFilterError(f"mlops_image_archives: {archive}: {error.strerror or error}") from error
    except (tarfile.TarError, LookupError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"mlops_image_archives: {archive} is no archive made by docker save.") from error
    if wanted and wanted not in references:
        raise AnsibleFilterError(f"mlops_image_archives: {archive} does not hold {wanted}, but {references}.")
    if not references:
        raise AnsibleFilterError(f"mlops_image_archives: {archive} holds an image without a name: save it by its name.")
    return wanted or str(references[0])


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by the name that templates use."""
        return {
            "image_references": image_references,
            "image_sources": image_sources,
            "image_builds": image_builds,
            "image_contexts": image_contexts,
            "verified_archive": verified_archive,
        }
