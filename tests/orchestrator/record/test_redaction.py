import io
import logging

import pytest

from configs.load import ConfigError, load_config
from orchestrator.record.redaction import RedactingFormatter, redacted, secret_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:p4ss-w0rd@mlflow.example/x", "https://me:***@mlflow.example/x"),
        ("postgresql+psycopg2://u:a:b@db:5432/m failed", "postgresql+psycopg2://u:***@db:5432/m failed"),
        ("https://host/x?token=abc&step=3", "https://host/x?token=***&step=3"),
        ("http://127.0.0.1:8265 and sqlite:///runs/mlflow.db", "http://127.0.0.1:8265 and sqlite:///runs/mlflow.db"),
        ("s3://bucket/key@2", "s3://bucket/key@2"),
    ],
)
def test_passwords_in_addresses_are_redacted_and_nothing_else(text, expected):
    assert redacted(text) == expected


def test_values_of_variables_that_are_secrets_by_their_names():
    environment = {
        "HF_TOKEN": "hf_abcdefgh",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "MLFLOW_TRACKING_PASSWORD": "correct horse",
        "RAY_AUTH_MODE": "token-token",
        "RAY_AUTH_TOKEN": "short",
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "RAY_AUTH_TOKEN_PATH": "/",
    }
    assert secret_values(environment) == ["correct horse", "wJalrXUtnFEMI", "hf_abcdefgh"]


def test_log_lines_and_their_tracebacks_are_redacted(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.getLogger("test_masking")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise ConnectionError("https://me:secret@host with hf_abcdefgh")
    except ConnectionError:
        logger.exception("could not reach %s", "https://me:secret@host")
    logger.removeHandler(handler)
    assert "could not reach https://me:***@host" in stream.getvalue()
    assert "ConnectionError: https://me:***@host with ***" in stream.getvalue()


@pytest.mark.parametrize("key", ["tracking.uri", "model.path", "data.sft.source"])
def test_a_password_in_the_configuration_is_refused_without_repeating_it(key):
    with pytest.raises(ConfigError, match=f"{key}: expected an address without a user, password or token") as raised:
        load_config("quickstart", [f"{key}=https://me:p4ss-w0rd@host/x"])
    assert "p4ss-w0rd" not in "".join(p for p in raised.value.problems if p.startswith(f"{key}: expected an address"))
