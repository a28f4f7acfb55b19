"""llama.cpp by its C API: one base, an adapter that is switched on and off, sequences that share their prompt.

`xllamacpp` brings the library as a prebuilt wheel; its own Python classes are a server, so its shared object is called
here directly. The struct layouts below are those of the pinned version, and opening a model proves that they fit.
"""

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

KvType = Literal["f16", "q8_0"]

_GGML_TYPES = {"f16": 1, "q8_0": 8}
_LOG_ERROR = 4
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


class _ModelParams(Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc")),
        ("load_mtp", c_bool),
    ]


class _ContextParams(Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch")),
        *((name, ctypes.c_int) for name in ("ctx_type", "rope_scaling_type", "pooling_type", "attention_type")),
        ("flash_attn_type", ctypes.c_int),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", ctypes.c_int),
        ("type_v", ctypes.c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class _Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogCallback, c_void_p)),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, _ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_model_n_embd": (c_int32, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_init_from_model": (c_void_p, (c_void_p, _ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_n_batch": (c_uint32, (c_void_p,)),
    "llama_n_seq_max": (c_uint32, (c_void_p,)),
    "llama_n_threads": (c_int32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
    "llama_adapter_lora_init": (c_void_p, (c_void_p, c_char_p)),
    "llama_adapter_lora_free": (None, (c_void_p,)),
    "llama_set_adapters_lora": (c_int32, (c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float))),
    "llama_set_embeddings": (None, (c_void_p, c_bool)),
    "llama_batch_init": (_Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (c_int32, (c_void_p, _Batch)),
    "llama_get_logits_ith": (c_void_p, (c_void_p, c_int32)),
    "llama_get_embeddings_ith": (c_void_p, (c_void_p, c_int32)),
}

_errors: list[str] = []
"""What llama.cpp logged as errors since the last call that looked."""


@_LogCallback
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == _LOG_ERROR:
        _errors.append(text.decode(errors="replace").strip())


@cache
def _library() -> Any:
    """The shared object, with signatures. Raises RuntimeError where it is missing or of another layout."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in Path(folder).glob("xllamacpp*.so")]
    if not found:
        raise RuntimeError("expected the package xllamacpp (llama.cpp), found none; pip install 'terse-rl[device]'")
    library = ctypes.CDLL(str(found[0]))
    try:
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
    except AttributeError as error:
        raise RuntimeError(f"xllamacpp {version('xllamacpp')}: {error}; install the version of the pin") from error
    library.llama_log_set(_keep_errors, None)
    library.llama_backend_init()
    params = library.llama_context_default_params()
    # Values with a known default from the beginning, the middle and the end of the struct.
    found_defaults = (params.n_batch, params.n_seq_max, params.type_k, params.offload_kqv, params.n_samplers)
    if found_defaults != (2048, 1, _GGML_TYPES["f16"], True, 0):
        raise RuntimeError(
            f"xllamacpp {version('xllamacpp')} has another llama_context_params than this file; install the version of "
            "the pin (extra `device` in pyproject.toml)"
        )
    return library


class LlamaModel:
    """Weights in memory, and the adapter for them."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        """Raises RuntimeError with llama.cpp's own words when a file cannot be loaded."""
        self._library = _library()
        self._handle = self._adapter = None
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        self._handle = self._library.llama_model_load_from_file(os.fsencode(base), params)
        if not self._handle:
            raise RuntimeError(f"{base}: llama.cpp cannot load it ({_last_error()})")
        if adapter is not None:
            self._adapter = self._library.llama_adapter_lora_init(self._handle, os.fsencode(adapter))
            if not self._adapter:
                raise RuntimeError(f"{adapter}: llama.cpp cannot load it as an adapter of {base} ({_last_error()})")
        self.num_tokens: int = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._handle))
        """Size of the vocabulary, V."""
        self.hidden_size: int = self._library.llama_model_n_embd(self._handle)
        self.max_positions: int = self._library.llama_model_n_ctx_train(self._handle)
        """That it was trained for."""

    def close(self) -> None:
        """After the contexts of this model."""
        if self._adapter:
            self._library.llama_adapter_lora_free(self._adapter)
        if self._handle:
            self._library.llama_model_free(self._handle)
        self._handle = self._adapter = None


class LlamaContext:
    """KV cells and the arithmetic on them. Sequences are numbers from 0; cells of a prompt are shared by its forks."""

    def __init__(
        self,
        model: LlamaModel,
        *,
        num_cells: int,
        num_sequences: int,
        batch_tokens: int,
        num_threads: int,
        kv_type: KvType = "f16",
    ) -> None:
        """`num_cells`: tokens in the cache, a shared prompt counted once; `batch_tokens`: of one `decode` at most."""
        self._library, self._model = model._library, model
        # As llama.cpp itself bounds it.
        batch_tokens = min(batch_tokens, num_cells)
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_cells, num_sequences
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = num_threads
        params.type_k = params.type_v = _GGML_TYPES[kv_type]
        # Forks share the cells of the prompt; with a buffer for each sequence they would be copied.
        params.kv_unified = True
        self._handle = self._library.llama_init_from_model(model._handle, params)
        if not self._handle:
            raise RuntimeError(f"llama.cpp cannot make a context of {num_cells} tokens ({_last_error()})")
        self._memory = self._library.llama_get_memory(self._handle)
        self._batch = self._library.llama_batch_init(batch_tokens, 0, 1)
        self._is_on = False
        self._check_layout(num_cells, batch_tokens, num_sequences, num_threads)
        self.num_cells, self.num_sequences, self.batch_tokens = num_cells, num_sequences, batch_tokens

    def _check_layout(self, *expected: int) -> None:
        names = ("llama_n_ctx", "llama_n_batch", "llama_n_seq_max", "llama_n_threads")
        found = tuple(getattr(self._library, name)(self._handle) for name in names)
        # llama.cpp rounds the cells up.
        if found[0] < expected[0] or found[1:] != expected[1:]:
            raise RuntimeError(f"llama.cpp took {names} = {expected} as {found}: another version than the pin")

    def set_adapter(self, is_on: bool) -> None:
        """For all that is decoded from here on, whatever the sequence."""
        if is_on == self._is_on:
            return
        if is_on and not self._model._adapter:
            raise RuntimeError("expected an adapter to turn on, the model was opened without one")
        adapters, scales = (c_void_p * 1)(self._model._adapter), (c_float * 1)(1.0)
        if self._library.llama_set_adapters_lora(self._handle, adapters, int(is_on), scales):
            raise RuntimeError(f"llama.cpp did not take the adapter ({_last_error()})")
        self._is_on = is_on

    def set_embeddings(self, is_on: bool) -> None:
        """Whether the next decodes yield the final-norm hidden state of every token, besides logits."""
        self._library.llama_set_embeddings(self._handle, is_on)

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[bool]
    ) -> None:
        """Compute one batch; all of one length, at most `batch_tokens`. `outputs`: whose logits are wanted."""
        count = len(tokens)
        if not 0 < count <= self.batch_tokens:
            raise ValueError(f"expected from 1 to {self.batch_tokens} tokens in a batch, got {count}")
        batch = self._batch
        batch.n_tokens = count
        for index, (token, position, sequence, output) in enumerate(
            zip(tokens, positions, sequences, outputs, strict=True)
        ):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, sequence, output
        status = self._library.llama_decode(self._handle, batch)
        if status:
            reason = "no room in the KV cache" if status == 1 else _last_error()
            raise RuntimeError(f"llama.cpp could not decode {count} tokens (status {status}: {reason})")

    def logits(self, index: int) -> np.ndarray:
        """float32 `[V]` of the last batch's token `index`; a view that the next decode overwrites."""
        return self._row(self._library.llama_get_logits_ith(self._handle, index), self._model.num_tokens)

    def hidden(self, index: int) -> np.ndarray:
        """float32 `[H]`, final-norm state of the last batch's token `index`; a copy."""
        row = self._row(self._library.llama_get_embeddings_ith(self._handle, index), self._model.hidden_size)
        return row.copy()

    def fork(self, source: int, target: int) -> None:
        """Sequence `target` becomes `source` so far; nothing is copied."""
        self._library.llama_memory_seq_rm(self._memory, target, -1, -1)
        self._library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def cut(self, sequence: int, position: int) -> None:
        """Forget a sequence from `position` on."""
        if not self._library.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise RuntimeError(f"llama.cpp could not cut sequence {sequence} at {position}")

    def clear(self) -> None:
        self._library.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        if self._handle:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._handle)
        self._handle = None

    def _row(self, address: int | None, width: int) -> np.ndarray:
        if not address:
            raise RuntimeError("expected an output of llama.cpp, found none: the token was not asked for")
        return np.frombuffer(memoryview((c_float * width).from_address(address)), dtype=np.float32)


def _last_error() -> str:
    text = "; ".join(_errors[-3:]) or "no reason given"
    _errors.clear()
    return text
