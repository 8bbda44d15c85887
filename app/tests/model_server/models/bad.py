"""Does where it is served what the file ``does`` beside it says, while it is loaded or while it answers its example."""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import mlflow

SERVED = os.environ.get("MODEL_SERVER_MODEL")
FORKS = 25


def fork():
    """Leave a child that stays, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(3600)
        os._exit(0)


def fork_again_and_again():
    """Leave children without a parent, each of which forks again."""
    for _ in range(FORKS):
        if os.fork() == 0:
            os.setsid()
            fork()
            os._exit(0)
        fork()
    raise RuntimeError("it has forked")


def go_on_twice():
    """Go on in a child as if it were the worker, beside one that stays and a thread that never ends."""
    ignore_signals()
    fork()
    threading.Thread(target=time.sleep, args=(3600,)).start()
    os.fork()


def ignore_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


def hang():
    ignore_signals()
    fork()
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(3600,)).start()
    time.sleep(3600)


def take_memory():
    # What the process has already, and a little.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 2**26,) * 2)
    taken = []
    while True:
        taken.append(bytearray(2**20))


def print_on_and_on():
    def run():
        # Not quite without end: the test keeps it.
        for _ in range(2_000):
            print("so it was, and " * 10, flush=True)

    threading.Thread(target=run, daemon=True).start()
    time.sleep(0.5)
    raise RuntimeError("it has printed")


def write_to_itself():
    for path in Path(SERVED).rglob("*"):
        if path.is_file() and path.name not in ("does", "version.json"):
            path.write_text("no more")
    raise RuntimeError("it has written")


def leave_files():
    tempfile.mkdtemp()
    tempfile.mkstemp()
    os.kill(os.getpid(), signal.SIGKILL)


DEEDS = {
    "nothing": lambda: None,
    "_exit": lambda: os._exit(0),
    "exit": lambda: sys.exit(0),
    "abort": os.abort,
    "be killed": leave_files,
    "kill the parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "kill the group": lambda: os.killpg(0, signal.SIGKILL),
    "close descriptors": lambda: os.closerange(0, 4096),
    "fork": fork_again_and_again,
    "take memory": take_memory,
    "print": print_on_and_on,
    "write to itself": write_to_itself,
    "go on twice": go_on_twice,
    "hang": hang,
}


class Bad(mlflow.pyfunc.PythonModel):
    def __init__(self):
        self._when, self._deed = "", ""
        if SERVED:
            with contextlib.suppress(OSError):
                self._when, self._deed = Path(SERVED, "does").read_text().split(": ")

    def load_context(self, context):  # noqa: ARG002
        if self._when == "loaded":
            DEEDS[self._deed]()

    def predict(self, model_input: list[str]):
        if self._when == "asked":
            DEEDS[self._deed]()
        return model_input


mlflow.models.set_model(Bad())
