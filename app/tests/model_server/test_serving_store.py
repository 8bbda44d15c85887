"""What the server keeps on its disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_server.common.store import VERSIONS_KEPT, ModelStore, ModelVersion, StoredModel


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path, "m")


def version(number: int, created: int | None = None) -> ModelVersion:
    return ModelVersion("m", str(number), number if created is None else created, "run", "source")


def add(store: ModelStore, wanted: ModelVersion) -> StoredModel:
    staging = store.stage(wanted)
    (staging / "model").mkdir()
    (staging / "model" / "MLmodel").write_text("flavors: {}\n")
    return store.commit(wanted, staging)


def test_a_committed_version_is_found(store: ModelStore) -> None:
    assert store.find(version(1)) is None
    add(store, version(1))
    found = store.find(version(1))
    assert found is not None
    assert (found.model_path / "MLmodel").is_file()


def test_a_download_that_died_is_never_found(store: ModelStore) -> None:
    staging = store.stage(version(1))
    (staging / "version.json").write_text("{}")
    assert store.find(version(1)) is None
    assert store.candidates() == []


def test_a_download_without_a_model_is_not_committed(store: ModelStore) -> None:
    with pytest.raises(ValueError, match="MLmodel"):
        store.commit(version(1), store.stage(version(1)))


def test_a_damaged_version_is_passed_over(store: ModelStore) -> None:
    good, damaged = add(store, version(1)), add(store, version(2))
    (damaged.directory / "version.json").write_text("{")
    assert store.candidates() == [good]


def test_the_version_that_was_last_good_comes_first(store: ModelStore) -> None:
    first, second, third = (add(store, version(number)) for number in (1, 2, 3))
    assert store.candidates() == [third, second, first]
    store.set_current(first)
    assert store.candidates() == [first, third, second]


def test_a_namesake_of_a_deleted_model_is_another_version(store: ModelStore) -> None:
    add(store, version(1, created=100))
    assert store.find(version(1, created=200)) is None


def test_old_versions_are_pruned_but_never_the_current_one(store: ModelStore) -> None:
    models = [add(store, version(number)) for number in range(1, VERSIONS_KEPT + 3)]
    store.set_current(models[0])
    kept = store.candidates()
    assert len(kept) == VERSIONS_KEPT
    assert kept[0] == models[0]


def test_models_of_another_name_are_apart(store: ModelStore, tmp_path: Path) -> None:
    add(store, version(1))
    assert ModelStore(tmp_path, "other").candidates() == []
