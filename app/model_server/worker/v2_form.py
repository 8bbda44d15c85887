"""A model's signature as tensors of the V2 protocol, and a question's tensors as input fields of MLflow's."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from model_server.worker.errors import SchemaError
from model_server.worker.v2 import BYTES, DATATYPES, DTYPES, Question, Tensor, octets

_COLUMNS = {
    DataType.boolean: "BOOL",
    DataType.integer: "INT32",
    DataType.long: "INT64",
    DataType.float: "FP32",
    DataType.double: "FP64",
    DataType.string: BYTES,
    DataType.datetime: BYTES,
    DataType.binary: BYTES,
}
_SIGNATURE = "GET /model shows the signature."


class Form:
    """A model's signature as tensors.

    Args:
        inputs: of the signature, or None without one.
        outputs: of the signature, or None without them.
    """

    def __init__(self, inputs: Schema | None, outputs: Schema | None) -> None:
        self._specs: list[ColSpec | TensorSpec] = list(inputs.inputs) if inputs else []
        self._named = bool(inputs and inputs.has_input_names())
        self._tensors = bool(inputs and inputs.is_tensor_spec())
        self._names = _names(self._specs, "input")
        self._outputs = list(outputs.inputs) if outputs else []
        self.output_names = _names(self._outputs, "output")

    def metadata(self) -> dict[str, list[dict[str, Any]]]:
        """Inputs and outputs as the metadata of a model have them; what is no tensor is left out."""
        return {
            "inputs": _described(self._names, self._specs),
            "outputs": _described(self.output_names, self._outputs),
        }

    def example(self) -> dict[str, Any] | None:
        """A request that fits, or None where the signature does not tell one."""
        described = self.metadata()["inputs"]
        if not described or len(described) != len(self._specs):
            return None
        for entry in described:
            entry["shape"] = [max(size, 1) for size in entry["shape"]]
            value = "text" if entry["datatype"] == BYTES else entry["datatype"] == "BOOL" or 0
            entry["data"] = [value] * math.prod(entry["shape"])
        return {"inputs": described}

    def fields(self, question: Question) -> dict[str, Any]:
        """A question as MLflow's protocol has it: one of its input fields.

        Raises:
            SchemaError: when its tensors are not those of the signature.
        """
        given = question.inputs
        if not self._specs:
            nested = {name: _nested(_as_texts(tensor), tensor.shape) for name, tensor in given.items()}
            return {"inputs": next(iter(nested.values())) if len(nested) == 1 else nested}
        self._check_names(given)
        convert = self._tensor if self._tensors else self._column
        fitting = {
            name: convert(name, spec, given[name])
            for name, spec in zip(self._names, self._specs, strict=True)
            if name in given
        }
        if not self._tensors and len({len(column) for column in fitting.values()}) > 1:
            raise SchemaError("Invalid input. The tensors have different numbers of rows.")
        # Only of tables does MLflow decode base64.
        encoded = any(spec.type is DataType.binary for spec in self._specs)
        if self._named and not encoded:
            return {"inputs": fitting}
        columns = list(fitting.values())
        if len(columns) == 1 and not encoded:
            return {"inputs": columns[0]}
        names = {"columns": list(fitting)} if self._named else {}
        return {"dataframe_split": {**names, "data": [list(row) for row in zip(*columns, strict=True)]}}

    def _check_names(self, given: dict[str, Tensor]) -> None:
        required = [name for name, spec in zip(self._names, self._specs, strict=True) if spec.required]
        if missing := [name for name in required if name not in given]:
            raise SchemaError(f"Invalid input. Model is missing inputs {missing}. {_SIGNATURE}")
        if not given.keys() <= set(self._names):
            raise SchemaError(f"Invalid input. The model's inputs are {self._names}. {_SIGNATURE}")

    def _column(self, name: str, spec: ColSpec | TensorSpec, tensor: Tensor) -> list[Any]:
        wanted = _datatype(spec)
        if wanted is None:
            raise SchemaError(f"The V2 protocol has no datatype for the input {name!r}. Use POST /invocations.")
        if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
            raise SchemaError(f"Invalid input. The input {name!r} is a column: its shape must be [n] or [n, 1].")
        if spec.type is DataType.binary and tensor.datatype == BYTES:
            return [base64.encodebytes(octets(value)).decode("ascii") for value in tensor.values]
        return _cast(name, tensor, wanted)

    def _tensor(self, name: str, spec: ColSpec | TensorSpec, tensor: Tensor) -> list[Any]:
        wanted, shape = _datatype(spec), _shape(spec)
        fits = len(shape) == len(tensor.shape) and all(
            size in (-1, actual) for size, actual in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise SchemaError(f"Invalid input. The shape of the input {name!r} must be {shape}, where -1 is any size.")
        if wanted is None:
            raise SchemaError(f"The V2 protocol has no datatype for the input {name!r}. Use POST /invocations.")
        return _nested(_cast(name, tensor, wanted), tensor.shape)


def _names(specs: list[ColSpec | TensorSpec], what: str) -> list[str]:
    return [f"{what}-{number}" if spec.name is None else str(spec.name) for number, spec in enumerate(specs)]


def _described(names: list[str], specs: list[ColSpec | TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": _shape(spec)}
        for name, spec in zip(names, specs, strict=True)
        if (datatype := _datatype(spec)) is not None
    ]


def _datatype(spec: ColSpec | TensorSpec) -> str | None:
    if isinstance(spec, TensorSpec):
        return BYTES if spec.type.kind in "OSU" else DATATYPES.get(spec.type.newbyteorder("<"))
    # An Array, Object or Map has no hash to look it up by.
    return _COLUMNS.get(spec.type) if isinstance(spec.type, DataType) else None


def _shape(spec: ColSpec | TensorSpec) -> list[int]:
    return list(spec.shape) if isinstance(spec, TensorSpec) else [-1]


def _cast(name: str, tensor: Tensor, wanted: str) -> list[Any]:
    """The values of a tensor as JSON would hold them for a datatype."""
    if BYTES in (wanted, tensor.datatype):
        fits = wanted == tensor.datatype
    else:
        # Of the same kind, or of one that it holds: a number too large for a smaller type is refused later.
        fits = np.can_cast(DTYPES[tensor.datatype], DTYPES[wanted], "same_kind")
    if not fits:
        raise SchemaError(f"Invalid input. The input {name!r} has the datatype {tensor.datatype}, not {wanted}.")
    if wanted == BYTES:
        return _as_texts(tensor)
    convert: Callable[[Any], Any] = {"b": bool, "f": float}.get(DTYPES[wanted].kind, int)
    return tensor.values if DTYPES[wanted].kind == DTYPES[tensor.datatype].kind else list(map(convert, tensor.values))


def _as_texts(tensor: Tensor) -> list[Any]:
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]
    except UnicodeDecodeError:
        raise SchemaError("Invalid input. Texts must be UTF-8.") from None


def _nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values
