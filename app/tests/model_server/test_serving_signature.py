"""Signatures: what fits, what is refused, and what the server does then."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlflow
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from model_server import promote, verify
from model_server.common.model_uri import ModelUri
from model_server.common.signature import Check, SignatureError, sign
from model_server.common.signature import verify as verify_signature
from model_server.common.store import SIGNATURE, SIGNATURES, ModelStore, ModelVersion, StoredModel
from model_server.supervisor.refresher import Champion, Refresher
from serving_harness import APPLICATION, RegisteredModel, Server, Servers, store_model

EXAMPLE = {"input_example": (["a query"], {"top_k": 2})}
REFUSED = 'model_server_model_rejections_total{reason="signature"}'


@dataclass
class Keys:
    """The files of a pair of keys."""

    private: Path
    public: Path

    @classmethod
    def make(cls, directory: Path) -> Keys:
        directory.mkdir()
        made = cls(directory / "key", directory / "key.pub")
        key = ec.generate_private_key(ec.SECP256R1())
        made.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        made.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return made


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the server find it, as the supervisor has them do."""
    monkeypatch.setenv("PYTHONPATH", str(APPLICATION))


def stored(root: Path, number: str = "1") -> StoredModel:
    """A version with files of its own, not signed."""
    store = ModelStore(root, "m")
    version = ModelVersion("m", number, int(number), "run", "source")
    staging = store.stage(version)
    (staging / "model" / "code").mkdir(parents=True)
    (staging / "model" / "MLmodel").write_text("flavors: {}\n")
    (staging / "model" / "code" / "model.py").write_text("print('ours')\n")
    return store.commit(version, staging)


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> StoredModel:
    made = stored(tmp_path)
    sign(made.directory, keys.private)
    return made


def swap_a_file(model: StoredModel) -> None:
    (model.model_path / "code" / "model.py").write_text("print('evil')\n")


def swap_two_files(model: StoredModel) -> None:
    first, second = model.model_path / "MLmodel", model.model_path / "code" / "model.py"
    first.rename(model.model_path / "x")
    second.rename(first)
    (model.model_path / "x").rename(second)


def add_a_file(model: StoredModel) -> None:
    (model.model_path / "extra.py").write_text("print('evil')\n")


def add_a_file_that_looks_like_gits(model: StoredModel) -> None:
    (model.model_path / ".git").mkdir()
    (model.model_path / ".git" / "model.py").write_text("print('evil')\n")


def remove_a_file(model: StoredModel) -> None:
    (model.model_path / "code" / "model.py").unlink()


def lead_a_file_elsewhere(model: StoredModel) -> None:
    file = model.model_path / "code" / "model.py"
    shutil.move(file, model.directory.parent / "elsewhere.py")
    file.symlink_to(model.directory.parent / "elsewhere.py")


def lead_a_directory_elsewhere(model: StoredModel) -> None:
    shutil.move(model.model_path / "code", model.directory.parent / "elsewhere")
    (model.model_path / "code").symlink_to(model.directory.parent / "elsewhere")


def call_it_another_version(model: StoredModel) -> None:
    file = model.directory / "version.json"
    file.write_text(file.read_text().replace('"version": "1"', '"version": "2"'))


def spoil_the_signature(model: StoredModel) -> None:
    bundle = json.loads((model.directory / SIGNATURE).read_text())
    former = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = former[:20] + former[20:40].swapcase() + former[40:]
    (model.directory / SIGNATURE).write_text(json.dumps(bundle))


def take_the_signature_away_from_the_envelope(model: StoredModel) -> None:
    bundle = json.loads((model.directory / SIGNATURE).read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    (model.directory / SIGNATURE).write_text(json.dumps(bundle))


def write_nonsense(model: StoredModel) -> None:
    (model.directory / SIGNATURE).write_text("nonsense")


def empty_the_signature(model: StoredModel) -> None:
    (model.directory / SIGNATURE).write_text("")


def make_the_signature_a_directory(model: StoredModel) -> None:
    (model.directory / SIGNATURE).unlink()
    (model.directory / SIGNATURE).mkdir()
    (model.directory / SIGNATURE / "model.py").write_text("print('evil')\n")


def have_a_link_to_nowhere_as_signature(model: StoredModel) -> None:
    (model.directory / SIGNATURE).unlink()
    (model.directory / SIGNATURE).symlink_to("nowhere")


ATTACKS = [
    *(swap_a_file, swap_two_files, add_a_file, add_a_file_that_looks_like_gits, remove_a_file),
    *(lead_a_file_elsewhere, lead_a_directory_elsewhere, call_it_another_version, spoil_the_signature),
    *(take_the_signature_away_from_the_envelope, write_nonsense, empty_the_signature),
    *(make_the_signature_a_directory, have_a_link_to_nowhere_as_signature),
]


def test_a_signature_fits_the_version_that_it_was_made_of(signed: StoredModel, keys: Keys) -> None:
    verify_signature(signed.directory, keys.public)
    assert Check(signed, keys.public).result(required=True)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_changed_after_signing_is_refused(
    attack: Callable[[StoredModel], None], signed: StoredModel, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    attack(signed)
    with pytest.raises(SignatureError, match=r"^its signature does not fit: ."):
        verify_signature(signed.directory, keys.public)
    assert verify.main([str(signed.directory), str(keys.public)]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("its signature does not fit: ")
    assert "Traceback" not in said


def test_the_signature_of_another_version_with_the_same_files_does_not_fit(
    signed: StoredModel, keys: Keys, tmp_path: Path
) -> None:
    other = stored(tmp_path, "2")
    shutil.copy(signed.directory / SIGNATURE, other.directory / SIGNATURE)
    with pytest.raises(SignatureError, match=r"does not fit: .*version\.json"):
        verify_signature(other.directory, keys.public)


def test_the_signature_of_somebody_else_does_not_fit(signed: StoredModel, tmp_path: Path) -> None:
    others = Keys.make(tmp_path / "others")
    with pytest.raises(SignatureError, match="does not fit: Key mismatch"):
        verify_signature(signed.directory, others.public)
    sign(signed.directory, others.private)
    verify_signature(signed.directory, others.public)


def test_an_old_version_under_the_name_of_a_new_one_is_not_found(signed: StoredModel, tmp_path: Path) -> None:
    wanted = ModelVersion("m", "2", 2, "run", "source")
    signed.directory.rename(signed.directory.with_name(wanted.directory_name))
    assert ModelStore(tmp_path, "m").find(wanted) is None


def test_a_version_without_signature_is_refused_where_it_is_required(tmp_path: Path, keys: Keys) -> None:
    made = stored(tmp_path)
    assert not Check(made, keys.public).result(required=False)
    with pytest.raises(SignatureError, match=r"^it is not signed$"):
        Check(made, keys.public).result(required=True)


def test_a_wrong_signature_is_refused_where_none_is_required_too(signed: StoredModel, keys: Keys) -> None:
    swap_a_file(signed)
    with pytest.raises(SignatureError, match=r"^its signature does not fit: "):
        Check(signed, keys.public).result(required=False)


def test_nothing_unsigned_is_left_among_the_files_of_a_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, "m")
    version = ModelVersion("m", "3", 7, "run", "source")
    staging = store.stage(version)
    (staging / "model" / SIGNATURES).mkdir(parents=True)
    (staging / "model" / "MLmodel").write_text("flavors: {}\n")
    for name in ("3-7.sig", "2-6.sig", "model.py"):
        (staging / "model" / SIGNATURES / name).write_text(name)
    made = store.commit(version, staging)
    assert (made.directory / SIGNATURE).read_text() == "3-7.sig"
    assert [path.name for path in made.model_path.iterdir()] == ["MLmodel"]


@pytest.mark.parametrize("name", [f"{SIGNATURES}/3-7.sig/MLmodel", SIGNATURES])
def test_what_only_has_the_name_of_a_signature_keeps_nobody_from_signing(name: str, tmp_path: Path, keys: Keys) -> None:
    store = ModelStore(tmp_path, "m")
    version = ModelVersion("m", "3", 7, "run", "source")
    staging = store.stage(version)
    for file in ("MLmodel", name):
        (staging / "model" / file).parent.mkdir(parents=True, exist_ok=True)
        (staging / "model" / file).touch()
    made = store.commit(version, staging)
    assert not Check(made, keys.public).result(required=False)
    sign(made.directory, keys.private)
    assert Check(made, keys.public).result(required=True)


# --- signing in the registry -------------------------------------------------------------------------------------


def files_of(version: str, registered: RegisteredModel) -> mlflow.store.artifact.artifact_repo.ArtifactRepository:
    """The files that the registry has of a version: what somebody who may write the experiment can overwrite."""
    uri = ModelsArtifactRepository.get_underlying_uri(f"models:/{registered.name}/{version}")
    return mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(uri)


def overwrite(version: str, registered: RegisteredModel, directory: Path) -> None:
    """Have a version load other code."""
    files = files_of(version, registered)
    (name,) = [file.path for file in files.list_artifacts() if file.path.endswith(".py")]
    code = Path(files.download_artifacts(name, dst_path=str(directory)))
    code.write_text(code.read_text() + "\n# evil\n")
    files.log_artifact(str(code))


@pytest.fixture
def promoted(registered: RegisteredModel, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Sign a version of the test's model; more arguments go along."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)

    def run(suffix: str, *arguments: str) -> int:
        return promote.main([f"models:/{registered.name}{suffix}", f"--key={keys.private}", *arguments])

    return run


def champion(registered: RegisteredModel) -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(registered.name, "champion").version)


def test_what_a_run_approved_of_is_signed_and_becomes_the_champion(
    registered: RegisteredModel, promoted: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = (registered.register("search", **EXAMPLE) for _ in range(2))
    registered.point_to(first)
    assert promoted("@approved", "--alias=champion") == 0
    assert "signed" not in capfd.readouterr().out, "there is none"
    mlflow.MlflowClient().set_registered_model_alias(registered.name, "approved", second)
    assert promoted("@approved", "--alias=champion") == 0
    assert capfd.readouterr().out == f"signed: version {second} of {registered.name}\n"
    assert champion(registered) == second
    (name,) = [file.path for file in files_of(second, registered).list_artifacts(SIGNATURES)]
    assert name.startswith(f"{SIGNATURES}/{second}-")
    assert mlflow.MlflowClient().get_registered_model(registered.name).aliases == {"champion": second}


def test_what_a_run_approved_of_before_is_not_promoted_after_somebody_has_chosen_another(
    registered: RegisteredModel, promoted: Callable[..., int]
) -> None:
    first, second = (registered.register("search", **EXAMPLE) for _ in range(2))
    mlflow.MlflowClient().set_registered_model_alias(registered.name, "approved", second)
    for _ in range(2):
        assert promoted(f"/{first}", "--alias=champion", "--withdraw=approved") == 0
    assert promoted("@approved", "--alias=champion") == 0
    assert champion(registered) == first


def test_a_version_that_is_not_there_and_one_that_was_changed_are_not_promoted(
    registered: RegisteredModel,
    promoted: Callable[..., int],
    keys: Keys,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = registered.register("search", **EXAMPLE)
    assert promoted("/77", "--alias=champion") == 1
    assert f"the registry has no version 77 of {registered.name}" in capfd.readouterr().err
    others = Keys.make(tmp_path / "others")
    trusted = [f"--signed-by={others.public}", f"--signed-by={keys.public}"]
    assert promoted(f"/{first}", *trusted) == 1, "it never was signed"
    assert promoted(f"/{first}") == 0
    assert promoted(f"/{first}", *trusted) == 0
    assert promoted(f"/{first}", trusted[0]) == 1, "somebody else signed it"
    overwrite(first, registered, tmp_path)
    capfd.readouterr()
    assert promoted(f"/{first}", *trusted) == 1
    assert "its signature does not fit" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("directory has no MLmodel")]
)
def test_what_keeps_a_version_from_being_signed_is_said_in_one_line_and_nothing_is_promoted(
    error: Exception,
    registered: RegisteredModel,
    promoted: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = (registered.register("search", **EXAMPLE) for _ in range(2))
    registered.point_to(first)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(promote.signature, "sign", fail)
    assert promoted(f"/{second}", "--alias=champion") == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"is not signed: {error}")
    assert champion(registered) == first


# --- what is fetched ----------------------------------------------------------------------------------------------


def test_what_was_refused_is_fetched_again_when_somebody_has_said_so_even_during_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ModelVersion("m", "1", 1, "run", "source")
    store = ModelStore(tmp_path, "m")
    found: list[Champion] = []
    settings = SimpleNamespace(tracking_uri="http://localhost", model=ModelUri("m", alias="champion"))
    refresher = Refresher(settings, store, SimpleNamespace(say=lambda *_: None), found.append)  # type: ignore[arg-type]
    monkeypatch.setattr(refresher, "_registry", SimpleNamespace(champion=lambda: version))
    statuses = [1, 0, 0]

    def fetch(command: list[str], **_: object) -> SimpleNamespace:
        if len(statuses) == 2:
            refresher.forget()
        (Path(command[-1]) / "model").mkdir()
        (Path(command[-1]) / "model" / "MLmodel").touch()
        return SimpleNamespace(returncode=statuses.pop(0))

    monkeypatch.setattr(subprocess, "run", fetch)
    refresher._refresh()
    assert found == [], "a download that fails is tried again"
    for _ in range(4):
        refresher._refresh()
        store.remove(found[-1].model)
    assert [one.is_new for one in found] == [True, True]


# --- what the server does ----------------------------------------------------------------------------------------


def start(servers: Servers, registered: RegisteredModel, keys: Keys, **environment: str) -> Server:
    variables = {"SERVING_REQUIRE_SIGNATURE": "true", "SERVING_SIGNING_KEY": str(keys.public), **environment}
    return servers.start(
        MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name, SERVING_WORKERS="1", **variables
    )


@pytest.mark.timing
def test_a_champion_that_was_overwritten_does_not_replace_the_one_that_serves_until_it_is_signed_again(
    servers: Servers, registered: RegisteredModel, promoted: Callable[..., int], keys: Keys, tmp_path: Path
) -> None:
    first = registered.register("search", **EXAMPLE)
    assert promoted(f"/{first}") == 0
    server = start(servers, registered, keys)
    assert server.request("/model").json["signed"] is True
    second = registered.register("search", **EXAMPLE)
    said = f"version {second} was rejected: it is not signed"
    server.wait_for(lambda: server.request("/model").json["rejected"] == said, "what is not signed yet is refused")
    assert server.metrics()[REFUSED] == 1
    assert promoted(f"/{second}") == 0
    overwrite(second, registered, tmp_path)
    server.process.send_signal(signal.SIGHUP)
    said = f"version {second} was rejected: its signature does not fit: "
    server.wait_for(lambda: said in str(server.request("/model").json["rejected"]), "what was overwritten is refused")
    assert server.metrics()[REFUSED] == 2
    told = server.request("/model").json
    assert (told["version"], told["signed"]) == (first, True)
    (last,) = [entry for entry in server.logged() if "does not fit" in entry.get("reason", "")]
    assert (last["message"], last["version"]) == ("a model version was rejected", second)
    assert server.serves(first)
    assert promoted(f"/{second}") == 0
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.serves(second), "what somebody has looked at and signed is served")


@pytest.mark.timing
def test_without_signatures_who_may_write_the_files_decides_what_is_served(
    servers: Servers, registered: RegisteredModel, keys: Keys, tmp_path: Path
) -> None:
    first = registered.register("search", **EXAMPLE)
    overwrite(first, registered, tmp_path)
    server = start(servers, registered, keys, SERVING_REQUIRE_SIGNATURE="false")
    assert server.serves(first)
    assert server.request("/model").json["signed"] is False


@pytest.mark.timing
def test_what_lies_on_its_disk_is_looked_at_before_it_is_loaded_again(
    servers: Servers, registered: RegisteredModel, promoted: Callable[..., int], keys: Keys
) -> None:
    first = registered.register("search", **EXAMPLE)
    assert promoted(f"/{first}") == 0
    server = start(servers, registered, keys)
    (directory,) = (servers.directory / "models" / registered.name).glob(f"{first}-*")
    (directory / "model" / "evil.py").write_text("print('evil')\n")
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)
    server.wait_for(lambda: server.answers("/ready", 503), "nothing serves")
    server.wait_for(lambda: server.answers("/ready", 200), "it was fetched again")
    assert [entry["reason"] for entry in server.logged() if entry["message"] == "a model version was rejected"]
    assert not (directory / "model" / "evil.py").exists()
    assert server.request("/model").json["signed"] is True


@pytest.mark.timing
def test_a_disk_of_before_there_were_signatures_is_no_hindrance(
    servers: Servers, registered: RegisteredModel, promoted: Callable[..., int], keys: Keys
) -> None:
    first = registered.register("search", **EXAMPLE)
    start(servers, registered, keys, SERVING_REQUIRE_SIGNATURE="false").stop()
    assert promoted(f"/{first}") == 0
    server = start(servers, registered, keys, SERVING_MODEL_REFRESH_SECONDS="3600")
    assert server.serves(first)
    assert server.request("/model").json["signed"] is True


@pytest.mark.timing
def test_what_nobody_signed_on_disk_is_not_even_started_where_that_is_required(servers: Servers, keys: Keys) -> None:
    models = servers.directory / "models"
    models.mkdir()
    for version in ("1", "2"):
        store_model(models, "search", version=version, **EXAMPLE)
    variables = {"SERVING_REQUIRE_SIGNATURE": "true", "SERVING_SIGNING_KEY": str(keys.public)}
    server = servers.start(ready=False, **variables, SERVING_WORKERS="1")
    server.wait_for(lambda: server.answers("/health", 200), "it answers")
    assert [entry["version"] for entry in server.logged() if entry["message"] == "starting"] == ["none"]


@pytest.mark.timing
def test_a_wrong_signature_on_disk_is_refused_where_none_is_required(servers: Servers, keys: Keys) -> None:
    models = servers.directory / "models"
    models.mkdir()
    made = store_model(models, "search", **EXAMPLE)
    sign(made.directory, keys.private)
    add_a_file(made)
    server = servers.start(ready=False, SERVING_SIGNING_KEY=str(keys.public), SERVING_WORKERS="1")
    server.wait_for(lambda: server.metrics().get(REFUSED, 0) == 1, "the refusal")
    assert "its signature does not fit" in server.request("/ready").json["message"]
