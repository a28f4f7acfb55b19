"""An upload for a GPU machine without a network: `python -m tests.gpu.pack DIRECTORY`, about 60 MB, from the package index.

The machine is expected to have Python 3.12, torch 2.11 or later for CUDA 13, transformers and peft, and a copy of this
repository. There: `. DIRECTORY/setup.sh && make gpu-check` in words, `python -m pytest -m gpu tests/gpu` and
`python -m tests.gpu.benchmark` in commands.

vLLM's compiled libraries use torch's stable ABI, so three of them and its Python files are enough; in these the kernels of
other GPUs than Hopper's are zeroed, which makes them small. Needs readelf's information only, which is read here.
"""

import argparse
import io
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.cluster.check_pins import ROOT, read_pins

PYTHON, PLATFORMS = "3.12", ("manylinux_2_31_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64")
ARCHITECTURE = 90
"""sm_90: H100, H200."""
LIBRARIES = (
    "vllm/_C_stable_libtorch.abi3.so",
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
    "vllm/cumem_allocator.abi3.so",
)
PACKAGES = """
    annotated-doc annotated-types antlr4-python3-runtime anyio apache-tvm-ffi astor blake3 cachetools cbor2
    cloudpickle compressed-tensors depyf dill dnspython docstring-parser einops email-validator fastapi filelock
    fsspec gguf googleapis-common-protos h11 hjson httpcore2 httptools httpx httpx2 ijson iniconfig interegular
    jiter jmespath jsonschema jsonschema-specifications lark llguidance loguru mcp mcp-types
    model-hosting-container-standards msgspec ninja omegaconf openai opentelemetry-api
    opentelemetry-exporter-http-transport opentelemetry-exporter-otlp opentelemetry-exporter-otlp-common
    opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-grpc
    opentelemetry-exporter-otlp-proto-http opentelemetry-proto opentelemetry-sdk opentelemetry-semantic-conventions
    opentelemetry-semantic-conventions-ai oss-harmony outlines-core partial-json-parser pluggy prometheus-client
    prometheus-fastapi-instrumentator psutil py-cpuinfo pybase64 pydantic pydantic-core pydantic-extra-types
    pydantic-settings pyjwt pytest pytest-timeout python-dotenv python-json-logger python-multipart pyzmq
    referencing rpds-py setproctitle sniffio sse-starlette starlette truststore typing-inspection uvicorn watchfiles
    websockets xgrammar
""".split()
"""What such a machine lacks of what engine and learner import."""
FROM_SOURCE = ("deepspeed", "antlr4-python3-runtime")
"""No wheel on the index: built here, DeepSpeed without operators."""
SETUP = """# Unpacks beside itself and sets what the checks need: `. setup.sh`
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
site=${TERSE_GPU_SITE:-/opt/terse-gpu-site}
[ -e "$site/.ok" ] || { mkdir -p "$site" && for part in "$here"/*.txz; do tar xJf "$part" -C "$site" || exit 1; done; touch "$site/.ok"; }
export PYTHONPATH="$PWD:$site" HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_USE_FLASHINFER_SAMPLER=0 DS_BUILD_OPS=0
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
"""


def pip(*arguments: str) -> None:
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"], check=True, env=environment)


def download(wheels: Path) -> None:
    """Everything as wheels for the GPU machine."""
    pins = read_pins("gpu")
    if unknown := [name for name in PACKAGES if name not in pins]:
        sys.exit(f"tests/gpu/pack.py: expected packages that constraints-gpu.txt pins, found {', '.join(unknown)}")
    wanted = [name for name in PACKAGES if name not in FROM_SOURCE]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    where = ["--python-version", PYTHON, "--only-binary", ":all:", "--dest", str(wheels)]
    pip("download", *platforms, *where, f"vllm=={pins['vllm']}", *(f"{name}=={pins[name]}" for name in wanted))
    for name in FROM_SOURCE:
        pip("wheel", "--no-build-isolation", "--wheel-dir", str(wheels), f"{name}=={pins[name]}")


def files_of(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """What travels of a wheel: of vLLM its Python files and three libraries, of others everything."""
    is_vllm = wheel.name.startswith("vllm-")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/") or "/tests/" in name:
                continue
            if is_vllm and name in LIBRARIES:
                yield name, prune(archive.read(name))
            elif not is_vllm or (
                not name.endswith((".so", ".cubin", "vllm-rs", ".pyi")) and "third_party/deep_gemm" not in name
            ):
                yield name, archive.read(name)


def prune(library: bytes) -> bytes:
    """The library with the kernels of other GPUs zeroed. Headers stay, so every offset holds.

    A fat binary is a row of entries; each says its kind (1: PTX, 2: code), its GPU and its size.
    """
    data = bytearray(library)
    for begin, size in fat_sections(library):
        place, end = begin, begin + size
        while place + 16 <= end:
            magic, _, header_size, fat_size = struct.unpack_from("<IHHQ", data, place)
            if magic != 0xBA55ED50:
                place += 8
                continue
            entries, entry, last = [], place + header_size, place + header_size + fat_size
            while entry < last:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
                (architecture,) = struct.unpack_from("<I", data, entry + 28)
                entries.append((kind, architecture, entry + entry_header, entry_size))
                entry += entry_header + entry_size
            has_code = any(kind == 2 and architecture == ARCHITECTURE for kind, architecture, *_ in entries)
            for kind, architecture, start, length in entries:
                if (kind == 2 and architecture != ARCHITECTURE) or (kind == 1 and has_code):
                    data[start : start + length] = bytes(length)
            place = (last + 7) // 8 * 8
    return bytes(data)


def fat_sections(library: bytes) -> Iterator[tuple[int, int]]:
    """Offset and size of the sections with GPU code in a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", library, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + index * entry_size) for index in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, size in headers:
        text = library[names + name : library.index(b"\0", names + name)]
        if text in (b".nv_fatbin", b"__nv_relfatbin"):
            yield offset, size


def entry_points() -> tuple[str, bytes]:
    """The product's vLLM plugins, as an installed distribution tells them."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["vllm.general_plugins"].items()]
    folder = f"terse_rl-{project['version']}.dist-info"
    return f"{folder}/entry_points.txt", "\n".join(["[vllm.general_plugins]", *lines, ""]).encode()


def pack(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Path(temporary)
        download(wheels)
        with tarfile.open(directory / "packages.txz", "w:xz", preset=4) as archive:
            name, content = entry_points()
            add(archive, name, content)
            add(
                archive,
                name.replace("entry_points.txt", "METADATA"),
                b"Metadata-Version: 2.1\nName: terse-rl\nVersion: 0.1.0\n",
            )
            for wheel in sorted(wheels.glob("*.whl")):
                for name, content in files_of(wheel):
                    add(archive, name, content)
    (directory / "setup.sh").write_text(SETUP)
    size_mb = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
    print(f"{directory}: {size_mb:.0f} MB; on the GPU machine, in a copy of the repository: . {directory}/setup.sh")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    pack(parser.parse_args().directory)


if __name__ == "__main__":
    main()
