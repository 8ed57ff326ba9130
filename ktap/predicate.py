"""tmp"""
from typing import Optional
Predicate = str
class FilterError(Exception):
    hint: Optional[str] = None
    about_event = False
def predicate(text: str, context: str, format: object) -> Predicate:
    raise NotImplementedError
def lower(frame: object, predicate: Predicate, yes: str, no: str) -> None:
    raise NotImplementedError
