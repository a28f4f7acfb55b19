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
from deploy.export.decoder import read_decoder
from deploy.export.quantize import quantize_model, read_grid
from deploy.export.vocabulary import read_vocabulary
from tests.deploy.exports import KINDS, MAX_TOKENS, ROPES, decoder_of, make_adapter, make_model

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
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


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """llama.cpp keeps keys and values in f16: a few of ten thousand logits of a random model carry that further."""
    gaps, largest = np.abs(found - expected), np.abs(expected).max()
    assert np.quantile(gaps, 0.99) < 0.01 * largest
    assert gaps.max() < 0.05 * largest


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
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}
    llama, qwen = (
        read_decoder({"architectures": [name], "model_type": kind, **sizes}, 1)
        for name, kind in (("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"))
    )
    rows = np.arange(8)[:, None]
    q, k, v = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
    assert llama.permute(rows, q)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert llama.permute(rows, k)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert (llama.unpermute(llama.permute(rows, q), q) == rows).all()
    assert llama.permute(rows, v) is rows
    assert qwen.permute(rows, q) is rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("embeddings", ["f16", "q8_0"])
def test_integers_and_scales_in_the_file_are_those_of_the_training_grid(tmp_path, tiny_model_dir, kind, embeddings):
    source = make_model(tmp_path / "model", kind, tiny_model_dir)
    decoder = decoder_of(source)
    quantize_model(source, tmp_path / "int4", "least_l2", "bfloat16")
    grid = read_grid(tmp_path / "int4")
    gguf.write_base(tmp_path / "int4", decoder, tmp_path / "base.gguf", "int4", embeddings, grid)
    back = gguf.read_grid(tmp_path / "base.gguf", decoder)
    assert back.keys() == grid.keys()
    assert len(grid) == decoder.num_layers * (4 if decoder.architecture == "phi3" else 7)
    for name, (q, scales) in grid.items():
        assert (back[name][0] == q).all()
        assert (back[name][1].view(np.uint16) == scales.view(np.uint16)).all()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in KINDS),
        ("qwen2", {"tie_word_embeddings": False, "rope_parameters": ROPES["yarn"]}),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": ROPES["linear"]}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("phi3", {"tie_word_embeddings": True, "sliding_window": MAX_TOKENS}),
    ],
)
def test_llama_cpp_computes_what_torch_computes(tmp_path, tiny_model_dir, kind, changes):
    source = make_model(tmp_path / "model", kind, tiny_model_dir, **changes)
    gguf.write_base(source, decoder_of(source), tmp_path / "base.gguf", "f32", "f16", {})
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert_close(llama_logits(tmp_path / "base.gguf"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_file_is_the_peft_adapter(tmp_path, tiny_model_dir, kind):
    from peft import PeftModel

    source = make_model(tmp_path / "model", kind, tiny_model_dir)
    tensors, config = adapters.unpack(make_adapter(source))
    # The kind that numpy cannot read.
    packed = adapters.pack({name: tensor.bfloat16() for name, tensor in tensors.items()}, config)
    adapters.write_directory(packed, tmp_path / "adapter")
    gguf.write_base(source, decoder_of(source), tmp_path / "base.gguf", "f32", "f16", {})
    gguf.write_adapter(tmp_path / "adapter", decoder_of(source), tmp_path / "adapter.gguf")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.tensor([TOKENS])).logits[0].numpy()
        expected = PeftModel.from_pretrained(model, tmp_path / "adapter")(torch.tensor([TOKENS])).logits[0].numpy()
    assert_close(llama_logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf"), expected)
    assert np.abs(plain - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "kind", "changes", "words"),
    [
        (
            "MixtralForCausalLM",
            "mixtral",
            {},
            "architecture: expected one of Qwen2ForCausalLM, .*found MixtralForCausalLM",
        ),
        (
            "Qwen2ForCausalLM",
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64},
            r"sliding_window: .*\(128\).* 64",
        ),
        ("MistralForCausalLM", "mistral", {"sliding_window": 100}, r"sliding_window: expected none, .*found 100"),
        (
            "LlamaForCausalLM",
            "llama",
            {"hidden_act": "gelu"},
            "hidden_act: expected 'silu' for an export, found 'gelu'",
        ),
        ("LlamaForCausalLM", "llama", {"mlp_bias": True}, "mlp_bias: expected False"),
        ("Qwen3ForCausalLM", "qwen3", {"attention_bias": True}, "attention_bias: expected False"),
        ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window_pattern": 4}, "layer_types: expected"),
        ("Gemma3ForCausalLM", "gemma3_text", {"head_dim": 128}, "query_pre_attn_scalar: expected 128 .*, found 256"),
        (
            "Gemma3ForCausalLM",
            "gemma3_text",
            {"rope_local_base_freq": 5e3},
            "sliding layers: expected .* 10000, found .* 5000",
        ),
        ("SmolLM3ForCausalLM", "smollm3", {"no_rope_layer_interval": 2}, "no_rope_layers: expected"),
        (
            "LlamaForCausalLM",
            "llama",
            {"hidden_size": "wide"},
            "config.json: expected settings that transformers reads",
        ),
        (
            *("Phi3ForCausalLM", "phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}),
            r"model\.max_length_tokens at most 64, .*found 128",
        ),
    ],
)
def test_an_architecture_that_cannot_be_exported_is_refused_by_name(name, kind, changes, words):
    with pytest.raises(ValueError, match=words):
        read_decoder({"architectures": [name], "model_type": kind, **changes}, MAX_TOKENS)


def test_what_else_cannot_be_exported_is_refused_by_name(tmp_path, random_model):
    decoder = decoder_of(random_model)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.block_sparse_moe\.gate\.weight"):
        gguf.tensor_name("model.layers.0.block_sparse_moe.gate.weight", decoder)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True, "lora_alpha": 8}))
    with pytest.raises(ValueError, match="use_dora"):
        gguf.write_adapter(tmp_path, decoder, tmp_path / "adapter.gguf")


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
