"""An export on this machine: `device --benchmark`, beside llama.cpp's own benchmark where there is one.

    python -m tests.benchmarks.device EXPORT [--threads T] [--llama-bench PATH]

`llama-bench` comes with llama.cpp, not with its Python packages; build it with the instruction sets of the wheel (AVX2,
FMA, F16C: `-DGGML_NATIVE=OFF`) for a comparison of the runtime alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.device.benchmark import DECODE_TOKENS, benchmark_table, run_benchmark
from deploy.device.runtime import DeviceModel


def llama_bench(binary: str, base: Path, num_threads: int) -> float:
    """Tokens per second of one greedy stream without adapter, as llama.cpp measures it."""
    command = [binary, "-m", str(base), "-p", "0", "-n", str(DECODE_TOKENS), "-t", str(num_threads), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench"))
    arguments = parser.parse_args()
    with DeviceModel(arguments.directory, arguments.threads) as device:
        result = run_benchmark(device)
        num_threads = device.num_threads
    print(benchmark_table(result))
    own = result["decode_tokens_per_s"]["base"]
    print(f"N = 4 over N = 1: {own['4'] / own['1']:.2f} times the tokens/s")
    if arguments.llama_bench is None:
        print("llama-bench: not found, left out")
        return 0
    theirs = llama_bench(arguments.llama_bench, arguments.directory / "base.gguf", num_threads)
    print(f"llama-bench: {theirs:.0f} tokens/s; this runtime: {own['1']:.0f} ({own['1'] / theirs - 1:+.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
