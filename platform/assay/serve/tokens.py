"""Who is let in, to do what, how often: tokens by name, read again whenever their file changes.

A line of the file is a token alone, which may do everything, or a name, scopes and a token:

    line-7 ask 9f86d081884c7d65
    office look,ask 60303ae22b998861

`ask` sends images, `look` sees the page and which models there are, `promote` changes which answer. A
line that is taken away revokes its token at once, on every node that has the file.
"""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from assay.cluster.session import write_secret
from assay.errors import ServeError
from assay.files import read_bytes
from assay.serve.config import ServeConfig

SCOPES = ("ask", "look", "promote")


COOKIE = "assay"


_TOKEN = re.compile(r"[\x21-\x7e]+")


logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Token:
    """One of them."""

    name: str
    scopes: frozenset[str]
    secret: str = field(repr=False)

    @property
    def cookie(self) -> str:
        """What stands for it in a browser: no token, and of use on this page's own site alone."""
        return hmac.new(self.secret.encode(), b"assay inspection page", hashlib.sha256).hexdigest()

    def is_secret(self, word: str) -> bool:
        """Compare in a time that says nothing of either."""
        return hmac.compare_digest(_digest(word.strip()), _digest(self.secret))


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode(errors="surrogateescape")).digest()


class Tokens:
    """Those that are let in now.

    Args:
        text: as a token file has them.
        path: the file, if it is to be read again when it changes.

    Raises:
        ServeError: one is none.
    """

    def __init__(self, text: str, path: Path | None = None) -> None:
        self.path, self.state = path, _state(path)
        self.tokens = _parse(text, f"The token file {path}" if path else "ASSAY_TOKEN")

    def present(self) -> tuple[Token, ...]:
        """Return them as the file has them now; none where it cannot be read any more."""
        state = _state(self.path)
        if state != self.state and self.path is not None:
            self.state = state
            try:
                self.tokens = _parse(_read(self.path), f"The token file {self.path}")
            except ServeError as error:  # a token that was revoked must not go on
                logger.error(f"nobody is let in: {error}")
                self.tokens = ()
        return self.tokens

    def find(self, headers: Mapping[bytes, str]) -> Token | None:
        """Return the one that a request bears, in its header or as a cookie."""
        kind, _, word = headers.get(b"authorization", "").partition(" ")
        parts = [part.strip().partition("=") for part in headers.get(b"cookie", "").split(";")]
        cookies = [value.encode() for key, _, value in parts if key == COOKIE]
        for token in self.present():
            if kind.lower() == "bearer" and token.is_secret(word):
                return token
            if any(hmac.compare_digest(value, token.cookie.encode()) for value in cookies):
                return token
        return None


class Rates:
    """How often each token may ask, counted in this process; for as much as a second it may save up.

    Args:
        most: times a second; 0: as often as it wants.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.left: dict[str, tuple[float, float]] = {}
        """By name: how often still, and when that was."""

    def take(self, name: str) -> bool:
        """Count a request, if it may come."""
        if not self.most:
            return True
        now, burst = time.monotonic(), max(1.0, self.most)
        left, since = self.left.get(name, (burst, now))
        left = min(burst, left + (now - since) * self.most)
        self.left[name] = (left - (left >= 1), now)
        return left >= 1


def open_tokens(config: ServeConfig, create: bool = False) -> Tokens | None:
    """Read the tokens, None where everyone is let in.

    Args:
        config: which file.
        create: write one with a new token where there is none.

    Raises:
        ServeError: there is none, one is blank or holds spaces, or the file can be read by others.
    """
    if config.open:
        return None
    text, path = os.environ.get("ASSAY_TOKEN"), config.token_file.expanduser()
    if text is not None:
        return Tokens(text)
    if create and not path.exists():
        write_secret(path)
    return Tokens(_read(path), path)


def _state(path: Path | None) -> tuple[int, ...]:
    try:
        stat = os.stat(path) if path else None
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) if stat else ()


def _read(path: Path) -> str:
    """Read a token file.

    Raises:
        ServeError: it is not there, cannot be read, or is open to others.
    """
    try:
        text, mode = read_bytes(path).decode(), path.stat().st_mode
    except FileNotFoundError:
        raise ServeError(
            f"There is no token in ASSAY_TOKEN nor in {path}; write one there, readable by its owner alone."
        ) from None
    except (OSError, ValueError) as error:
        raise ServeError(
            f"The token file {path} cannot be read ({getattr(error, 'strerror', None) or error}); give a file of text that its owner can read."
        ) from None
    if mode & 0o077:
        raise ServeError(f"The token file {path} is open to others; chmod 600 it.")
    return text


def _parse(text: str, where: str) -> tuple[Token, ...]:
    """Read lines.

    Raises:
        ServeError: a line is none or has scopes in a token's place, two have one name or one token, or there is no line.
    """
    tokens: dict[str, Token] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) == 1:
            words = [f"line-{number}", ",".join(SCOPES), *words]
        if len(words) != 3 or not all(map(_TOKEN.fullmatch, words)) or line != line.strip():
            raise ServeError(
                f"{where} has a line {number} that is no token: one word of ASCII letters, digits and signs, or a name, scopes and that word."
            )
        name, scopes, secret = words
        if not set(scopes.split(",")) <= set(SCOPES) or name in tokens:
            why = f"the scopes {scopes}" if name not in tokens else f"the name {name} again"
            raise ServeError(
                f"{where} has {why} in line {number}; scopes are {', '.join(SCOPES)}, with commas, and each name is there once."
            )
        if set(secret.split(",")) <= set(SCOPES):
            raise ServeError(
                f"{where} has scopes in the place of a token in line {number}, which anyone would guess; write the token behind them."
            )
        owner = next((each.name for each in tokens.values() if each.secret == secret), None)
        if owner is not None:
            raise ServeError(
                f"{where} gives {name} in line {number} the token of {owner}, which would be left when one of the two is revoked; give each its own."
            )
        tokens[name] = Token(name, frozenset(scopes.split(",")), secret)
    if not tokens:
        raise ServeError(
            f"{where} is empty, which would let everyone in; write a token into it, or give --open."
        )
    return tuple(tokens.values())
