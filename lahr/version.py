"""The version of the code that decides a trial's result, to tell results of different code apart.

It is taken from what the sources say and not from how they say it: comments, docstrings and layout have no part in it.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from lahr.errors import ConfigError, check

_HERE = Path(__file__).parent
_DECIDING = ("model", "training", "data", "config.py", "model_config.py")
"""Below this package: folders and files that a result follows from."""


def code_version(builds: Iterable[str] = ()) -> str:
    """Twelve hex digits of the sources that decide a result, and of the modules of `builds`, as `ModelConfig.build`
    names functions; an empty one is LAHR, which is in there. The modules that those import are not followed.

    `ConfigError` where a module has no source in Python.
    """
    digest = hashlib.sha256()
    for name, path in [*_ours(), *_modules(builds)]:
        digest.update(f"{name}\n{_said(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def _ours() -> Iterator[tuple[str, Path]]:
    for part in _DECIDING:
        for path in sorted((_HERE / part).rglob("*.py")) if (_HERE / part).is_dir() else [_HERE / part]:
            yield path.relative_to(_HERE).as_posix(), path


def _modules(builds: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for module in sorted({build.partition(":")[0] for build in builds if build}):
        try:
            spec = importlib.util.find_spec(module)
        except Exception as error:  # a package above it runs its own code
            raise ConfigError(f"the module {module} (model.build) cannot be imported: {error}") from error
        origin = spec.origin if spec is not None else None
        check(
            origin is not None and origin.endswith(".py"),
            f"the module {module} (model.build) has no source in Python; put one where Python finds it",
        )
        yield module, Path(str(origin))


def _said(source: str) -> str:
    """What `source` says, in one form."""
    return repr(_plain(ast.parse(source)))


def _plain(value: object) -> object:
    """A tree of code as plain values, without positions, docstrings, and fields that are empty: a later Python may
    have more of these."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, ast.AST):
        return value
    fields = {name: part for name, part in ast.iter_fields(value) if part not in (None, [])}
    if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        # Also what stands below an assignment to describe it: text alone does nothing, wherever it is.
        fields["body"] = [each for each in value.body if not _is_text(each)]
    return [type(value).__name__, {name: _plain(part) for name, part in fields.items()}]


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
