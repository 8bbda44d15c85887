"""Every command of the Makefile is the line of Ansible that it promises."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAYBOOK = "ansible-playbook -i inventories/local"
WITH_POSTGRES = f"{PLAYBOOK} -i inventories/postgres.yml"
LINES = {
    "site": f"{PLAYBOOK} site.yml",
    "dev": f"{PLAYBOOK} site.yml --tags dev",
    "postgres": f"{PLAYBOOK} site.yml --tags postgres",
    "train": f"{PLAYBOOK} site.yml --tags train",
    "serve": f"{PLAYBOOK} site.yml --tags serve",
    "monitoring": f"{PLAYBOOK} site.yml --tags monitoring",
    "full": f"{PLAYBOOK} site.yml --tags full",
    "dev-postgres": f"{WITH_POSTGRES} site.yml --tags dev,postgres",
    "dev-full": f"{WITH_POSTGRES} site.yml --tags full",
    "down": f"{PLAYBOOK} playbooks/down.yml",
    "down-volumes": f"{PLAYBOOK} playbooks/down_volumes.yml",
    "status": f"{PLAYBOOK} playbooks/status.yml",
    "components": f"{PLAYBOOK} playbooks/components.yml",
    "logs": f"{PLAYBOOK} playbooks/logs.yml\n.local/logs",
    "logs-mlflow": f"{PLAYBOOK} playbooks/logs.yml -e service=mlflow\n.local/logs",
    "logs-serve": f"{PLAYBOOK} playbooks/logs.yml -e service=serve\n.local/logs",
    "logs-train": f"{PLAYBOOK} playbooks/logs.yml -e service=train\n.local/logs",
    "restart-serve": f"{PLAYBOOK} playbooks/restart.yml -e service=serve",
    "restart-serving": f"{PLAYBOOK} playbooks/restart.yml -e service=serving",
    "shell-train": f"{PLAYBOOK} playbooks/shell_train.yml --tags train\n.local/shell-train",
    "tokens": f"{PLAYBOOK} playbooks/tokens.yml",
    "backup": f"{PLAYBOOK} playbooks/backup.yml",
    "restore": f"{PLAYBOOK} playbooks/restore.yml",
    "docker-build": f"{PLAYBOOK} playbooks/images.yml --tags full,train",
    "test-docker": f"{PLAYBOOK} playbooks/status.yml playbooks/summary.yml",
}


def dry_run(*arguments: str) -> str:
    """What `make -n` prints, apart from the setting-up of .venv, one space between words."""
    result = subprocess.run(
        ["make", "--just-print", "--no-print-directory", "--old-file=setup", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(re.sub(r" +", " ", line).strip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("target", LINES)
def test_a_target_is_one_line_of_ansible(target: str) -> None:
    assert dry_run(target) == LINES[target]
    for playbook in re.findall(r"\S+\.yml", LINES[target]):
        assert (ROOT / playbook).is_file()


def test_the_inventory_and_further_arguments_go_to_every_playbook() -> None:
    shown = dry_run("status", "INVENTORY=inventories/production", "ARGS=--limit one")
    assert shown == "ansible-playbook -i inventories/production --limit one playbooks/status.yml"


@pytest.mark.parametrize("playbook", ["shell_train.yml", "images.yml"])
def test_a_playbook_that_looks_at_the_settings_knows_those_of_every_role(playbook: str) -> None:
    def roles(path: Path) -> set[str]:
        return {item["role"] for play in yaml.safe_load(path.read_text()) for item in play.get("roles", [])}

    assert roles(ROOT / "playbooks" / playbook) == roles(ROOT / "site.yml")


@pytest.mark.parametrize("target", ["down-volumes", "restore"])
def test_what_asks_takes_its_answer_from_confirm(target: str) -> None:
    assert dry_run(target, "CONFIRM=yes") == f"{LINES[target]} -e confirm=yes"


def test_tokens_are_made_and_revoked_by_the_name_of_their_client() -> None:
    assert dry_run("token", "NAME=shop") == f"{PLAYBOOK} playbooks/token.yml -e client='shop'"
    wanted = f"{PLAYBOOK} playbooks/revoke.yml -e client='shop' -e digest='3fa9'"
    assert dry_run("revoke", "NAME=shop", "DIGEST=3fa9") == wanted


def test_a_version_is_promoted_by_its_model_and_number() -> None:
    wanted = f"{PLAYBOOK} playbooks/promote.yml -e model='code-search' -e version='3'"
    assert dry_run("promote", "NAME=code-search", "VERSION=3") == wanted


def test_wheels_are_brought_for_a_model_and_number() -> None:
    wanted = f"{PLAYBOOK} playbooks/wheels.yml -e model='wine' -e version='3'"
    assert dry_run("wheels", "NAME=wine", "VERSION=3") == wanted


def test_a_secret_is_made_anew_by_its_name_for_every_service() -> None:
    wanted = f"{PLAYBOOK} playbooks/rotate.yml --tags full -e secret='postgres_password'"
    assert dry_run("rotate", "NAME=postgres_password") == wanted


def test_a_token_is_shown_by_one_task_and_logged_by_none() -> None:
    (play,) = yaml.safe_load((ROOT / "playbooks" / "token.yml").read_text())
    (make,) = (task for task in play["tasks"] if "api_tokens" in task)
    assert make["no_log"] is True
    showing = [task for task in play["tasks"] if "made" in str(task.get("ansible.builtin.debug"))]
    assert [task["ansible.builtin.debug"] for task in showing] == [{"msg": "{{ made.token }}"}]


def test_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {name for line in shown.splitlines() for name in re.split(r"  +", line)[0].split()}
    # Their patterns stand for one target for each service.
    wanted = {re.sub(r"^(logs|restart)-\w+$", r"\1-SERVICE", target) for target in LINES}
    assert wanted <= listed
