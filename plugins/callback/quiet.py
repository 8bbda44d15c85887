# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Output for people: what was changed and what took long, a line each; everything else on request."""

from __future__ import annotations

import sys
import time
from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as DefaultCallback

DOCUMENTATION = r"""
name: quiet
type: stdout
short_description: What was changed and what took long, a line each
description:
  - A task that changed nothing is not shown, nor is one that was skipped. Failures, warnings, differences and the recap
    are those of the default callback; with C(-v) so is everything else.
extends_documentation_fragment: [default_callback, result_format_callback]
"""

LONG_SECONDS = 5.0
"""What takes so long is shown although it changes nothing."""


class CallbackModule(DefaultCallback):  # type: ignore[misc]  # Ansible is not typed
    """What Ansible loads."""

    CALLBACK_NAME = "quiet"

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0

    def _is_verbose(self) -> bool:
        return bool(self._display.verbosity)

    # --- what runs now, where somebody watches ---

    def _show_transient(self, text: str) -> None:
        if sys.stdout.isatty():
            # Back to the start of the line, and erase to its end: the next line takes its place.
            sys.stdout.write(f"\r\x1b[K{text[: self._display.columns]}")
            sys.stdout.flush()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play begins."""
        if self._is_verbose():
            super().v2_playbook_on_play_start(play)
            return
        self._play = play
        self._show_transient("")
        self._display.display(play.get_name().strip(), color=constants.COLOR_HIGHLIGHT)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002 - given by name
        """A task begins."""
        self._task_begins(task, "TASK")

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """A handler begins."""
        self._task_begins(task, "RUNNING HANDLER")

    def _task_begins(self, task: Any, prefix: str) -> None:
        self._began = time.monotonic()
        if self._is_verbose():
            self._task_start(task, prefix=prefix)
            return
        # The banner is printed when the task turns out to have something to say.
        self._task_type_cache[task._uuid] = prefix
        self._last_task_name = task.get_name().strip()
        self._show_transient(f"         {self._last_task_name} …")

    def _print_task_banner(self, task: Any) -> None:
        self._show_transient("")
        super()._print_task_banner(task)

    # --- what came of it ---

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task ended well on a host."""
        if self._is_verbose():
            super().v2_runner_on_ok(result)
            return
        self._show_transient("")
        self._handle_warnings_and_exception(result)
        if result.task.action in constants._ACTION_DEBUG:
            self._display.display(f"\n{self._said(result.result)}")
            return
        seconds = time.monotonic() - self._began
        changed = result.result.get("changed", False)
        if changed or seconds >= LONG_SECONDS:
            color = constants.COLOR_CHANGED if changed else constants.COLOR_OK
            line = f"{seconds:6.1f} s  {self.host_label(result)}  {result.task.get_name().strip()}"
            self._display.display(line if changed else f"{line}: nothing to change", color=color)

    def _said(self, result: dict[str, Any]) -> str:
        """What a task of debug is to say."""
        message = result.get("msg")
        if message is None:
            message = {name: value for name, value in result.items() if not name.startswith("_") and name != "changed"}
        return message.rstrip() if isinstance(message, str) else str(self._dump_results({"msg": message}))

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A task was skipped on a host."""
        if self._is_verbose():
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """One round of a loop ended well."""
        if self._is_verbose():
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """One round of a loop was skipped."""
        if self._is_verbose():
            super().v2_runner_item_on_skipped(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """A file of tasks was included."""
        if self._is_verbose():
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The run has ended."""
        self._show_transient("")
        super().v2_playbook_on_stats(stats)
