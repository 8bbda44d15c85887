"""Models of every kind that MLflow gives a way of its own, each with bodies that fit and bodies that do not."""

import datetime
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pydantic
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.rag_signatures import ChatCompletionRequest, ChatCompletionResponse, StringResponse
from mlflow.pyfunc import ChatAgent, ChatModel, ResponsesAgent
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.agent import ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import ChatChoice, ChatMessage
from mlflow.types.llm import ChatCompletionResponse as ChatModelResponse
from mlflow.types.responses import ResponsesAgentResponse
from mlflow.types.schema import AnyType, Array, Map, Object, Property


@dataclass
class Kind:
    """One kind of model, and what it may be sent."""

    model: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    records: list[list[dict[str, Any]]] = field(default_factory=list)
    """Tables as records, which are sent in every format that has columns."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Bodies that are sent as they are."""


class Message(pydantic.BaseModel):
    role: str
    content: str | None = None


def hinted(hint: Any) -> Any:
    """A model that answers what it was given, with a type hint that MLflow makes its signature of."""

    class Hinted(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: hint, params=None):
            return [[type(item).__name__, repr(item)] for item in model_input] + [repr(params)]

    return Hinted()


def echo() -> str:
    return "echo"


def signature(*columns: ColSpec, params: ParamSchema | None = None) -> dict[str, Any]:
    return {"signature": ModelSignature(Schema(list(columns)), params=params)}


def rag(answer: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        # MLflow would have new models written otherwise.
        warnings.simplefilter("ignore")
        return {"signature": ModelSignature(ChatCompletionRequest(), answer())}


class Chat(ChatModel):
    def predict(self, context, messages, params):  # noqa: ARG002
        text = f"{[message.to_dict() for message in messages]} {params.to_dict()}"
        choice = ChatChoice(index=0, message=ChatMessage(role="assistant", content=text))
        return ChatModelResponse(choices=[choice], model="m", id="1", created=1)


class Agent(ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        text = f"{[message.content for message in messages]} {context} {custom_inputs}"
        return ChatAgentResponse(messages=[ChatAgentMessage(role="assistant", content=text, id="1")])


class Responses(ResponsesAgent):
    def predict(self, request):
        output = self.create_text_output_item(text=repr(request.model_dump(exclude_none=True)), id="1")
        return ResponsesAgentResponse(output=[output], id="1")


class Rag(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: ChatCompletionRequest, params=None):  # noqa: ARG002
        messages = model_input["messages"] if isinstance(model_input, dict) else model_input.messages
        return {"content": repr([*messages]), "params": repr(params)}


class Raising(mlflow.pyfunc.PythonModel):
    """Fails as its input says."""

    def predict(self, context, model_input, params=None):  # noqa: ARG002
        how = np.asarray(model_input).item()
        if how == "invalid":
            raise MlflowException.invalid_parameter_value("the model's own words")
        raise ValueError(how)


MESSAGES = [{"role": "user", "content": "hello"}]
CHATS: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"messages": [*MESSAGES, {"role": "assistant", "content": "hi", "name": "a"}]},
    {"messages": MESSAGES, "temperature": 0.5, "max_tokens": 5},
    {"messages": MESSAGES, "custom_inputs": {"a": "b"}},
    {"messages": MESSAGES, "context": {"conversation_id": "c"}},
    {"messages": MESSAGES, "unknown": 1},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": 1}]},
    {"messages": [1]},
    {"messages": None},
    {"messages": MESSAGES, "temperature": "hot"},
    {"messages": MESSAGES, "stream": False},
    {"inputs": {"messages": MESSAGES}},
    {"inputs": [{"messages": MESSAGES}]},
    {"dataframe_records": [{"messages": MESSAGES}]},
    {"dataframe_split": {"columns": ["messages"], "data": [[MESSAGES]]}},
    {"inputs": "hello"},
    {"inputs": ["hello"]},
]
PERSON = Object([Property("name", DataType.string), Property("age", DataType.long, required=False)])

KINDS = {
    "an array column": Kind(
        echo,
        signature(ColSpec(Array(DataType.double), "a")),
        [[{"a": [1.5, 2.5]}, {"a": []}], [{"a": [1]}], [{"a": 1.5}], [{"a": ["x"]}], [{"a": None}], [{"b": [1.5]}], []],
    ),
    "an array of arrays": Kind(
        echo,
        signature(ColSpec(Array(Array(DataType.string)), "a")),
        [[{"a": [["x"], []]}], [{"a": ["x"]}], [{"a": [[1]]}]],
    ),
    "an unnamed array": Kind(
        echo,
        signature(ColSpec(Array(DataType.string))),
        bodies=[
            {"inputs": [["a", "b"], ["c"]]},
            {"inputs": [["a", 1]]},
            {"inputs": "a"},
            {"inputs": ["a"]},
            {"dataframe_split": {"data": [[["a"]]]}},
        ],
    ),
    "an object column": Kind(
        echo,
        signature(ColSpec(PERSON, "who")),
        [
            [{"who": {"name": "a", "age": 1}}, {"who": {"name": "b"}}],
            [{"who": {"age": 1}}],
            [{"who": {"name": 1}}],
            [{"who": {"name": "a", "more": 1}}],
            [{"who": "a"}],
            [{"who": None}],
        ],
    ),
    "an array of objects": Kind(
        echo,
        signature(ColSpec(Array(PERSON), "all"), ColSpec("string", "title", required=False)),
        [[{"all": [{"name": "a"}], "title": "t"}], [{"all": []}], [{"all": [{}]}], [{"all": {"name": "a"}}]],
    ),
    "a map column": Kind(
        echo,
        signature(ColSpec(Map(DataType.long), "m")),
        [[{"m": {"a": 1}}], [{"m": {}}], [{"m": {"a": "x"}}], [{"m": [1]}], [{"m": {"a": {"b": 1}}}]],
    ),
    "a column of any type": Kind(
        echo,
        signature(ColSpec(AnyType(), "x", required=False)),
        [[{"x": 1}], [{"x": "a"}], [{"x": [1, "a"]}], [{"x": {"a": None}}], [{"x": None}], [{"y": 1}]],
    ),
    "params beside an array": Kind(
        echo,
        signature(
            ColSpec(Array(DataType.string), "a"),
            params=ParamSchema([ParamSpec("k", DataType.long, 1), ParamSpec("l", DataType.double, [0.5], shape=(-1,))]),
        ),
        bodies=[
            {"dataframe_records": [{"a": ["x"]}], "params": params}
            for params in (None, {}, {"k": 2}, {"k": "x"}, {"l": [1.5]}, {"l": 1.5}, {"other": 1}, [], "k")
        ],
    ),
    **{
        f"the hint {hint}": Kind(lambda hint=hint: hinted(hint), bodies=[{"inputs": value} for value in values])
        for hint, values in [
            (list[str], [["a"], [], [1], "a", {"a": 1}, [None]]),
            (list[int], [[1], [1.5], ["1"], [True], [2**70]]),
            (list[float], [[1.5], [1], ["a"]]),
            (list[bool], [[True], [1], ["true"]]),
            (list[datetime.datetime], [["2024-01-02T03:04:05"], ["2024-01-02"], ["x"], [1]]),
            (list[bytes], [["YWJj"], ["YWJj\n"], ["ä"], [1]]),
            (list[list[str]], [[["a"], []], ["a"], [[1]]]),
            (list[dict[str, int]], [[{"a": 1}, {}], [{"a": "x"}], [1]]),
            (list[dict[str, list[str]]], [[{"a": ["x"]}], [{"a": "x"}]]),
            (list[Message], [[{"role": "user", "content": "x"}], [{"role": "user"}], [{"content": "x"}], ["x"], [{}]]),
            (list[Any], [[1, "a", None], [{"a": [1]}], "a"]),
            (list[int | str], [[1, "a"], [None], [[1]], "a"]),
        ]
    },
    "a chat model": Kind(Chat, bodies=CHATS),
    "a chat agent": Kind(Agent, bodies=CHATS),
    "a responses agent": Kind(
        Responses,
        bodies=[
            {"input": MESSAGES},
            {"input": MESSAGES, "temperature": 0.5},
            {"input": MESSAGES, "custom_inputs": {"a": "b"}},
            {"input": "hello"},
            {"input": []},
            {"input": [{"role": 1}]},
            {"inputs": {"input": MESSAGES}},
            {"dataframe_records": [{"input": MESSAGES}]},
        ],
    ),
    "a RAG model": Kind(
        Rag,
        rag(ChatCompletionResponse),
        bodies=CHATS,
    ),
    "a RAG model that answers a string": Kind(Rag, rag(StringResponse), bodies=CHATS),
    "a pydantic signature from an example": Kind(
        echo,
        {"input_example": [{"who": {"name": "a", "tags": ["x"]}}]},
        [[{"who": {"name": "b", "tags": []}}], [{"who": {"name": 1, "tags": ["x"]}}], [{"who": {}}]],
    ),
    "one string, completions": Kind(
        echo,
        signature(ColSpec("string", "prompt")),
        bodies=[
            {"prompt": "a"},
            {"prompt": ["a", "b"]},
            {"prompt": 1},
            {"prompt": "a", "temperature": 1},
            {"prompt": None},
        ],
    ),
}


def formats(records: list[dict[str, Any]]) -> dict[str, tuple[str, bytes | dict[str, Any]]]:
    """One table in every format: name to content type and body."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    rows = [[record.get(name) for name in columns] for record in records]
    frame = pd.DataFrame(records)
    made: dict[str, tuple[str, bytes | dict[str, Any]]] = {
        "split": ("application/json", {"dataframe_split": {"columns": columns, "data": rows}}),
        "records": ("application/json", {"dataframe_records": records}),
        "columns": (
            "application/json",
            {"inputs": {name: [record.get(name) for record in records] for name in columns}},
        ),
        "inputs": ("application/json", {"inputs": records}),
        "one": ("application/json", {"inputs": records[0] if records else {}}),
        "instances": ("application/json", {"instances": records}),
        "CSV": ("text/csv", frame.to_csv(index=False).encode()),
    }
    try:
        made["Parquet"] = ("application/vnd.apache.parquet", frame.to_parquet())
    except Exception:  # noqa: BLE001 - a table of mixed types has no Parquet
        return made
    return made
