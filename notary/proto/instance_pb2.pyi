from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InstanceDescription(_message.Message):
    __slots__ = ("id", "processes")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    id: str
    processes: int
    def __init__(self, id: _Optional[str] = ..., processes: _Optional[int] = ...) -> None: ...
