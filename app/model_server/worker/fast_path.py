"""The short way from a JSON body to what a model is given, for the signatures where it is exact.

MLflow's own way copies the body, makes a data frame, casts it, checks it against the signature and makes another.
For the plain cases the outcome is known beforehand: a plan, made once per model from its signature, builds it
directly. Whatever is not exactly a plain case (another type, a missing value, a number out of range, an extra
column) makes the plan decline, and MLflow's way is taken. The property tests hold each plan against MLflow's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pandas as pd
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

DECLINED: Any = object()
"""What a plan returns for input that is not plain."""


class Plan(Protocol):
    """Turns the value of one input field into what MLflow would hand to the model, or :data:`DECLINED`."""

    def __call__(self, key: str, data: Any) -> Any:
        """Convert ``data``, the value of the input field ``key``."""


def raw_inputs(key: str, data: Any) -> Any:
    """For signatures from type hints: MLflow passes ``inputs`` on as they are, and the model checks them."""
    return data if key == "inputs" else DECLINED


def plan_for(schema: Schema | None, *, strings_as_list: bool = False) -> Plan | None:
    """The plan for a signature's inputs, or None where there is no short way.

    Args:
        schema: the inputs of the signature.
        strings_as_list: the model's type hint is ``list[str]``: MLflow makes a list of the column of strings.
    """
    if schema is None or not schema.inputs:
        return None
    if schema.is_tensor_spec():
        return _tensor_plan([spec for spec in schema.inputs if isinstance(spec, TensorSpec)])
    if not all(_is_plain_column(spec) for spec in schema.inputs):
        return None
    if strings_as_list:
        return _StringList(schema) if schema.input_types() == [DataType.string] else None
    return _Columns(schema)


def _is_plain_column(spec: Any) -> bool:
    # An Array, Object or Map has no hash to look it up by.
    return isinstance(spec, ColSpec) and spec.required and isinstance(spec.type, DataType) and spec.type in _ARRAYS


# --- columns -------------------------------------------------------------------------------------------------------


def _string_array(values: list[Any]) -> Any:
    # NumPy's fixed-width strings, through which MLflow passes them, lose trailing NULs.
    if set(map(type, values)) == {str} and not any(value.endswith("\0") for value in values):
        return values
    return DECLINED


def _typed_array(dtype: type[np.generic], accepted: set[type]) -> Callable[[list[Any]], Any]:
    def build(values: list[Any]) -> Any:
        return np.array(values, dtype) if set(map(type, values)) <= accepted else DECLINED

    return build


def _integer_array(dtype: type[np.integer[Any]]) -> Callable[[list[Any]], Any]:
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max

    def build(values: list[Any]) -> Any:
        if set(map(type, values)) != {int} or min(values) < lowest or max(values) > highest:
            return DECLINED
        return np.array(values, dtype)

    return build


_ARRAYS: dict[DataType, Callable[[list[Any]], Any]] = {
    DataType.string: _string_array,
    DataType.boolean: _typed_array(np.bool_, {bool}),
    DataType.integer: _integer_array(np.int32),
    DataType.long: _integer_array(np.int64),
    DataType.float: _typed_array(np.float32, {float}),
    DataType.double: _typed_array(np.float64, {float}),
}


class _Columns:
    """A data frame with the signature's columns."""

    def __init__(self, schema: Schema) -> None:
        self._named = schema.has_input_names()
        self._names: list[Any] = schema.input_names() if self._named else list(range(len(schema.inputs)))
        self._builders = [_ARRAYS[kind] for kind in schema.input_types() if isinstance(kind, DataType)]

    def values(self, key: str, data: Any) -> tuple[Any, list[int] | None]:
        """The columns as lists of what JSON held, or DECLINED, and the index if one was sent."""
        if key == "dataframe_split":
            return self._split(data)
        return self._records(data) if key == "dataframe_records" else self._tensors(key, data), None

    def __call__(self, key: str, data: Any) -> Any:
        columns, index = self.values(key, data)
        if columns is DECLINED:
            return DECLINED
        arrays = {}
        for name, builder, values in zip(self._names, self._builders, columns, strict=True):
            if (array := builder(values)) is DECLINED:
                return DECLINED
            arrays[name] = array
        return pd.DataFrame(arrays, index=index)

    def _split(self, data: Any) -> tuple[Any, Any]:
        if not isinstance(data, dict) or not data.keys() <= {"columns", "index", "data"}:
            return DECLINED, None
        names, index, rows = data.get("columns"), data.get("index"), data.get("data")
        if names is None and not self._named:
            names = self._names
        if rows is None or names != self._names or not _is_table(rows, len(self._names)):
            return DECLINED, None
        if index is not None and (not isinstance(index, list) or index != list(range(len(rows)))):
            return DECLINED, None
        if index is not None and set(map(type, index)) != {int}:
            return DECLINED, None
        return [list(column) for column in zip(*rows, strict=True)], index

    def _records(self, data: Any) -> Any:
        if not self._named or not isinstance(data, list) or not data:
            return DECLINED
        names = self._names
        if not all(isinstance(record, dict) and list(record) == names for record in data):
            return DECLINED
        return [[record[name] for record in data] for name in names]

    def _tensors(self, key: str, data: Any) -> Any:
        if isinstance(data, dict) and self._named:
            if data.keys() != set(self._names):
                return DECLINED
            columns = [data[name] for name in self._names]
            if not all(isinstance(column, list) and column for column in columns):
                return DECLINED
            if len({len(column) for column in columns}) != 1:
                return DECLINED
            return columns
        if isinstance(data, list) and data and len(self._names) == 1 and type(data[0]) is not dict:
            return [data]
        if key == "instances" and self._named:
            return self._records(data)
        return DECLINED


class _StringList:
    """A list of strings, from a signature with one column of strings."""

    def __init__(self, schema: Schema) -> None:
        self._columns = _Columns(schema)

    def __call__(self, key: str, data: Any) -> Any:
        columns = self._columns.values(key, data)[0]
        return DECLINED if columns is DECLINED else _string_array(columns[0])


def _is_table(rows: Any, width: int) -> bool:
    return isinstance(rows, list) and bool(rows) and all(type(row) is list and len(row) == width for row in rows)


# --- tensors -------------------------------------------------------------------------------------------------------


def _tensor_plan(specs: list[TensorSpec]) -> Plan | None:
    if any(spec.type.kind not in "biuf" for spec in specs):
        return None
    if len(specs) == 1 and specs[0].name is None:
        return _Tensor(specs[0])
    return _NamedTensors({spec.name: spec for spec in specs if spec.name is not None})


class _Tensor:
    """One array without a name."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec

    def __call__(self, key: str, data: Any) -> Any:
        if key not in ("inputs", "instances") or type(data) is not list or not data or type(data[0]) is dict:
            return DECLINED
        return _tensor(data, self._spec)


class _NamedTensors:
    """A dictionary of arrays."""

    def __init__(self, specs: dict[str, TensorSpec]) -> None:
        self._specs = specs

    def __call__(self, key: str, data: Any) -> Any:
        if key != "inputs" or type(data) is not dict or data.keys() != self._specs.keys():
            return DECLINED
        arrays = {}
        for name, spec in self._specs.items():
            array = _tensor(data[name], spec) if type(data[name]) is list else DECLINED
            if array is DECLINED:
                return DECLINED
            arrays[name] = array
        return arrays


def _tensor(data: list[Any], spec: TensorSpec) -> Any:
    try:
        array = np.array(data, dtype=spec.type)
    except (ValueError, TypeError, OverflowError):
        return DECLINED
    if array.ndim != len(spec.shape):
        return DECLINED
    fits = all(wanted in (-1, actual) for wanted, actual in zip(spec.shape, array.shape, strict=True))
    return array if fits else DECLINED
