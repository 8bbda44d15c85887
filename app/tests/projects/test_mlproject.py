"""What cannot be run as asked is told before anything is run, with the setting, the value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_projects import EXAMPLES
from projects.mlproject import complaints

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("entry_point", "parameters", "words"),
    [
        ("main", {}, ["training_parameters: figure is missing"]),
        ("main", {"figure": "much"}, ["training_parameters: figure is 'much'", "a number"]),
        ("main", {"figure": True}, ["training_parameters: figure is True", "a number"]),
        ("main", {"figure": "nan"}, ["training_parameters: figure is 'nan'"]),
        ("main", {"figure": 1, "txet": 2}, ["no parameter 'txet', did you mean 'text'", "figure, text"]),
        ("main", {"figure": 1, "text": ["a"]}, ["training_parameters: text is ['a']"]),
        ("mian", {}, ["training_entry_point: the project has no 'mian', did you mean 'main'", "main, fail"]),
        ("other.py", {}, ["training_entry_point: the project has no 'other.py'"]),
    ],
)
def test_wrong_requests(project: Path, entry_point: str, parameters: dict[str, Any], words: list[str]) -> None:
    (complaint,) = complaints(project, entry_point, parameters)
    assert all(word in complaint for word in words), complaint


@pytest.mark.parametrize(
    ("entry_point", "parameters"),
    [
        ("main", {"figure": "1e-3"}),
        ("main", {"figure": 1, "text": "two words; and more"}),
        ("fail", {}),
        ("train.py", {"anything": 1}),
    ],
)
def test_right_requests(project: Path, entry_point: str, parameters: dict[str, Any]) -> None:
    assert complaints(project, entry_point, parameters) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entry_points: [", "cannot be read"),
        ("just a text", "no dictionary with entry_points"),
        ("docker_env: {image: mine}\nentry_points: {main: {command: 'true'}}", "wants docker_env"),
        ("python_env: mine.yaml\nentry_points: {main: {command: 'true'}}", "'mine.yaml'"),
        ("entry_points: {main: {parameters: {}}}", "no command"),
    ],
)
def test_wrong_projects(project: Path, text: str, words: str) -> None:
    (project / "MLproject").write_text(text)
    (complaint,) = complaints(project, "main", {})
    assert complaint.startswith("training_project: ")
    assert words in complaint


def test_a_script_alone_is_a_project(project: Path) -> None:
    (project / "MLproject").unlink()
    assert complaints(project, "main", {"figure": 1}) == []
    (project / "train.py").unlink()
    (complaint,) = complaints(project, "main", {})
    assert "neither an MLproject nor a train.py" in complaint


def test_no_directory_is_no_project(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path / "missing", "main", {})
    assert "missing is no directory" in complaint


@pytest.mark.parametrize("name", ["wine", "boosting"])
def test_the_examples_are_projects(name: str) -> None:
    assert complaints(EXAMPLES / name, "main", {}) == []
