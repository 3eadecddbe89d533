"""What must not leave this machine: files that are called as secrets are, or hold one."""

from __future__ import annotations

import fnmatch
import mmap
import re
from pathlib import Path

__all__ = ["secrecy"]

SECRETS = (
    ".env",
    ".env.*",
    "*.env",
    ".envrc",
    ".envrc.*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.ppk",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".my.cnf",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    ".htpasswd",
    ".passwd-*",
    ".boto",
    ".s3cfg",
    ".dockercfg",
    ".dockerconfigjson",
    "*.tfstate",
    "*.tfstate.*",
    "*.tfvars",
    "kaggle.json",
    "rclone.conf",
    "auth_token",
    "*.token",
    "credentials",
    "credentials.*",
    "secrets.*",
    "secret.*",
    "*.secret",
    "client_secret*.json",
    "*service-account*.json",
    "*service_account*.json",
    "*vault_pass*",
    "*vault-pass*",
    "*api_key*",
    "*api-key*",
    "*apikey*",
    "kubeconfig",
    "*.kubeconfig",
)
"""Names of files that hold secrets, in small letters."""
_OWNERS = "access|account|aws|azure|client|firebase|gce|gcp|gcs|google|private|sa|secret|service|signing|ssh"
_BY_WORD = re.compile(
    rf"(.*[-_.])?(token|secrets?|passwords?|passwd|credentials?|({_OWNERS})[-_.]?keys?)"
    r"(\.(txt|json|ya?ml|toml|ini|cfg|conf))?"
)
"""The last word of a name says it, as in ``hf_token`` and ``gcp-key.json``; not "tokens", which are those of a text."""
HARMLESS = ("*.example", "*.sample", "*.template", "*.dist")
SECRET_FOLDERS = frozenset(
    {".ssh", ".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".docker", ".ray", ".huggingface", ".kaggle", ".vault"}
    | {".secrets", "secrets", ".password-store"}
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_SHORTEST = 8
"""Characters from which on a token is known again in a file: shorter ones are words of any text."""


def secrecy(root: Path, path: Path, token: str = "") -> str:
    """Why a file below ``root`` is taken for a secret; an empty string when it is not.

    token: the cluster's, which may be in no file that leaves. A link is what it is called, and what it leads to.
    """
    target, inside = (root / path).resolve(), root.resolve()
    led = target.relative_to(inside) if target.is_relative_to(inside) else target
    return _by_name(path) or _by_name(led) or _by_content(root / path, token)


def _by_name(path: Path) -> str:
    name, code = path.name.lower(), path.suffix == ".py"
    folders = [part for part in path.parts[:-1] if part.lower() in SECRET_FOLDERS]
    if folders and not (code and folders == ["secrets"]):
        return f"lies in {folders[0]}/"
    matches = any(fnmatch.fnmatch(name, pattern) for pattern in SECRETS) or _BY_WORD.fullmatch(name)
    if matches and not code and not any(fnmatch.fnmatch(name, pattern) for pattern in HARMLESS):
        return "is called as a secret is"
    return ""


def _by_content(file: Path, token: str) -> str:
    try:
        with file.open("rb") as opened:
            if _PRIVATE_KEY.search(opened.read(2**16)):
                return "holds a private key"
            if len(token) >= _SHORTEST:
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    return "holds the cluster's token" if content.find(token.encode()) >= 0 else ""
    except (OSError, ValueError):  # it is not there, or empty
        pass
    return ""
