"""Attention of packed rows against each row's own, written out."""

import numpy as np
import pytest
import torch

from actors.packed_attention import PackedPass, attend, like_rows, segments_of

HEADS, KEY_HEADS, DIM = 4, 2, 8


class Layer:
    layer_idx = 3


def states(num_heads, num_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_heads, num_tokens, DIM, generator=generator, requires_grad=True)


def plain(q, k, v, window):
    """Of one row: q `[heads, n, D]` behind the first keys of k and v `[heads of keys, m + n, D]`."""
    k, v = k.repeat_interleave(HEADS // KEY_HEADS, 0), v.repeat_interleave(HEADS // KEY_HEADS, 0)
    queries, keys = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None], torch.arange(k.shape[1])[None]
    seen = keys <= queries
    if window:
        seen &= keys > queries - window
    scores = (q @ k.transpose(1, 2)) / DIM**0.5
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("has_prompts", [False, True])
def test_each_row_sees_its_prompt_and_its_own_tokens(window, has_prompts):
    lengths = [5, 1, 9, 2, 8]
    prompts = [(0, 4), (4, 6), (0, 4), (0, 0), (4, 6)] if has_prompts else []
    num_prompt = 10 if has_prompts else 0
    segments = segments_of(lengths, prompts, num_prompt)
    q, k, v = states(HEADS, 25, 0), states(KEY_HEADS, 25, 1), states(KEY_HEADS, 25, 2)
    prompt_k, prompt_v = states(KEY_HEADS, 10, 3).detach()[0], states(KEY_HEADS, 10, 4).detach()[0]
    kept = {}
    prompt_kv = torch.cat([prompt_k, prompt_v]).transpose(0, 1)
    packed = PackedPass(segments=segments, prompts={3: prompt_kv}, kept=kept)
    out, _ = attend(Layer(), q, k, v, None, sliding_window=window, packed=packed)
    assert out.shape == (1, 25, HEADS, DIM)
    assert torch.equal(kept[3], torch.cat([k, v], dim=1)[0].transpose(0, 1))
    expected, begin = [], 0
    for row, length in enumerate(lengths):
        at, size = prompts[row] if has_prompts else (0, 0)
        own = slice(begin, begin + length)
        keys, values = (
            torch.cat([prompt[:, at : at + size], part[0, :, own]], 1)
            for prompt, part in ((prompt_k, k), (prompt_v, v))
        )
        expected.append(plain(q[0, :, own], keys, values, window).transpose(0, 1))
        begin += length
    expected = torch.cat(expected)
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    ours = torch.autograd.grad((out[0] * weights).sum(), [q, k, v], retain_graph=True)
    for found, wanted in zip(ours, torch.autograd.grad((expected * weights).sum(), [q, k, v]), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_decoder_that_does_not_hand_the_pass_on_is_told_by_name():
    with pytest.raises(RuntimeError, match="Layer: expected the packed pass"):
        attend(Layer(), None, None, None, None)


def test_rows_of_like_lengths_share_a_bucket():
    assert like_rows(np.array([4, 8, 7]), np.array([9, 9, 9])) == [[1, 2], [0]]
    assert like_rows(np.array([8, 8]), np.array([8, 100])) == [[1], [0]]
    assert like_rows(np.array([3]), np.array([3])) == [[0]]
