"""The GGUF files: bits of the grid, and llama.cpp computes what torch computes."""

import json
from pathlib import Path

import gguf as gguf_package
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from actors import adapters
from deploy.device.llama import LlamaContext, LlamaModel
from deploy.export import gguf
from deploy.export.quantize import quantize_model, read_grid
from deploy.export.vocabulary import read_vocabulary
from tests.deploy.exports import make_adapter, make_model

TOKENS = [2, *np.random.default_rng(0).integers(8, 100, 100).tolist(), 3]


def llama_logits(base: Path, adapter: Path | None = None) -> np.ndarray:
    """`[T, V]` of TOKENS, the adapter on everywhere."""
    model = LlamaModel(base, adapter)
    context = LlamaContext(model, num_cells=256, num_sequences=1, batch_tokens=128, num_threads=1)
    try:
        context.set_adapter(adapter is not None)
        count = len(TOKENS)
        context.decode(TOKENS, range(count), [0] * count, [True] * count)
        return np.stack([context.logits(index) for index in range(count)])
    finally:
        context.close()
        model.close()


def test_a_block_by_hand():
    q = np.zeros((1, 32), dtype=np.int8)
    q[0, 0], q[0, 16], q[0, 1] = -8, 7, 7
    blocks = gguf.pack(q, np.array([[1.0]], dtype=np.float16))
    assert blocks.tolist() == [[0x00, 0x3C, 0xF0, 0x8F, *[0x88] * 14]]
    back_q, back_scales = gguf.unpack(blocks)
    assert (back_q == q).all()
    assert back_scales.tolist() == [[1.0]]


def test_a_block_is_what_the_gguf_package_takes_for_q4_0():
    rng = np.random.default_rng(1)
    q = rng.integers(-8, 8, (5, 96)).astype(np.int8)
    scales = rng.standard_normal((5, 3)).astype(np.float16)
    values = gguf_package.quants.dequantize(gguf.pack(q, scales), gguf_package.GGMLQuantizationType.Q4_0)
    assert (values == q * scales.astype(np.float32).repeat(32, axis=1)).all()


def test_llama_rows_move_as_the_rotation_wants():
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 2, "num_key_value_heads": 1}
    rows = np.arange(8)[:, None]
    assert gguf.permute(rows, "model.layers.0.self_attn.q_proj.weight", config)[:, 0].tolist() == [
        0,
        2,
        1,
        3,
        4,
        6,
        5,
        7,
    ]
    assert gguf.permute(rows, "model.layers.0.self_attn.k_proj.weight", config)[:, 0].tolist() == [
        0,
        4,
        1,
        5,
        2,
        6,
        3,
        7,
    ]
    assert gguf.permute(rows, "model.layers.0.self_attn.v_proj.weight", config) is rows
    qwen = config | {"architectures": ["Qwen2ForCausalLM"]}
    assert gguf.permute(rows, "model.layers.0.self_attn.q_proj.weight", qwen) is rows


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("embeddings", ["f16", "q8_0"])
def test_integers_and_scales_in_the_file_are_those_of_the_training_grid(tmp_path, tiny_model_dir, kind, embeddings):
    source = make_model(tmp_path / "model", kind, tiny_model_dir, is_tied=kind == "llama")
    quantize_model(source, tmp_path / "int4", "least_l2", "bfloat16")
    grid = read_grid(tmp_path / "int4")
    gguf.write_base(tmp_path / "int4", tmp_path / "base.gguf", "int4", embeddings, grid)
    back = gguf.read_grid(tmp_path / "base.gguf", json.loads((source / "config.json").read_text()))
    assert back.keys() == grid.keys()
    assert len(grid) == 14
    for name, (q, scales) in grid.items():
        assert (back[name][0] == q).all()
        assert (back[name][1].view(np.uint16) == scales.view(np.uint16)).all()


@pytest.mark.parametrize(
    ("kind", "is_tied", "rope"),
    [
        ("qwen2", True, "default"),
        ("qwen2", False, "yarn"),
        ("llama", True, "linear"),
        ("llama", False, "llama3"),
        ("llama", True, "default"),
    ],
)
def test_llama_cpp_computes_what_torch_computes(tmp_path, tiny_model_dir, kind, is_tied, rope):
    source = make_model(tmp_path / "model", kind, tiny_model_dir, is_tied, rope)
    gguf.write_base(source, tmp_path / "base.gguf", "f32", "f16", {})
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(llama_logits(tmp_path / "base.gguf") - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_adapter_file_is_the_peft_adapter(tmp_path, tiny_model_dir, kind):
    from peft import PeftModel

    source = make_model(tmp_path / "model", kind, tiny_model_dir)
    tensors, config = adapters.unpack(make_adapter(source))
    # The kind that numpy cannot read.
    packed = adapters.pack({name: tensor.bfloat16() for name, tensor in tensors.items()}, config)
    adapters.write_directory(packed, tmp_path / "adapter")
    hf_config = json.loads((source / "config.json").read_text())
    gguf.write_base(source, tmp_path / "base.gguf", "f32", "f16", {})
    gguf.write_adapter(tmp_path / "adapter", hf_config, tmp_path / "adapter.gguf")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.tensor([TOKENS])).logits[0].numpy()
        expected = PeftModel.from_pretrained(model, tmp_path / "adapter")(torch.tensor([TOKENS])).logits[0].numpy()
    found = llama_logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(plain - expected).max() > 0.1 * np.abs(expected).max()


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, random_model):
    with pytest.raises(
        ValueError, match="expected one of Qwen2ForCausalLM, LlamaForCausalLM, found MixtralForCausalLM"
    ):
        gguf.architecture({"architectures": ["MixtralForCausalLM"]})
    with pytest.raises(ValueError, match="use_sliding_window: expected False"):
        gguf.architecture({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True})
    with pytest.raises(ValueError, match=r"model\.layers\.0\.block_sparse_moe\.gate\.weight"):
        gguf.tensor_name("model.layers.0.block_sparse_moe.gate.weight", 2)
    hf_config = json.loads((random_model / "config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True, "lora_alpha": 8}))
    with pytest.raises(ValueError, match="use_dora"):
        gguf.write_adapter(tmp_path, hf_config, tmp_path / "adapter.gguf")


def byte_level_tokenizer(directory: Path, text: str) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))


def test_a_byte_level_vocabulary_is_written_and_another_is_left_out(tmp_path, tiny_model_dir):
    byte_level_tokenizer(tmp_path, "the cat sat on the mat; the dog sat on the log")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    vocabulary = read_vocabulary(tmp_path, size + 2)
    assert vocabulary is not None
    assert vocabulary.pre == "gpt-2"
    assert [tokenizer.id_to_token(index) for index in range(size)] == list(vocabulary.tokens[:size])
    assert vocabulary.tokens[size:] == (f"[PAD{size}]", f"[PAD{size + 1}]")
    assert vocabulary.types[vocabulary.special_ids["eos"]] == 3
    assert vocabulary.types[tokenizer.token_to_id("<think>")] == 4
    assert vocabulary.types[-1] == 5
    # The embedded model has letters and tags only, no bytes.
    assert read_vocabulary(tiny_model_dir, 104) is None
    # Bytes that text hardly has may be missing, as in SmolLM2's.
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    for byte, is_written in (("\u00c1", True), ("\u010a", False)):
        raw["model"]["vocab"].pop(byte)
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        assert (read_vocabulary(tmp_path, size) is not None) == is_written
