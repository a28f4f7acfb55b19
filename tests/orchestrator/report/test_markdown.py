"""Nothing that a model or a person wrote ends the place where it stands in a Markdown file."""

import pytest

from orchestrator.report.markdown import as_block, as_code, as_fence, make_environment


def render(template: str, **values) -> str:
    return make_environment().from_string(template).render(**values)


def test_cells_and_lines_hold_no_html_no_link_and_no_end_of_a_cell():
    assert render("| {{ a }} | {{ b }} |", a="x|<script>", b=3) == "| x\\|&lt;script> | 3 |"
    assert render("# {{ name }}", name="[a](javascript:b)") == "# [a]\\(javascript:b)"
    # Escaped once, however it comes.
    assert render("{{ a }}", a="x\\|y") == "x\\|y"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_no_line_break_ends_a_cell_a_block_or_a_quote(end):
    assert render("| {{ a }} |", a=f"x{end}y") == "| x y |"
    assert as_block(f"x{end}y") == "x\n    y"
    assert as_code(f"x{end}y") == "`x y`"


def test_fences_and_quotes_are_longer_than_what_they_hold():
    assert as_fence("a", "yaml") == "```yaml\na\n```"
    assert as_fence("a: |\n  ````\n  b") == "`````\na: |\n  ````\n  b\n`````"
    assert as_code("a`b``") == "``` a`b`` ```"
    assert (
        render("{{ a | fence }} {{ b | code }} {{ c | block }}", a="<1>", b="<2>", c="<3>") == "```\n<1>\n``` `<2>` <3>"
    )
