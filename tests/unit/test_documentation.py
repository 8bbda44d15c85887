"""The documentation is true: its settings, links, commands and names are those of the code.

Run as a program, this file writes the tables of docs/settings.md anew.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "settings.md"
BEGIN = "<!-- Written by tests/unit/test_documentation.py from the argument specifications of the roles. -->\n"
END = "<!-- End of what is written. -->\n"
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "roles/*/README.md", "app/**/README.md")
    for path in ROOT.glob(pattern)
)

Options = dict[str, dict[str, Any]]


def specification(role: str) -> dict[str, Any]:
    """The entry point ``main`` of a role's ``meta/argument_specs.yml``."""
    document = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    return dict(document["argument_specs"]["main"])


def all_settings() -> Options:
    return {name: option for role in ROLES for name, option in specification(role).get("options", {}).items()}


def roles_in_order() -> list[str]:
    """Roles as site.yml runs them, then the others."""
    plays = yaml.safe_load((ROOT / "site.yml").read_text())
    run = [item["role"] for play in plays for item in play.get("roles", [])]
    return [*run, *(role for role in ROLES if role not in run)]


def code(text: object) -> str:
    return "`{}`".format(str(text).replace("|", r"\|"))


def row(name: str, option: dict[str, Any]) -> str:
    kind = f"list of {option['elements']}" if "elements" in option else option["type"]
    if "choices" in option:
        kind = ", ".join(code(choice) for choice in option["choices"])
    default = option.get("default")
    if default is None:
        shown = "none"
    elif isinstance(default, str):
        shown = code(default or '""')
    else:
        shown = code(json.dumps(default))
    meaning = re.sub(r"C\(([^)]*(?:\(\))?)\)", r"`\1`", option["description"]).replace("|", r"\|")
    return f"| `{name}` | {kind} | {shown} | {meaning} |\n"


def settings_tables() -> str:
    text = ""
    for role in roles_in_order():
        options = specification(role).get("options", {})
        if options:
            text += f"\n## {role}\n\n{specification(role)['short_description']}.\n\n"
            text += "| setting | type | default | meaning |\n|---|---|---|---|\n"
            text += "".join(row(name, option) for name, option in options.items())
    return f"{text}\n"


def links(page: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def code_of(page: str) -> str:
    """All code of a page, blocks and spans, one a line."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *spans])


def test_the_tables_of_settings_are_what_the_roles_specify() -> None:
    written = SETTINGS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == settings_tables(), f"run: python {Path(__file__).relative_to(ROOT)}"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_a_readme_and_an_argument_specification(role: str) -> None:
    for name in ("README.md", "meta/argument_specs.yml"):
        assert (ROOT / "roles" / role / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file(page: str) -> None:
    missing = [target for target in links(page) if not ((ROOT / page).parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_is_named_exists(page: str) -> None:
    targets = re.findall(r"^([a-z][a-z %-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    # A pattern stands for one target for each service.
    known = "|".join(name.replace("%", "[a-z_-]*") for line in targets for name in line.split())
    named = set(re.findall(r"^make ([a-z][a-z-]*)", code_of(page), flags=re.MULTILINE))
    assert [name for name in named if not re.fullmatch(known, name)] == []


# The page that also names what was elsewhere has a test of its own: test_from_compose.py.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/from-compose.md"])
def test_every_name_that_looks_like_a_setting_stands_in_the_code(page: str) -> None:
    files = [path for folder in ("roles", "inventories") for path in (ROOT / folder).rglob("*.yml")]
    known = {name for path in files for name in re.findall(r"\w+", path.read_text())}
    prefixes = "|".join(["mlops", *ROLES])
    named = set(re.findall(rf"(?<![\w<])(?:{prefixes})_[a-z0-9_]*[a-z0-9]\b", code_of(page)))
    assert named - {"host_vars"} <= known


def test_the_worked_example_of_a_service_is_one_that_the_module_takes() -> None:
    # Only pytest knows where these are.
    import systemd_container
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
    from ansible.module_utils.container_unit import ContainerSpec

    page = (ROOT / "docs" / "systemd_container.md").read_text()
    (block,) = (
        text for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL) if "systemd_container:" in text
    )
    (task,) = yaml.safe_load(textwrap.dedent(block))
    validator = ArgumentSpecValidator(systemd_container.ARGUMENT_SPEC)
    result = validator.validate(task["systemd_container"])
    assert result.error_messages == []
    ContainerSpec.from_params({**result.validated_parameters, "image": "mlops-probe:resolved"})


def test_the_example_inventory_uses_settings_that_exist() -> None:
    text = (ROOT / "inventories" / "production" / "group_vars" / "mlops.yml").read_text()
    named = set(re.findall(r"^(?:# )?([a-z]+_[a-z_]+):", text, flags=re.MULTILINE))
    assert named
    assert named <= all_settings().keys()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_path_or_user_directory_of_one_machine(page: str) -> None:
    assert re.findall(r"/(?:home|work|Users)/\S+", (ROOT / page).read_text()) == []


if __name__ == "__main__":
    page = SETTINGS.read_text()
    before, _, rest = page.partition(BEGIN)
    SETTINGS.write_text(before + BEGIN + settings_tables() + END + rest.partition(END)[2])
