"""How much a Parquet body unfolds to, told from its pages: 300 bytes may ask for gigabytes, and its metadata may lie.

What Arrow allocates for a page is what the page's own header says, and a value takes what it takes unless it stands in
a dictionary, where one long text may be every row's. So the headers are walked; texts in dictionaries are read as such,
which costs no more than the pages, and measured before the model is given them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from model_server.worker.budget import Budget

_STEPS = 10_000
_STEPS_FOR_A_COLUMN = 32
"""Fields that the metadata of a column and the headers of its pages have."""
_DEPTH = 16
_DICTIONARY = (2, 8)
_PREFIXES = 7
"""The encoding in which a text begins as the one before it does."""


def check(body: bytes, budget: Budget) -> None:
    """Measure a Parquet file before it is read.

    Args:
        body: the file.
        budget: what it may unfold to.

    Raises:
        TooLargeError: it unfolds to more.
        Exception: it is not Parquet.
    """
    walk = _Walk(body, budget)
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    if body[-4:] != b"PAR1" or footer < 0:
        raise ValueError("no Parquet footer")
    walk.struct(footer)
    metadata = pyarrow.parquet.read_metadata(io.BytesIO(body))
    budget.check_rows(metadata.num_rows)
    budget.check_columns(metadata.num_columns)
    unfolded = values = 0
    shared = []
    for column in range(metadata.num_columns):
        spread = 0
        schema = metadata.schema.column(column)
        for group in range(metadata.num_row_groups):
            size, count, largest = walk.chunk(metadata.row_group(group).column(column))
            unfolded, values, spread = unfolded + size, values + count, spread + largest
        budget.check_bytes(unfolded)
        budget.check_values(values)
        if spread > budget.unfolded - unfolded and schema.physical_type == "BYTE_ARRAY":
            shared.append(schema.path)
        elif schema.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
            unfolded += spread
    budget.check_bytes(unfolded)
    if shared:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(body), read_dictionary=shared)
        for group, path in product(range(metadata.num_row_groups), shared):
            unfolded += _texts(file, group, path)
            budget.check_bytes(unfolded)


def _texts(file: Any, group: int, path: str) -> int:
    """Bytes of the texts in a column of a row group, when each stands by itself."""
    try:
        table = file.read_row_group(group, columns=[path], use_threads=False)
    except pyarrow.ArrowNotImplementedError:
        # Lists of texts with several dictionaries, which cannot be measured.
        return sys.maxsize
    return sum(_size(chunk) for column in table.columns for chunk in column.chunks)


def _size(array: Any) -> int:
    """Bytes of an array when every text in it stands by itself."""
    if pyarrow.types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.cast("int64").take(array.indices)).as_py() or 0
    if pyarrow.types.is_struct(array.type):
        return sum(map(_size, array.flatten()))
    if pyarrow.types.is_nested(array.type):
        return _size(array.values)
    return int(array.nbytes)


class _Walk:
    """Reads Thrift's compact protocol, as far as pages need it, and no more of it than a file of such a size has.

    Args:
        body: a Parquet file.
        budget: what it may unfold to.
    """

    def __init__(self, body: bytes, budget: Budget) -> None:
        self._body = body
        self._budget = budget
        self._position = 0
        self._steps = _STEPS + _STEPS_FOR_A_COLUMN * budget.columns

    def chunk(self, chunk: Any) -> tuple[int, int, int]:
        """Of a column's pages: their bytes, their values, and what the texts may take that refer to another."""
        starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
        position = min(start for start in starts if start)
        end = position + chunk.total_compressed_size
        size = values = dictionary = shared = 0
        while position < end:
            header = self.struct(position)
            size += header[2]
            position = self._position + header[3]
            if header[2] < 0 or header[3] < 0:
                raise ValueError("a page of less than nothing")
            if 7 in header:
                dictionary = header[2]
                continue
            page = header.get(5) or header.get(8)
            if page is None:
                continue
            count, encoding = page[1], page[2] if 5 in header else page[4]
            values += count
            if encoding in _DICTIONARY:
                shared += dictionary * count
            elif encoding == _PREFIXES:
                # Not kept as a dictionary: each text may be as long as the page.
                self._budget.check_bytes(header[2] * count)
        return size, values, shared

    def struct(self, position: int | None = None, depth: int = 0) -> dict[int, Any]:
        """The fields of a structure by their numbers; binary ones are left out."""
        if depth > _DEPTH:
            raise ValueError("too deep")
        if position is not None:
            self._position = position
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._steps -= 1
        if self._steps < 0:
            self._budget.check_columns(self._budget.columns + 1)
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._number()
        if kind == 7:
            self._position += 8
        elif kind == 8:
            length = self._varint()
            self._position += length
        elif kind in (9, 10):
            for inner in self._items():
                self._value(inner, depth + 1)
        elif kind == 12:
            return self.struct(depth=depth + 1)
        else:
            raise ValueError("a type that Parquet has not")
        return None

    def _items(self) -> Iterator[int]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(count):
            yield head & 15

    def _byte(self) -> int:
        self._position += 1
        return self._body[self._position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
