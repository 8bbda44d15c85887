"""What `ansible-playbook` prints, as a newcomer sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOK = """\
- name: The appliance
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Is skipped
      ansible.builtin.command: "true"
      when: false
    - name: Changes nothing
      ansible.builtin.command: "true"
      changed_when: false
    - name: Changes something
      ansible.builtin.command: "true"
      changed_when: true
    - name: Goes round
      ansible.builtin.command: "true"
      changed_when: item == 2
      loop: [1, 2]
    - name: Writes a file
      ansible.builtin.copy: {content: "new\\n", dest: "{{ playbook_dir }}/file"}
      diff: true
      check_mode: true
    - name: Says something
      ansible.builtin.debug:
        msg: |
          first line
          second line
    - name: Fails
      ansible.builtin.fail:
        msg: the reason
"""


def run(directory: Path, *arguments: str) -> str:
    playbook = directory / "playbook.yml"
    playbook.write_text(PLAYBOOK)
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    result = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory=localhost,", str(playbook), *arguments],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("quiet"))


def test_what_changed_is_a_line_with_its_time_and_host(output: str) -> None:
    (line,) = (line for line in output.splitlines() if line.endswith("Changes something"))
    seconds, unit, host, *_ = line.split()
    assert (float(seconds) >= 0, unit, host) == (True, "s", "localhost")


def test_a_loop_is_one_line(output: str) -> None:
    assert output.count("Goes round") == 1


def test_what_was_skipped_or_as_wanted_is_not_shown(output: str) -> None:
    assert "Is skipped" not in output
    # On a machine this slow it may be worth a line that it took long.
    assert "TASK [Changes nothing]" not in output
    assert "ok: [" not in output


def test_a_message_is_shown_as_it_is(output: str) -> None:
    assert "\nfirst line\nsecond line\n" in output


def test_differences_failures_and_the_recap_are_ansibles_own(output: str) -> None:
    assert "+new" in output
    assert "TASK [Fails]" in output
    assert "the reason" in output
    assert "changed=3 " in output.rpartition("PLAY RECAP")[2]


def test_on_request_everything_is_shown(tmp_path: Path) -> None:
    verbose = run(tmp_path, "-v")
    assert "TASK [Is skipped]" in verbose
    assert "ok: [localhost]" in verbose
