"""Plain data (YAML, JSON) to frozen dataclasses, with errors that name the key, the value and the closest valid name.

pydantic checks the leaves; this walks the dataclasses, because a sentence with the full path and the nearest key is
worth more to a user than a list of what every member of a union would have wanted.
"""

import ast
import dataclasses
import difflib
import functools
import gzip
import inspect
import json
import textwrap
import types
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class SchemaError(ValueError):
    """Data does not fit a dataclass; the message is one sentence that names the key."""


def build(cls: type[T], data: Any, where: str, path: str = "") -> T:
    """Make a `cls` from nested dicts and lists. `where` (a file, say) and the dotted path start every error."""
    if dataclasses.is_dataclass(data) and isinstance(data, cls):
        return data
    if not isinstance(data, dict):
        raise SchemaError(f"{where}: {path or cls.__name__} must be a mapping of settings, not {data!r}")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise SchemaError(f"{where}: {_join(path, str(key))} is unknown; {_suggest(str(key), list(hints), path)}")
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in data]  # type: ignore[arg-type]
    if missing:
        raise SchemaError(f"{where}: {_join(path, missing[0])} is missing; add it")
    values = {key: _value(hints[key], value, where, _join(path, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(f"{where}: {path + ': ' if path else ''}{error}") from error


def read_json(path: Path) -> Any:
    """The contents of a JSON file, compressed where it is called .gz.

    Raises FileNotFoundError for one that is not there and SchemaError for a broken one; both name it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: check the path, or run the command that writes it first")
    try:
        return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SchemaError(f"{path} is not JSON ({error}); it is damaged or not the file you meant") from error


def read_rows(cls: type[T], path: Path, mend: str) -> list[T]:
    """The rows of a JSON list; `mend` says what to do about a file that is none.

    Raises SchemaError naming the file, the row and what does not fit.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise SchemaError(f"{path} must hold a list of rows; {mend}")
    return [build(cls, row, str(path), f"row {i}") for i, row in enumerate(rows)]


def write_json(data: Any, path: Path, indent: int | None = 1) -> None:
    """Write JSON so that a kill at any moment leaves the old file or the new one, never a part.

    A path that ends in .gz is compressed; the same data are the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    text = (json.dumps(data, indent=indent) + "\n").encode()
    partial.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    partial.replace(path)


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under every field of a dataclass; it is the field's help text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            docs[field.target.id] = " ".join(str(doc.value.value).split())  # type: ignore[attr-defined]
    return docs


def describe(cls: type, path: str = "") -> list[tuple[str, str]]:
    """Every dotted key below `cls` with its help, for `--help`. Members of a union are listed one after another."""
    docs, lines = field_docs(cls), []
    for name, hint in _hints(cls).items():
        members = _dataclasses_in(hint)
        for member in members:
            label = f" ({tag[1]})" if len(members) > 1 and (tag := _tag(member)) else ""
            lines += [(key, text + label) for key, text in describe(member, _join(path, name))]
        if not members:
            lines.append((_join(path, name), docs.get(name, "")))
    return lines


def _value(hint: Any, value: Any, where: str, path: str) -> Any:
    """Check one value against one annotation."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    members = _dataclasses_in(hint)
    if get_origin(hint) is tuple and members:
        if not isinstance(value, list | tuple):
            raise SchemaError(
                f"{where}: {path} must be a list of settings, not {value!r}; in YAML each starts with a dash"
            )
        item = get_args(hint)[0]
        return tuple(_value(item, entry, where, f"{path}.{i}") for i, entry in enumerate(value))
    if members and not (value is None and type(None) in get_args(hint)):
        return build(_pick(members, value, where, path), value, where, path)
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        deeper = "".join(f".{part}" for part in first["loc"] if isinstance(part, int))
        raise SchemaError(f"{where}: {path}{deeper} is {first['input']!r}; {_lower(first['msg'])}") from error


def _pick(members: list[type], value: Any, where: str, path: str) -> type:
    """Which dataclass of a union a mapping means: the one whose tag it carries."""
    if len(members) == 1:
        return members[0]
    for member in members:
        if isinstance(value, member):
            return member
    tags = {tag[1]: (tag[0], member) for member in members if (tag := _tag(member))}
    key = next(iter(tags.values()))[0]
    given = value.get(key) if isinstance(value, dict) else value
    if not isinstance(given, str) or given not in tags:
        raise SchemaError(f"{where}: {_join(path, key)} is {given!r}; {_suggest(str(given), list(tags), '')}")
    return tags[given][1]


def _tag(cls: type) -> tuple[str, str] | None:
    """The field that says which member of a union this is: the first one typed as a Literal of a single word."""
    for name, hint in _hints(cls).items():
        if get_origin(hint) is Literal and len(get_args(hint)) == 1:
            return name, str(get_args(hint)[0])
    return None


def _dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses an annotation mentions: itself, the members of a union, the items of a tuple."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, tuple, Annotated):
        return [cls for argument in get_args(hint) for cls in _dataclasses_in(argument)]
    return []


def _hints(cls: type) -> dict[str, Any]:
    """Field names and their annotations, resolved."""
    return _cached_hints(cls)


@functools.cache
def _cached_hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _suggest(given: str, valid: list[str], path: str) -> str:
    close = difflib.get_close_matches(given, valid, 1, 0.5)
    return f"did you mean {_join(path, close[0])}?" if close else f"choose one of {', '.join(valid)}"
