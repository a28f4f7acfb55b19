"""SmolLM2-135M (llama architecture) through the exported files: parity in f16, the vocabulary, forks. Needs the model."""

import ctypes
import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from actors import adapters
from actors.masked_lora import AdapterSwitch, fresh_tensors, insert_layers, peft_config
from configs.schema.export import ExportSection
from configs.schema.run import LoraSection
from deploy.device.llama import LlamaModel
from deploy.device.runtime import DeviceModel, Question
from deploy.export import gguf
from deploy.export.decoder import read_decoder
from deploy.export.parity import ParityTask, Reference, measure
from tests.deploy.exports import make_export

MODEL = Path(os.environ.get("TERSE_SMOLLM2", Path(__file__).resolve().parents[2] / "models" / "smollm2-135m"))
QUESTIONS = ("What is 17 + 25?", "Name a colour.", "A pen costs 3 dollars. How much do 4 pens cost?")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not MODEL.is_dir(), reason="needs `terse fetch-model smollm2-135m` or TERSE_SMOLLM2"),
]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """With a fresh adapter whose B matrices are small noise."""
    import torch

    lora = LoraSection(rank=8, alpha=16.0)
    layers = insert_layers(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), lora, AdapterSwitch())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in fresh_tensors(layers, lora.rank, seed=0).items()
    }
    packed = adapters.pack(tensors, peft_config(lora, tensors))
    directory = tmp_path_factory.mktemp("smollm2") / "export"
    changes = {"stop_token_ids": (2,), "budget_prompt_template": "{question}", "max_length_tokens": 512}
    return make_export(directory, MODEL, packed, precision="f16", **changes)


def test_f16_says_what_torch_says(export):
    with DeviceModel(export) as device:
        tasks = [
            ParityTask(task_id=q, token_ids=tuple(device.prompt_token_ids(Question(question=q))), reference_answer="")
            for q in QUESTIONS
        ]
        report = measure(device, Reference(MODEL, export / "adapter"), tasks, 48, lambda text, task: True)
    assert report.problems(ExportSection(min_greedy_agreement=0.6), "f16") == []
    assert min(parity.token_agreement for parity in report.modes.values()) > 0.97


def test_llama_cpp_reads_the_vocabulary_as_the_tokenizer_does(export):
    model = LlamaModel(export / "base.gguf", None)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    vocabulary = model._library.llama_model_get_vocab(model._handle)
    tokenize = model._library.llama_tokenize
    tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
    tokenize.argtypes += [ctypes.c_bool, ctypes.c_bool]
    text = "<|im_start|>user\nHow much is 1234 + 5.6?  Über naïve café…<|im_end|>\n"
    room = (ctypes.c_int32 * 200)()
    count = tokenize(vocabulary, text.encode(), len(text.encode()), room, 200, False, True)
    assert list(room)[:count] == tokenizer.encode(text, add_special_tokens=False).ids
    model.close()


def test_the_q8_0_head_and_int4_layers_are_a_third_of_bf16(tmp_path):
    from deploy.export.quantize import quantize_model, read_grid

    quantize_model(MODEL, tmp_path / "int4", "nearest", "bfloat16")
    decoder = read_decoder(json.loads((MODEL / "config.json").read_text()), 1024)
    gguf.write_base(tmp_path / "int4", decoder, tmp_path / "base.gguf", "int4", "q8_0", read_grid(tmp_path / "int4"))
    bf16 = (MODEL / "model.safetensors").stat().st_size
    assert (tmp_path / "base.gguf").stat().st_size < 0.35 * bf16
    back, grid = gguf.read_grid(tmp_path / "base.gguf", decoder), read_grid(tmp_path / "int4")
    assert all((back[name][0] == q).all() and (back[name][1] == s).all() for name, (q, s) in grid.items())
