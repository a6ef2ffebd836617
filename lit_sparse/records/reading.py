"""Reading of JSON files as records."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

T = TypeVar("T")

# Half a surrogate pair, as broken bytes may come out of a tokenizer, can be written to no file.
Text = Annotated[str, BeforeValidator(lambda text: text.encode(errors="replace").decode())]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def read_json(file: Path, kind: type[T]) -> T:
    """Reads a record from a JSON file.

    Raises:
        ValueError: there is no such file, or it does not hold such a record; the message names the field.
    """
    if not file.is_file():
        raise ValueError(f"no {file.name} in {file.parent}: is it the folder of another command?")
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        raise _named(error, file) from error


def checked(value: Any, kind: type[T], file: Path) -> T:
    """A part of a file's content, checked; it raises the errors of `read_json`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise _named(error, file) from error


def _named(error: ValidationError, file: Path) -> ValueError:
    first, *more = error.errors()
    field = ".".join(map(str, first["loc"]))
    others = f" (and {len(more)} more)" if more else ""
    return ValueError(f"{file} cannot be read by this version: {field + ': ' if field else ''}{first['msg']}{others}")
