"""Triton's ``ModelConfig`` as a protobuf message: the schema that tritonclient ships, compiled, as data beside this.

It is read into a pool of its own: tritonclient, which a process may have loaded too, registers the same names.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from threading import Lock
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

SCHEMA = "model_config.binpb"
"""``tritonclient.grpc.model_config_pb2`` of tritonclient 2.73.0, as a serialized FileDescriptorProto."""
_ONE = Lock()


def new_config() -> Any:
    """Return an empty ``inference.ModelConfig``."""
    return _message_class()()


def parse_config(text: str) -> Any:
    """Return the ``inference.ModelConfig`` that ``text``, a config.pbtxt, spells. Raises ValueError."""
    try:
        return text_format.Parse(text, new_config())
    except (text_format.ParseError, UnicodeError) as error:
        raise ValueError(str(error)) from error


def config_text(config: Any) -> str:
    """Return ``config`` as Triton reads it from config.pbtxt."""
    return str(text_format.MessageToString(config))


def number_of(config: Any, enum: str, name: str) -> int:
    """Return the number of an enum's value in the schema, ``DataType`` and ``TYPE_FP32``; KeyError for another."""
    pool = config.DESCRIPTOR.file.pool
    return int(pool.FindEnumTypeByName(f"inference.{enum}").values_by_name[name].number)


def name_of(config: Any, enum: str, number: int) -> str:
    """Return the name of an enum's value in the schema."""
    pool = config.DESCRIPTOR.file.pool
    return str(pool.FindEnumTypeByName(f"inference.{enum}").values_by_number[number].name)


def _message_class() -> Any:
    with _ONE:  # messages of two classes are never equal, and two threads may ask for the first at once
        return _made_class()


@cache
def _made_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    content = (files("normdeploy.serving") / "data" / SCHEMA).read_bytes()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(content))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
