"""Types of ROS 2 messages: their definitions, their bytes, and plain mappings of their fields."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from athena_vla.errors import MissingDependency

PURPOSE = "to write and read bags"
IDL_PART = "=" * 80 + "\nIDL: "
NAME, ARRAYS = 2, (3, 4)  # rosbags' kinds of fields: another message, and rows of fixed or any length


class MessageTypes:
    """Definitions by name: those of ROS 2 Humble, and what a file defines itself."""

    def __init__(self) -> None:
        try:
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise MissingDependency("rosbags", "bags", PURPOSE) from error
        self._store = get_typestore(Stores.ROS2_HUMBLE)

    def define(self, name: str, encoding: str, text: str) -> None:
        """Take a file's own definition, in ROS 2's msg or IDL. What the library raises on a bad one passes through."""
        from rosbags.typesys import get_types_from_idl, get_types_from_msg

        if encoding == "ros2msg" and text.strip():
            self._take(get_types_from_msg(text, name))
        elif encoding == "ros2idl":
            for part in text.split(IDL_PART) if text.startswith(IDL_PART) else [f"\n{text}"]:
                self._take(get_types_from_idl(part.partition("\n")[2]))

    def _take(self, found: Mapping[str, Any]) -> None:
        """A file's own definitions stand in place of those that are known."""
        for name in found:
            self._store.fielddefs.pop(name, None)
            self._store.types.pop(name, None)
        self._store.register(dict(found))

    def definition(self, name: str) -> str:
        """The text of a message and of all that it holds, as MCAP files carry it."""
        text, _ = self._store.generate_msgdef(name, ros_version=2)
        return text

    def message(self, name: str, data: bytes) -> Any:
        """CDR bytes as an object with the message's fields."""
        return self._store.deserialize_cdr(data, name)

    def data(self, name: str, fields: Mapping[str, Any]) -> bytes:
        """A mapping of all of a message's fields as CDR bytes. Raises `KeyError` for a field that is not there."""
        return bytes(self._store.serialize_cdr(self._built(name, fields), name))

    def _built(self, name: str, fields: Mapping[str, Any]) -> Any:
        _, wanted = self._store.fielddefs[name]
        return self._store.types[name](**{f: self._value(kind, fields[f]) for f, kind in wanted})

    def _value(self, kind: Any, value: Any) -> Any:
        node, about = kind
        if node == NAME:
            return self._built(about, value)
        if node in ARRAYS:
            (inner, base), _ = about
            if inner == NAME:
                return [self._built(base, v) for v in value]
            if base[0] == "string":
                return list(value)
            number = np.dtype("bool" if base[0] == "bool" else base[0])
            return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value, number)
        return value


@cache
def known_types() -> MessageTypes:
    """The definitions of ROS 2 Humble alone."""
    return MessageTypes()
