"""Texts with rules of their own: names, metrics, addresses of code and of trackers."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from raytuner.definition.code import CODE_PATTERN
from raytuner.space import broken_rule

__all__ = [
    "ClusterAddress",
    "Code",
    "EnvName",
    "ExperimentName",
    "MetricName",
    "RelativePath",
    "Storage",
    "TagName",
    "Text",
    "TrackingUri",
]

MAX_NAME = 100
MAX_KEY = 250
"""The longest key that MLflow takes, in characters."""

_EXPERIMENT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_KEY_PATTERN = r"^[\w.\-/: ]+$"
_CODE_SCHEMA = re.sub(r"\?P<\w+>", "", f"^{CODE_PATTERN.pattern}$")  # JSON Schema knows no such named groups
_TRACKING_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")

Text = Annotated[str, Field(strict=True)]


def _experiment_name(name: str) -> str:
    if not re.fullmatch(_EXPERIMENT_PATTERN[1:-1], name):
        rule = "a name is letters, digits and . _ - only, and starts with a letter or digit"
        raise broken_rule(rule, remedy="rename it, as in 'digits-mlp'; it becomes a folder's name")
    if len(name) > MAX_NAME:
        raise broken_rule(f"a name has at most {MAX_NAME} characters", f"{len(name)} characters", "shorten it")
    return name


def _check_key(key: str, what: str) -> None:
    """Raises for a key that MLflow would refuse or change. Source: mlflow/utils/validation.py of 3.17."""
    if not key.strip():
        raise broken_rule(f"a {what} must not be empty", remedy="give it a name")
    if key != key.strip():
        raise broken_rule(f"a {what} has no spaces at its ends", remedy=f"write {key.strip()!r}")
    if len(key) > MAX_KEY:
        raise broken_rule(f"a {what} has at most {MAX_KEY} characters", f"{len(key)} characters", "shorten it")
    if bad := sorted(set(re.sub(r"[\w.\-/: ]", "", key))):
        rule = f"a {what} is letters, digits, spaces and _ - . / : only, as MLflow demands"
        raise broken_rule(rule, remedy=f"replace {' '.join(map(repr, bad))}")
    if posixpath.normpath(key) != key or key.startswith((".", "/")):
        rule = f"a {what} must be a plain path without . .. // or a slash at its ends, as MLflow demands"
        raise broken_rule(rule, remedy=f"write {posixpath.normpath(key).strip('./') or 'a name'!r}")


def _metric_name(name: str) -> str:
    _check_key(name, "metric's name")
    return name


def _tag_name(name: str) -> str:
    _check_key(name, "tag's name")
    if name.startswith(("mlflow.", "raytuner.")):
        raise broken_rule("tags that begin with mlflow. or raytuner. are reserved", remedy="rename the tag")
    return name


def _env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        rule = "an environment variable's name is letters, digits and _, and starts with no digit"
        raise broken_rule(rule, remedy="rename it, as in OMP_NUM_THREADS")
    return name


def _env_value(value: str) -> str:
    if "\0" in value:
        raise broken_rule("an environment variable cannot hold a NUL character", remedy="remove it")
    return value


def _code(value: str) -> str:
    if not CODE_PATTERN.fullmatch(value):
        rule, remedy = "code is named module:function or path/file.py:function", "such as objectives.digits:train"
        if value.count(":") == 0 and "." in value and not value.endswith(".py"):
            remedy = f"write {':'.join(value.rsplit('.', 1))!r}"
        raise broken_rule(rule, remedy=remedy)
    return value


def code_of(value: Any) -> Any:
    """A callable as ``module:name``, or ``path/file.py:name`` when it was defined in a script; anything else unchanged.

    Trials run in processes of their own, which must find the function again: so lambdas, functions within functions and
    objects without a name are refused.
    """
    if not callable(value):
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    shown = f"{module}.{name}" if name else repr(value)
    remedy = "define a function with def at the top level of a module or script"
    if not module or not name:
        raise broken_rule("a function or class with a name is needed", shown, remedy)
    if "<lambda>" in name:
        raise broken_rule("a lambda cannot be found again by the trials' processes", shown, remedy)
    if "<locals>" in name:
        raise broken_rule("a function within a function cannot be found again by the trials' processes", shown, remedy)
    home = sys.modules.get(module)
    found: Any = home
    for part in name.split("."):
        found = getattr(found, part, None)
    if home is not None and found is not value:
        rule = f"{name!r} must be what {module} holds under this name"
        raise broken_rule(rule, shown, "name it as text, module:name, or do not rebind it")
    if module != "__main__":
        return f"{module}:{name}"
    spec, file = getattr(home, "__spec__", None), getattr(home, "__file__", None)
    if spec is not None and spec.name != "__main__":  # python -m package.module
        return f"{spec.name.removesuffix('.__main__') if spec.name.endswith('.__main__') else spec.name}:{name}"
    if not file or not file.endswith(".py"):
        raise broken_rule("a function from an interactive session cannot be found again", shown, "save it in a file")
    return f"{Path(file).resolve().as_posix()}:{name}"


def _storage(value: str) -> str:
    if not value.strip():
        raise broken_rule("storage must be a folder or an address", remedy="write results/")
    if "\0" in value:
        raise broken_rule("a path cannot hold a NUL character", remedy="remove it")
    return value


def _tracking_uri(uri: str) -> str:
    scheme, colon, rest = uri.partition(":")
    remedy = "write sqlite:///results/mlflow.db, or the address of a server: http://host:5000"
    if uri in {"none", ""} or scheme == "file" or not colon:
        if uri == "databricks":
            return uri
        rule = "tracking.mlflow must be a database or a server (MLflow keeps no runs in plain folders any more)"
        raise broken_rule(rule, remedy="write tracking: none" if uri == "none" else remedy)
    if scheme.partition("+")[0] not in _TRACKING_SCHEMES:
        raise broken_rule(f"the address must begin with one of {', '.join(_TRACKING_SCHEMES)}", remedy=remedy)
    if scheme == "sqlite" and not (rest.startswith("///") and rest.strip("/")):
        raise broken_rule("SQLite needs a file, sqlite:///path", remedy="write sqlite:///results/mlflow.db")
    return uri


def _cluster_address(address: str) -> str:
    """The address of a cluster's dashboard, without what may be left out at its end. Raises a pydantic error."""
    remedy = "write the address of the cluster's dashboard, such as http://head:8265"
    scheme, colon, rest = address.partition("://")
    if scheme == "ray" and colon:
        raise broken_rule("a cluster is reached through its dashboard, not as a Ray client", remedy=remedy)
    if scheme not in ("http", "https") or not re.fullmatch(r"[^/\s?#]+(/[^\s?#]*)?", rest):
        raise broken_rule("the address must be one of http or https", remedy=remedy)
    if "@" in rest.partition("/")[0]:
        rule, remedy = "an address must not hold credentials, as it is written down", "put a token in RAY_AUTH_TOKEN"
        raise broken_rule(rule, f"{scheme}://...@...", remedy)
    return address.rstrip("/")


def _relative_path(path: str) -> str:
    if not path.strip() or path.startswith(("/", "~")) or ".." in Path(path).parts:
        remedy = "name what lies below the folder that code is imported from"
        raise broken_rule("a path within the project is needed", remedy=remedy)
    return path


ExperimentName = Annotated[
    Text,
    AfterValidator(_experiment_name),
    Field(json_schema_extra={"pattern": _EXPERIMENT_PATTERN, "maxLength": MAX_NAME}),
]
MetricName = Annotated[
    Text, AfterValidator(_metric_name), Field(json_schema_extra={"pattern": _KEY_PATTERN, "maxLength": MAX_KEY})
]
TagName = Annotated[Text, AfterValidator(_tag_name)]
EnvName = Annotated[Text, AfterValidator(_env_name)]
EnvValue = Annotated[Text, AfterValidator(_env_value)]
Code = Annotated[
    Text,
    AfterValidator(_code),
    BeforeValidator(code_of, json_schema_input_type=Text),
    Field(json_schema_extra={"pattern": _CODE_SCHEMA}),
]
Storage = Annotated[Text, AfterValidator(_storage)]
TrackingUri = Annotated[Text, AfterValidator(_tracking_uri)]
ClusterAddress = Annotated[Text, AfterValidator(_cluster_address)]
RelativePath = Annotated[Text, AfterValidator(_relative_path)]
