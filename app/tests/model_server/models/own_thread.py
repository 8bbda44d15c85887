"""Answers from a thread that it starts when it is loaded, as TensorFlow and event loops do."""

import os
import queue
import random
import threading

import mlflow
import numpy as np


class OwnThread(mlflow.pyfunc.PythonModel):
    def load_context(self, context):  # noqa: ARG002
        self._questions = queue.Queue()
        self._generator = np.random.default_rng()
        self._loaded_by = os.getpid()
        threading.Thread(target=self._work, daemon=True).start()

    def predict(self, model_input: list[str]):
        reply = queue.Queue()
        self._questions.put((model_input, reply))
        return reply.get()

    def _work(self):
        while True:
            asked, reply = self._questions.get()
            drawn = [random.random(), np.random.random(), self._generator.random()]
            reply.put([{"process": os.getpid(), "loaded_by": self._loaded_by, "drawn": drawn} for _ in asked])


mlflow.models.set_model(OwnThread())
