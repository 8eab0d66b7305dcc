"""Signed sites: Ed25519 [1]_ over the bytes of site.json, which vouch for all others.

A signature is a file of its own beside site.json, named by the map id, so that the next
version of a site can be signed before the site is switched to it.

References
----------
.. [1] Bernstein et al., "High-speed high-security signatures", CHES 2011; RFC 8032.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from edgeloc.errors import ConfigError, MapError, UntrustedSiteError
from edgeloc.tiles.site_folder import replace_file

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_PRIVATE, _PUBLIC = "edgeloc-private-key", "edgeloc-public-key"
_SIGNATURE = "edgeloc-signature-1"
_MAX_FILE_BYTES = 1000


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as exc:
        raise ConfigError(
            "signed sites need the package cryptography: pip install 'edgeloc[sign]'"
        ) from exc
    return ed25519


def _words(path: Path, kind: str, lengths: Sequence[int]) -> list[bytes] | None:
    """Return the hexadecimal words of a line that begins with `kind`, if it is one."""
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE_BYTES)
    try:
        first, *words = raw.decode("ascii").split(" ")
        values = [bytes.fromhex(word) for word in words]
    except ValueError:
        return None
    # fromhex also takes spaces and capitals: one spelling is enough.
    line = " ".join([kind, *(value.hex() for value in values)]) + "\n"
    if first != kind or line.encode() != raw or [*map(len, values)] != [*lengths]:
        return None
    return values


def _read_key(path: Path, kind: str) -> bytes:
    try:
        words = _words(path, kind, [KEY_BYTES])
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
    if words is None:
        raise ConfigError(
            f"{path}: is not a line {kind!r} and {2 * KEY_BYTES} hexadecimal digits; "
            "make keys with `edgeloc-build keygen`"
        )
    return words[0]


def read_public_key(path: Path) -> bytes:
    """Return the public key in a file that `make_keys` wrote.

    Raises
    ------
    ConfigError
        When it is something else.
    """
    return _read_key(path, _PUBLIC)


def key_name(public_key: bytes) -> str:
    """Return a short name of a key, for people."""
    return hashlib.sha256(public_key).hexdigest()[:12]


def make_keys(path: Path) -> Path:
    """Write a new private key, and the public key beside it.

    Parameters
    ----------
    path : Path
        The private key's file, which must not exist; readable for its owner only.

    Returns
    -------
    Path
        The public key's file: the same name with ".pub".

    Raises
    ------
    ConfigError
        When there is such a file, or when it cannot be written.
    """
    ed25519 = _ed25519()
    private = ed25519.Ed25519PrivateKey.generate()
    public_path = path.with_name(f"{path.name}.pub")
    try:
        for file, kind, key, mode in (
            (path, _PRIVATE, private.private_bytes_raw(), 0o600),
            (public_path, _PUBLIC, private.public_key().public_bytes_raw(), 0o644),
        ):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(f"{kind} {key.hex()}\n".encode("ascii"))
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as exc:
        raise ConfigError(f"{exc.filename}: cannot be written: {exc.strerror}") from exc
    return public_path


def sign(site_json: bytes, key_path: Path) -> bytes:
    """Return the contents of the file that signs a site.json.

    Parameters
    ----------
    site_json : bytes
        Its bytes.
    key_path : Path
        The private key, of `make_keys`.

    Raises
    ------
    ConfigError
        When the key is none.
    """
    ed25519 = _ed25519()
    seed = _read_key(key_path, _PRIVATE)
    private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    line = f"{_SIGNATURE} {public.hex()} {private.sign(site_json).hex()}\n"
    return line.encode("ascii")


def check_signature(
    path: Path, site_json: bytes, trusted_keys: Sequence[bytes]
) -> None:
    """Raise unless a site.json is signed with one of some keys.

    Parameters
    ----------
    path : Path
        The signature's file.
    site_json : bytes
        What it has to sign.
    trusted_keys : sequence of bytes
        Public keys.

    Raises
    ------
    UntrustedSiteError
        When it does not.
    """
    try:
        words = _words(path, _SIGNATURE, [KEY_BYTES, SIGNATURE_BYTES])
    except FileNotFoundError as exc:
        raise UntrustedSiteError(
            f"{path}: the site is not signed; sign it with `edgeloc-build sign`, or do "
            "not ask for a trusted key"
        ) from exc
    except OSError as exc:
        raise MapError(f"{path}: cannot be read ({exc.strerror})") from exc
    if words is None:
        raise UntrustedSiteError(f"{path}: is not a signature; sign the site again")
    public_key, signature = words
    if public_key not in trusted_keys:
        raise UntrustedSiteError(
            f"{path}: the site is signed with the key {key_name(public_key)}, trusted "
            f"are {', '.join(map(key_name, trusted_keys))}"
        )
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)
    try:
        key.verify(signature, site_json)
    except InvalidSignature as exc:
        raise UntrustedSiteError(
            f"{path}: does not sign this site.json; it was changed after signing, or "
            "this is the signature of another one"
        ) from exc


def write_signature(path: Path, data: bytes) -> None:
    """Put a signature beside its site.json, at once."""
    replace_file(path, data)
