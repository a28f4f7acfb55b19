"""Which of the driver's environment variables actors get, and how: secrets never through Ray's runtime environment, which
its logs, its dashboard and its state API show to everybody who may look."""

import re
from collections.abc import Mapping

from configs.secrets import SECRET_NAME, holds_secret

PASSED = re.compile(r"HF_\w+|HUGGING_FACE_\w+|MLFLOW_\w+|(?:HTTPS?|ALL|NO)_PROXY", re.IGNORECASE)
"""Where models and trackers are, and how to reach them."""


class SecretVariables(dict[str, str]):
    """Variables with values that no log may show."""

    def __repr__(self) -> str:
        return f"SecretVariables({', '.join(sorted(self))})"

    __str__ = __repr__


def split_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], SecretVariables]:
    """The variables that are passed on: those that may be seen, and those that hold a secret.

    Example: `HF_HOME=/data`, `HF_TOKEN=hf_x`, `PATH=/bin` → `{"HF_HOME": "/data"}` and `{"HF_TOKEN": "hf_x"}`.
    """
    passed = {name: value for name, value in environment.items() if PASSED.fullmatch(name)}
    secret = SecretVariables(
        {name: value for name, value in passed.items() if SECRET_NAME.search(name) or holds_secret(value)}
    )
    return {name: value for name, value in passed.items() if name not in secret}, secret
