"""ed25519 signatures of bundles: optional, offline, without torch and onnx. The only file that imports cryptography.

What is signed are the bytes of bundle.json, which hold the sha256 of every other file. `bundle.sig` is the bare
signature, 64 bytes, so that other tools can check it too: openssl pkeyutl -verify -pubin -inkey public.pem -rawin
-in bundle.json -sigfile bundle.sig
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammo_runtime.atomic import write_bytes
from mammo_runtime.bundle import MANIFEST, Bundle, read_bundle, vouched_for
from mammo_runtime.errors import ModelRefused, OutputError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "bundle.sig"
PRIVATE, PUBLIC = "private.pem", "public.pem"
SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 10_000
OTHERS = stat.S_IRWXG | stat.S_IRWXO
INSTALL = "signatures need the package cryptography: pip install 'mammo-edge[sign]'"


@dataclass(frozen=True)
class Verified:
    """What a good signature vouches for."""

    public_key_sha256: str
    """Fingerprint of the key (of its 32 raw bytes): compare it with what the sender told you by another way."""
    files: tuple[str, ...]
    """Checked against their hashes."""
    unsigned: tuple[str, ...]
    """Files in the folder that bundle.json does not name, such as engines built here: nothing vouches for them."""


def new_keys(folder: Path, passphrase: str = "") -> str:
    """Write a new pair, `private.pem` (PKCS #8, mode 0600, encrypted where there is a passphrase) and `public.pem`.

    Returns the public key's fingerprint. Raises UsageError when either file exists, or without cryptography.
    """
    serialization, ed25519 = _library()
    for name in (PRIVATE, PUBLIC):
        if (folder / name).exists():
            raise UsageError(f"{folder / name} exists: a key is never overwritten; give another folder to -o")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = (
        serialization.BestAvailableEncryption(passphrase.encode("utf-8"))
        if passphrase
        else serialization.NoEncryption()
    )
    public = key.public_key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_private(folder / PRIVATE, key.private_bytes(pem, pkcs8, locked))
    except OSError as error:
        raise OutputError(f"cannot write {folder / PRIVATE}: {error.strerror or error}") from error
    write_bytes(folder / PUBLIC, public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return fingerprint(public)


def sign(folder: Path, key_file: Path, passphrase: str = "", overwrite: bool = False) -> str:
    """Check every file of a bundle and sign it: writes `bundle.sig`. Returns the public key's fingerprint.

    Raises ModelRefused (a file was changed), UsageError (no such key, a key that others can read, a wrong passphrase,
    a signature of another key that is there already).
    """
    key = read_private(key_file, passphrase)
    content, path = _manifest(folder), folder / SIGNATURE
    _check_files(read_bundle(folder))
    signature = key.sign(content)
    if path.exists() and not overwrite and path.read_bytes() != signature:
        raise UsageError(f"{path} exists and is another signature; --overwrite replaces it")
    write_bytes(path, signature)
    verify(folder, key.public_key())
    return fingerprint(key.public_key())


def verify_signature(folder: Path, public_file: Path) -> Verified:
    """Check a bundle's signature, then every file. Raises ModelRefused for one changed bit anywhere, a missing file or
    another signer; UsageError when the key file is none.
    """
    return verify(folder, read_public(public_file))


def verify(folder: Path, public: Ed25519PublicKey) -> Verified:
    """Do `verify_signature`'s work with an open key. Nothing in the bundle is parsed before its signature is good."""
    from cryptography.exceptions import InvalidSignature

    content, path = _manifest(folder), folder / SIGNATURE
    try:
        # No more than needed of a file that anybody may have put there.
        with path.open("rb") as stream:
            signature = stream.read(SIGNATURE_BYTES + 1)
    except OSError as error:
        raise ModelRefused(f"{folder} is not signed: cannot read {SIGNATURE} ({error.strerror})") from error
    try:
        public.verify(signature, content)
    except InvalidSignature:
        raise ModelRefused(
            f"the signature of {folder} is not good: {MANIFEST} or {SIGNATURE} was changed, or it was signed with "
            f"another key than {fingerprint(public)[:16]}…. Get the bundle again from its source"
        ) from None
    bundle = read_bundle(folder)
    _check_files(bundle)
    known = {MANIFEST, SIGNATURE, *bundle.files}
    present = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return Verified(fingerprint(public), tuple(bundle.files), tuple(name for name in present if name not in known))


def fingerprint(public: Ed25519PublicKey) -> str:
    """Return the sha256 of a public key's 32 raw bytes, in hexadecimal."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def is_locked(key_file: Path) -> bool:
    """Tell whether a private key file asks for a passphrase. Raises UsageError when it cannot be read."""
    return b"BEGIN ENCRYPTED" in _key_bytes(key_file)


def read_private(path: Path, passphrase: str = "") -> Ed25519PrivateKey:
    """Return the private key in a PEM file. Raises UsageError: unreadable, open to others, no ed25519 key, locked."""
    serialization, ed25519 = _library()
    content = _key_bytes(path)
    if os.name == "posix" and path.stat().st_mode & OTHERS:
        raise UsageError(f"{path} can be read by others, who could sign with it: chmod 600 {path}")
    if is_locked(path) and not passphrase:
        raise UsageError(f"{path} is locked with a passphrase: it is asked for, or taken from MAMMO_KEY_PASSPHRASE")
    try:
        key = serialization.load_pem_private_key(content, passphrase.encode("utf-8") if is_locked(path) else None)
    except Exception as error:  # cryptography raises several unrelated classes, all meaning "not this key"
        raise UsageError(f"{path} cannot be opened: a wrong passphrase, or no private key in PEM form") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} is no ed25519 key; make one: mammo-export keygen -o FOLDER")
    opened: Ed25519PrivateKey = key
    return opened


def read_public(path: Path) -> Ed25519PublicKey:
    """Return the public key in a PEM file. Raises UsageError when there is none."""
    serialization, ed25519 = _library()
    content = _key_bytes(path)
    if b"PRIVATE KEY" in content:
        raise UsageError(f"{path} holds a private key: give the public one, and keep this where it was made")
    try:
        key = serialization.load_pem_public_key(content)
    except Exception as error:
        raise UsageError(f"{path} is no public key in PEM form") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"{path} is no ed25519 key")
    opened: Ed25519PublicKey = key
    return opened


def _library() -> tuple[Any, Any]:
    """Return cryptography's modules for keys and for ed25519."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(INSTALL) from error
    return serialization, ed25519


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that was never readable by others, not even while it was empty."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from error


def _manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelRefused(f"{folder} is no bundle: cannot read {MANIFEST} ({error.strerror})") from error


def _check_files(bundle: Bundle) -> None:
    for name in bundle.files:
        vouched_for(bundle, bundle.folder / name)
