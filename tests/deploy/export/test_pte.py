"""ExecuTorch, where it is installed: base and adapter over one KV cache say what torch says."""

import numpy as np
import pytest
import torch

from actors import adapters
from deploy.export.parity import Reference
from tests.deploy.exports import make_adapter, make_model

runtime = pytest.importorskip("executorch.runtime", reason="needs executorch, see deploy/TARGETS.md")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "is_tied"), [("qwen2", True), ("llama", False)])
def test_reasoning_goes_on_from_the_keys_and_values_of_the_base(tmp_path, tiny_model_dir, kind, is_tied):
    from deploy.export.pte import METHODS, write_pte

    base = make_model(tmp_path / "model", kind, tiny_model_dir, tie_word_embeddings=is_tied)
    adapters.write_directory(make_adapter(base), tmp_path / "adapter")
    write_pte(base, tmp_path / "adapter", tmp_path / "model.pte", 64)
    program = runtime.Runtime.get().load_program(tmp_path / "model.pte")
    methods = {name: program.load_method(name) for name in METHODS}
    reference = Reference(base, tmp_path / "adapter")

    def logits(mode, token_ids, first):
        (out,) = methods[mode].execute([torch.tensor([token_ids]), torch.arange(first, first + len(token_ids))])
        return out[0, -1].clone()

    for seed in range(2):
        prompt = np.random.default_rng(seed).integers(6, 60, 12).tolist()
        found = logits("base", prompt, 0).log_softmax(-1).numpy()
        assert np.abs(found - reference.logprobs(reference.states(prompt, None))[-1]).max() < 1e-3
        last = logits("reasoning", prompt[-1:], 11)
        expected = reference.logprobs(reference.states(prompt, 11))[-1]
        assert np.abs(last.log_softmax(-1).numpy() - expected).max() < 1e-3
        assert np.abs(found - expected).max() > 0.1
        completion = []
        for position in range(12, 32):
            completion.append(int(last.argmax()))
            last = logits("reasoning", completion[-1:], position)
        assert completion == reference.complete(prompt, 11, 20, frozenset())
