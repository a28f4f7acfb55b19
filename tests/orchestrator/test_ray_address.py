"""A Ray cluster that does not answer is told at once."""

import socket

import pytest

from configs.errors import UserError
from orchestrator.ray_address import check_ray_address


def test_an_address_that_does_not_answer_names_the_setting(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS: expected a Ray cluster at 127\.0\.0\.1:1, which does not answer"
    ):
        check_ray_address("")
    with pytest.raises(UserError, match=r"^cluster\.address: expected a Ray cluster at ray://127\.0\.0\.1:1"):
        check_ray_address("ray://127.0.0.1:1")


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:1", "127.0.0.1:", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="expected host:port"):
        check_ray_address(address)


def test_one_that_answers_and_names_that_ray_knows_pass(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_ray_address(f"127.0.0.1:{server.getsockname()[1]}")
    for name in ("", "auto", "local"):
        check_ray_address(name)
