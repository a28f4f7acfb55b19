import pytest
import torch

from actors.cpu_lora import apply_grouped, group_rows


def test_one_adapter_for_all_needs_no_index():
    assert group_rows(torch.tensor([1, 1, 1])) == [(1, None)]


def test_rows_without_adapter_belong_to_no_group():
    groups = group_rows(torch.tensor([0, -1, 1, 0]))
    assert [(slot, rows.tolist()) for slot, rows in groups] == [(0, [0, 3]), (1, [2])]
    assert group_rows(torch.tensor([-1, -1])) == []


@pytest.mark.parametrize("slots", [[0, 0, 0, 0], [1, -1, 0, 1], [-1, -1, -1, -1], [-1, 1, 1, -1]])
def test_grouped_products_equal_a_loop_over_tokens(slots):
    torch.manual_seed(0)
    rank, width_in, widths = 3, 5, (4, 2)
    lora_a = tuple(torch.randn(2, 1, rank, width_in) for _ in widths)
    lora_b = tuple(torch.randn(2, 1, width, rank) for width in widths)
    inputs, output = torch.randn(4, width_in), torch.randn(4, sum(widths))
    expected = output.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            deltas = [0.5 * b[slot, 0] @ (a[slot, 0] @ inputs[token]) for a, b in zip(lora_a, lora_b, strict=True)]
            expected[token] += torch.cat(deltas)
    apply_grouped(output, inputs, group_rows(torch.tensor(slots)), lora_a, lora_b, widths, scale=0.5)
    torch.testing.assert_close(output, expected)
