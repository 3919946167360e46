# The messages are made when the module is imported: for a type checker they are anything.
from typing import Any

def __getattr__(name: str) -> Any: ...
