"""Who carries out trials: Dask workers, on this host's cores."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from projects.search_settings import SearchSettings

if TYPE_CHECKING:
    from distributed import Client

#: How often a worker looks whether its trial was ended by others, in seconds.
_LOOK_SECONDS = 1.0
#: What an entry point has to end by itself once it is told to, in seconds.
_GRACE_SECONDS = 5.0
_LAST_LINES = 10


@dataclass(frozen=True, slots=True)
class Job:
    """One trial, as a worker gets it.

    Attributes:
        run_id: its MLflow run, made already.
        project: directory of the project.
        entry_point: of the project.
        parameters: all of them.
    """

    run_id: str
    project: str
    entry_point: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial's process ended.

    Attributes:
        status: its exit status, negative for a signal.
        seconds: how long it took.
        last_lines: of what it printed.
    """

    status: int
    seconds: float
    last_lines: tuple[str, ...]


def carry_out(job: Job) -> Outcome:
    """Run a trial's entry point to its end, on a Dask worker.

    It is ended when its run is: whoever marks the run as killed, ends the trial. What it prints is an artifact of the
    run, ``log.txt``.
    """
    from mlflow import MlflowClient
    from mlflow.projects.utils import get_entry_point_command, get_run_env_vars, load_project

    client = MlflowClient()
    with tempfile.TemporaryDirectory(prefix="trial-") as directory:
        # A copy, which it may write to.
        project = Path(directory) / "project"
        shutil.copytree(job.project, project, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        command = " ".join(
            get_entry_point_command(load_project(project), job.entry_point, dict(job.parameters), directory)
        )
        run = client.get_run(job.run_id).info
        log = Path(directory) / "log.txt"
        started = time.monotonic()
        with log.open("wb") as output:
            # It does not outlive its worker, and is the leader of a group, which ends with it.
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "bash", "-c", command],
                cwd=project,
                env=os.environ | get_run_env_vars(run.run_id, run.experiment_id),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while not _ended(process, _LOOK_SECONDS):
                    if client.get_run(job.run_id).info.status == "KILLED":
                        break
            finally:
                _end(process)
        seconds = time.monotonic() - started
        client.log_artifact(job.run_id, str(log))
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return Outcome(process.returncode, seconds, tuple(lines))


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        _ended(process, _GRACE_SECONDS)
    # What it started and left behind goes too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def workers(settings: SearchSettings) -> Iterator[tuple[Client, int]]:
    """Give a client of Dask workers, and how many trials they carry out at once.

    They live as long as the block: a process for each trial of one core, in which what it computes with
    has one thread. A worker that dies fails its trial, which is not repeated.
    """
    import dask
    from dask.system import cpu_count
    from distributed import Client, LocalCluster

    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    parallel = min(settings.search.parallel or cpu_count(), settings.search.trials)
    with (
        LocalCluster(
            n_workers=parallel,
            threads_per_worker=1,
            memory_limit=None,  # the container's is the limit
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, parallel
