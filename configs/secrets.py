"""Passwords and tokens in addresses: one pattern for what is refused in settings and what is redacted in logs."""

import re

USER_INFO = re.compile(r"(://)[^/\s@]+@")
"""`https://user:password@host`, `https://token@host`"""
QUERY_SECRET = re.compile(
    r"(?i)([?&;](?:[a-z0-9_-]*(?:password|passwd|token|secret|signature|credential)[a-z0-9_-]*|api_?key|access_?key|sig|key|auth)=)[^&\s'\"]+"
)
SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:PASSWORD|PASSWD|TOKEN|SECRET|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?:_|$)"
)
"""Names of environment variables whose value is a secret."""


def holds_secret(address: str) -> bool:
    """Whether an address has a user, a password or a token in it."""
    return bool(USER_INFO.search(address) or QUERY_SECRET.search(address))
