"""A tiny random model and real learner ranks on it."""

import pytest

from tests.actors.learner_setup import settings_of


@pytest.fixture(scope="module")
def random_model_dir(tmp_path_factory):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    directory = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def make_rank(random_model_dir):
    """Makes one connected rank at a time; the process group is this process's."""
    from actors.learner import LearnerRank
    from actors.rendezvous import choose_master

    made = []

    def make(**settings):
        while made:
            made.pop().close()
        rank = LearnerRank(rank=0, num_ranks=1, **settings_of(random_model_dir, **settings))
        rank.connect(*choose_master([rank.find_place()]))
        made.append(rank)
        return rank

    yield make
    while made:
        made.pop().close()
