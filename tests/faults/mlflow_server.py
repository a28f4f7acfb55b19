"""A real MLflow server that can go away and come back."""

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil


class Server:
    """Its runs survive it, in `directory`. It is away until `start`."""

    def __init__(self, directory: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.directory, self.uri = directory, f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.directory}/server.db"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--workers", "1", "--backend-store-uri", store, "--artifacts-destination", f"{self.directory}/files"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise RuntimeError("no MLflow server after 120 s")

    def stop(self) -> None:
        """SIGKILL, if it is there."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        for process in [*server.children(recursive=True), server]:
            process.kill()
        self._process.wait()
        self._process = None
