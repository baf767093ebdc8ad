"""Where each hub's own tools keep the user's token, as far as it is plain text.

Variables and files as modelscope-hub 0.5.1 (``config.py``) and huggingface_hub 2.4.0
(``utils/_auth.py``) have them. ModelScope's login is a pickle, which is never read; openmind-hub
keeps no token, so Modelers has a variable of ours.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import UsageError
from glmquant.hubs.known import HubName

VARIABLES: Final = {
    HubName.MODELSCOPE: ("MODELSCOPE_API_TOKEN",),
    HubName.MODELERS: ("MODELERS_TOKEN",),
    HubName.HF: ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
}
_MAX_NBYTES: Final = 4096


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A secret, and where it was found. Shows itself in no text.

    Attributes:
        secret: It.
        origin: The variable or file.
        has_cookie: The hub wants it as a cookie, too.
    """

    secret: str
    origin: str
    has_cookie: bool

    @property
    def headers(self) -> dict[str, str]:
        """As the hub wants it."""
        sent = {"Authorization": f"Bearer {self.secret}"}
        return sent | ({"Cookie": f"m_session_id={self.secret}"} if self.has_cookie else {})


def find_token(hub: HubName) -> Token | None:
    """The user's token for a hub, or None.

    Raises:
        UsageError: What stands there cannot be a token.
    """
    for variable in VARIABLES[hub]:
        if variable in os.environ:
            text = os.environ[variable].strip()
            return _token(text, variable, hub) if text else None
    if hub is HubName.HF and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "") in ("", "0"):
        path = hf_file("HF_TOKEN_PATH", "token")
        with suppress(OSError, UnicodeDecodeError):
            if path is not None and path.stat().st_size <= _MAX_NBYTES and path.is_file():
                text = path.read_text(encoding="utf-8").strip()
                return _token(text, str(path), hub) if text else None
    return None


def hf_file(variable: str, name: str) -> Path | None:
    """A path that a variable names, else one in HF's home; None where the user has no home."""
    with suppress(RuntimeError):
        if named := os.environ.get(variable):
            return _expanded(named)
        if home := os.environ.get("HF_HOME"):
            return _expanded(home) / name
        cache = os.environ.get("XDG_CACHE_HOME")
        return (_expanded(cache) if cache else Path.home() / ".cache") / "huggingface" / name
    return None


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _token(text: str, origin: str, hub: HubName) -> Token:
    if not text.isascii() or not text.isprintable() or " " in text or ";" in text:
        raise UsageError(
            "that cannot be a hub's token",
            where=origin,
            expected="one word of plain letters, digits and signs",
            found=f"{len(text)} characters, some of them others",
            hint=f"set {VARIABLES[hub][0]} to the token that the hub's page shows",
        )
    return Token(text, origin, hub is HubName.MODELSCOPE)
