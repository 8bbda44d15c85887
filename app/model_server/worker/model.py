"""A loaded MLflow model and the two ways of calling it: MLflow's own, and the short one where it is exact."""

from __future__ import annotations

import inspect
import json
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import mlflow.pyfunc
import orjson
import pandas
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_params_schema
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.pyfunc.model import _FunctionPythonModel, _PythonModelPyfuncWrapper
from mlflow.pyfunc.utils.serving_data_parser import is_unified_llm_input
from mlflow.types.type_hints import _is_type_hint_from_example

from model_server.common.store import StoredModel
from model_server.worker import encoding, protocol, v2
from model_server.worker.budget import Budget
from model_server.worker.drift import DriftProfile, Observer
from model_server.worker.errors import RequestError, SchemaError, TooLargeError
from model_server.worker.fast_path import DECLINED, Plan, plan_for, raw_inputs
from model_server.worker.v2_form import Form

_logger = logging.getLogger(__name__)

_EXAMPLE_FILE = "serving_input_example.json"
_EXPECTED_PREDICTIONS = "example_predictions"
_RELATIVE_TOLERANCE = 1e-3
_ABSOLUTE_TOLERANCE = 1e-6
_AFTER_THE_MODEL = "_response_to_dict"
"""Where MLflow checks what a chat model or an agent answered."""


class ExampleError(Exception):
    """The model does not answer its own input example."""


class ExampleMismatchError(Exception):
    """The model answers its own input example otherwise than at training time."""


@dataclass(slots=True)
class Invocation:
    """One request, read and ready to be predicted."""

    call: Callable[[], Any]
    """Returns the predictions; raises what the model raises."""
    rows: int
    path: str
    """``fast`` or ``pyfunc``."""
    data: Any
    """What the model is given, for the drift profile."""
    wrapped: bool = True
    """Answer ``{"predictions": …}``; false for MLflow's unified LLM input, which is answered bare."""
    reply: v2.Reply | None = None
    """How it is answered in the V2 protocol, when it was asked so."""


class ServedModel:
    """A model version in memory.

    Args:
        stored: where it lies.
        pyfunc: the model.
        max_rows: rows one request may have.
        max_body_bytes: what a request body may have; bounds what it may unfold to.
    """

    def __init__(self, stored: StoredModel, pyfunc: PyFuncModel, max_rows: int, max_body_bytes: int) -> None:
        self.stored = stored
        self.version = stored.version
        self.loaded_at = time.time()
        self.doubt = ""
        """Why it may not be fit to serve, though it serves."""
        self.pyfunc = pyfunc
        self._input_schema = pyfunc.metadata.get_input_schema()
        columns = None if self._input_schema is None else len(self._input_schema.inputs)
        self._budget = Budget.of(max_rows, max_body_bytes, columns)
        self._small_budget = Budget.small(max_rows, columns)
        self._params_schema = pyfunc.metadata.get_params_schema()
        self._plan, self._predict_fast = self._short_way()
        self.form = Form(self._input_schema, pyfunc.metadata.get_output_schema())
        """Its signature as the V2 protocol has it."""
        self._code = _code_of(pyfunc)
        self.drift = DriftProfile.from_metadata(pyfunc.metadata.metadata or {}, self.version.version)

    @classmethod
    def load(cls, stored: StoredModel, max_rows: int, max_body_bytes: int) -> ServedModel:
        """Load a stored version. Raises whatever the model's code raises."""
        # As MLflow's server does: type hints such as list[datetime] are then read from JSON's strings.
        _MLFLOW_IS_IN_SERVING_ENVIRONMENT.set("true")
        pyfunc = mlflow.pyfunc.load_model(str(stored.model_path), suppress_warnings=True)
        return cls(stored, pyfunc, max_rows, max_body_bytes)

    # --- reading a request ---

    def read(self, media_type: str, body: bytes, *, small: bool = False) -> Invocation:
        """Turn a body into an invocation.

        Args:
            media_type: of the body.
            body: of a request.
            small: refuse with TooLargeError what costs more than a small request does.

        Raises:
            RequestError: when the body is not of the protocol, does not fit the signature or unfolds to too much.
        """
        budget = self._small_budget if small else self._budget
        if media_type == protocol.JSON:
            return self._read_json(body, protocol.decode_json(body, self._budget), budget)
        if media_type == protocol.CSV:
            frame = protocol.read_csv(body, self._input_schema, budget)
        elif small:
            # What it costs is not told by its size.
            raise TooLargeError("Parquet is never small.")
        else:
            frame = protocol.read_parquet(body, budget)
        return self._invocation("pyfunc", len(frame), frame, None)

    def read_v2(self, body: bytes, header_length: str | None, *, small: bool = False) -> Invocation:
        """Turn a body of the V2 protocol into an invocation; as :meth:`read`.

        Args:
            body: of a request.
            header_length: the header that says how much of it is JSON, or None.
            small: refuse with TooLargeError what costs more than a small request does.
        """
        budget = self._small_budget if small else self._budget
        question = v2.Question.read(body, header_length, self._budget, budget)
        known = self._params_schema.to_dict() if self._params_schema else ()
        names = {param["name"] for param in known}
        # Others are of the protocol or of a client.
        params = {name: value for name, value in question.parameters.items() if name in names}
        decoded = {**self.form.fields(question), **({"params": params} if params else {})}
        key = protocol.input_key(decoded)
        invocation = self._plain(key, decoded, budget) or self._as_mlflow_reads(key, decoded, budget)
        version = self.version
        invocation.reply = v2.Reply(question, version.name, version.version, self.form.output_names)
        return invocation

    def _read_json(self, body: bytes, decoded: dict[str, Any], budget: Budget) -> Invocation:
        if is_unified_llm_input(decoded):
            budget.check_json(body)
            parsed = self._parse_with_mlflow(decoded)
            self._params(parsed.params)
            return self._invocation("pyfunc", 1, parsed.data, parsed.params, wrapped=False)
        key = protocol.input_key(decoded)
        if invocation := self._plain(key, decoded, budget):
            return invocation
        if budget is self._small_budget:
            # The same values cost far more on MLflow's way.
            budget.check_json(body)
        return self._as_mlflow_reads(key, decoded, budget)

    def _plain(self, key: str, decoded: dict[str, Any], budget: Budget) -> Invocation | None:
        """The invocation by the short way, or None where that is not exact."""
        data = decoded[key]
        rows = protocol.count_rows(key, data)
        budget.check_rows(rows)
        params = self._params(decoded.get("params"))
        if self._plan is None or (plain := self._plan(key, data)) is DECLINED:
            return None
        return self._invocation("fast", rows, plain, params)

    def _as_mlflow_reads(self, key: str, decoded: dict[str, Any], budget: Budget) -> Invocation:
        data = decoded[key]
        budget.check_table(key, data)
        parsed = self._parse_with_mlflow(decoded)
        return self._invocation("pyfunc", protocol.count_rows(key, data), parsed.data, parsed.params)

    def _invocation(self, path: str, rows: int, data: Any, params: Any, *, wrapped: bool = True) -> Invocation:
        predict = self._predict_fast if path == "fast" else self._predict_pyfunc
        return Invocation(partial(self._ask, predict, data, params), rows, path, data, wrapped)

    def _parse_with_mlflow(self, decoded: dict[str, Any]) -> scoring_server.ParsedJsonInput:
        try:
            parsed: scoring_server.ParsedJsonInput = scoring_server._parse_json_data(
                decoded, self.pyfunc.metadata, self._input_schema
            )
        except MlflowException as error:
            raise protocol.schema_error(error.message, invalid_parameter=_is_invalid_parameter(error)) from None
        except Exception as error:  # noqa: BLE001 - MLflow's code on the client's input: what fails is the input
            raise protocol.schema_error(repr(error), invalid_parameter=False) from None
        return parsed

    def _params(self, params: Any) -> Any:
        if self._params_schema is None and params in (None, {}):
            return params
        try:
            return _enforce_params_schema(params, self._params_schema)
        except MlflowException as error:
            raise protocol.params_error(error.message, self._unfit(params)) from None

    def _unfit(self, params: Any) -> list[str]:
        """The names of the parameters whose values do not fit."""
        unfit = []
        for name, value in params.items() if isinstance(params, dict) else ():
            try:
                _enforce_params_schema({name: value}, self._params_schema)
            except MlflowException:
                unfit.append(name)
        return unfit

    # --- predicting ---

    def _ask(self, predict: Callable[[Any, Any], Any], data: Any, params: Any) -> Any:
        """Call the model.

        Raises:
            RequestError: when MLflow refuses the input before the model sees it, or the model says that it is invalid.
            Exception: whatever else the model raises.
        """
        try:
            return predict(data, params)
        except MemoryError:
            raise
        except Exception as error:
            if not self._reached_by(error):
                text = error.message if isinstance(error, MlflowException) else repr(error)
                raise protocol.schema_error(text, invalid_parameter=True) from None
            if isinstance(error, MlflowException) and error.get_http_status_code() == 400:
                raise SchemaError("Invalid input. The model refused it.", detail=error.message) from error
            raise

    def _reached_by(self, error: Exception) -> bool:
        """Whether an exception came out of the model, not of what MLflow does to the input on the way there."""
        if not self._code:
            return True
        frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
        return any(code in self._code or code.co_name == _AFTER_THE_MODEL for code in frames)

    def _predict_pyfunc(self, data: Any, params: Any) -> Any:
        return self.pyfunc.predict(data, params=params)

    def _short_way(self) -> tuple[Plan | None, Callable[[Any, Any], Any]]:
        """The plan for the input, and the model's innermost function that takes what the plan makes."""
        predict = self.pyfunc._predict_fn
        metadata = self.pyfunc.metadata
        if metadata._is_type_hint_from_example() or (metadata.metadata or {}).get("dependencies_schemas"):
            return None, predict
        implementation = self.pyfunc._model_impl
        if type(implementation) is not _PythonModelPyfuncWrapper:
            parameter = inspect.signature(predict).parameters.get("params")
            takes_params = parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            call = (lambda data, params: predict(data, params=params)) if takes_params else _without_params(predict)
            return plan_for(self._input_schema), call
        python_model, context = implementation.python_model, implementation.context
        hint = python_model.predict_type_hints.input
        call = _python_model_call(python_model, context)
        if metadata._is_signature_from_type_hint():
            return (None, call) if _is_type_hint_from_example(hint) else (raw_inputs, call)
        if hint == list[str]:
            return plan_for(self._input_schema, strings_as_list=True), call
        # Any other hint makes MLflow convert the data frame once more.
        return plan_for(self._input_schema) if hint in (None, pandas.DataFrame) else None, call

    # --- the model's own example ---

    def answer_example(self) -> bool:
        """Ask the model its own input example, as a request would; false when it was logged without one.

        Raises:
            ExampleError: when it does not answer.
            ExampleMismatchError: when it answers otherwise than at training time.
        """
        try:
            body = (self.stored.model_path / _EXAMPLE_FILE).read_bytes()
        except OSError:
            return False
        try:
            invocation = self.read(protocol.JSON, body)
            answer = json.loads(encoding.dumps(invocation.call()))
        except (Exception, SystemExit) as error:
            detail = error.detail or error.message if isinstance(error, RequestError) else repr(error)
            self.doubt = f"it does not answer its own input example: {detail}"
            raise ExampleError(self.doubt) from error
        metadata = self.pyfunc.metadata.metadata or {}
        if _EXPECTED_PREDICTIONS in metadata and not alike(answer, metadata[_EXPECTED_PREDICTIONS]):
            raise ExampleMismatchError("it answers its own input example otherwise than at training time")
        return True

    # --- describing it ---

    @property
    def observer(self) -> Observer | None:
        """The model's own ``observe`` for its drift profile, where it has one."""
        python_model = getattr(self.pyfunc._model_impl, "python_model", None)
        return getattr(python_model, "observe", None)

    def description(self) -> dict[str, Any]:
        """What ``GET /model`` answers."""
        metadata = self.pyfunc.metadata
        signature = metadata.signature
        return {
            "name": self.version.name,
            "version": self.version.version,
            "run_id": self.version.run_id or None,
            "loaded_since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded_at)),
            "mlflow_version": metadata.mlflow_version,
            "model_uuid": metadata.model_uuid,
            "fast_path": self._plan is not None,
            "signature": None
            if signature is None
            else {
                "inputs": signature.inputs and signature.inputs.to_dict(),
                "outputs": signature.outputs and signature.outputs.to_dict(),
                "params": signature.params and signature.params.to_dict(),
            },
            "input_example": self.example(),
            "doubt": self.doubt or None,
        }

    def example(self) -> Any:
        """The body of a request with the model's input example, or None."""
        try:
            return orjson.loads((self.stored.model_path / _EXAMPLE_FILE).read_bytes())
        except (OSError, ValueError):
            return None


def alike(actual: Any, expected: Any) -> bool:
    """Whether two JSON values agree, numbers within what another CPU's arithmetic may change."""
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        return (
            isinstance(actual, (int, float))
            and not isinstance(actual, bool)
            and math.isclose(actual, expected, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE)
        )
    if isinstance(expected, list):
        return isinstance(actual, list) and len(actual) == len(expected) and all(map(alike, actual, expected))
    if isinstance(expected, dict):
        return (
            isinstance(actual, dict)
            and actual.keys() == expected.keys()
            and all(alike(actual[key], expected[key]) for key in expected)
        )
    return bool(actual == expected)


def _code_of(pyfunc: PyFuncModel) -> frozenset[CodeType]:
    """The code that runs when the model itself is asked; empty where it cannot be told."""
    implementation = pyfunc._model_impl
    if isinstance(implementation, _PythonModelPyfuncWrapper):
        python_model = implementation.python_model
    elif type(implementation).__module__.startswith("mlflow.pyfunc.loaders."):
        python_model = implementation.get_raw_model()
    else:
        python_model = None
    if isinstance(python_model, _FunctionPythonModel):
        predict = python_model.func
    else:
        predict = pyfunc._predict_fn if python_model is None else python_model.predict
    code = getattr(inspect.unwrap(predict), "__code__", None)
    return frozenset() if code is None else frozenset({code})


def _python_model_call(python_model: Any, context: Any) -> Callable[[Any, Any], Any]:
    """``python_model.predict`` with the arguments that its signature takes, decided once."""
    predict = python_model.predict
    parameters = inspect.signature(predict).parameters
    takes_context = "context" in parameters
    if "params" in parameters:
        if takes_context:
            return lambda data, params: predict(context, data, params=params)
        return lambda data, params: predict(data, params=params)
    return _without_params(partial(predict, context) if takes_context else predict)


def _without_params(predict: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def call(data: Any, _params: Any) -> Any:
        return predict(data)

    return call


def _is_invalid_parameter(error: MlflowException) -> bool:
    return bool(error.error_code == "INVALID_PARAMETER_VALUE")
