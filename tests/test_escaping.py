"""Text from outside in each language: what each language's own reader makes of it again."""

import ast
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from helpers import HOSTILE
from matplotlib.figure import Figure

from hpt.escaping import (
    code,
    csv_cell,
    file_name,
    html,
    markdown,
    mathtext,
    one_line,
    python_literal,
    shell,
    terminal,
)


ORDINARY = [
    *("forget-me-not", "C++", "rock_beauty", "Crane (bird)", "Geoffroy's cat", "R&D", "a, b", "a: b", "a; b", "100 %"),
    *("ß", "猫", "🐱", "👨\u200d👩\u200d👧", "café", "שלום", "openai/clip-vit-base-patch32", "v1.5", "1.5 litres"),
    *("PGD-50 x 5", "square (queries=100)", "l_inf eps 4/255", "90.0 [85.0, 95.0], n = 100"),
]


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_ordinary_stays_as_it_is(text):
    assert markdown(text) == one_line(text) == terminal(text) == mathtext(text) == csv_cell(text) == text
    assert code(text) == f"`{text}`" and json.loads(python_literal(text)) == text and shell(text) == shlex.quote(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\x9b", r"a\u009b"),
        ("\u202egnp", r"\u202egnp"),
        ("a\u200bb", r"a\u200bb"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert one_line(text) == shown
    assert terminal(f"{text}\nb") == terminal(text) + "\nb"


# A pattern for each place that names have in pages: the beginning of a line, a list, a table, within what hpt marks
PLACES = ["{}", "- {}: x", "# {}", "**{}** (x)", "x {} x", "[{}](https://huggingface.co)", "> {}"]
TABLE = "| a | b |\n| --- | --- |\n| {} | x |"


def rendered(text: str) -> tuple[list[str], str]:
    """The elements that a text of Markdown has, and the words in them."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens, kinds, words = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text), [], []
    for token in tokens:
        for part in token.children or [token]:
            kinds += [part.type] if part.type not in ("text", "text_special", "inline") else []
            words.append(part.content)
    return kinds, " ".join("".join(words).split())


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name]])
@pytest.mark.parametrize("place", [*PLACES, TABLE], ids=lambda place: place[:8])
def test_markdown_shows_the_name_and_nothing_else(place, name):
    text = HOSTILE[name]
    kinds, words = rendered(place.format("plainname"))
    shown = " ".join(words.replace("plainname", one_line(text)).split())
    assert rendered(place.format(markdown(text))) == (kinds, shown)


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name]])
def test_code_shows_the_name_in_a_table_too(name):
    text = code(HOSTILE[name])
    for place in (TABLE, "x {} x"):
        kinds, words = rendered(place.format(text))
        _, ordinary = rendered(place.format(code("plainname")))
        assert len(kinds) == len(rendered(place.format(text.startswith("<") * "<code>x</code>" or "`x`"))[0])
        assert ordinary.replace("plainname", one_line(HOSTILE[name])).split() == re.sub("</?code>", "", words).split()


@pytest.mark.parametrize("name", HOSTILE)
def test_html_is_text(name):
    class Reader(HTMLParser):
        text = ""

        def handle_data(self, data):
            self.text += data

        def handle_starttag(self, tag, attributes):
            raise AssertionError(tag)

        handle_endtag = handle_comment = handle_decl = handle_pi = lambda self, data: pytest.fail(data)

    reader = Reader()
    reader.feed(html(HOSTILE[name]))
    reader.close()
    assert reader.text == one_line(HOSTILE[name])


@pytest.mark.parametrize("name", HOSTILE)
def test_code_gives_the_text_again(name):
    text = HOSTILE[name]
    literal = python_literal([text, "x"])
    assert ast.literal_eval(literal) == [text, "x"] and literal == one_line(literal)
    assert shell(text) == one_line(shell(text))
    if shell(text) == shlex.quote(text):
        assert shlex.split(shell(text)) == [text]
    else:  # $'...' of bash, of which these escapes are Python's too
        assert ast.literal_eval(shell(text).removeprefix("$")) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_matplotlib_draws_the_name(name):
    figure = Figure()
    shown = figure.text(0, 0, mathtext(HOSTILE[name]))
    _, is_math = shown._preprocess_math(shown.get_text())
    assert not is_math and not shown.get_text().startswith("_")
    figure.draw_without_rendering()


NAMES = [*HOSTILE.values(), *ORDINARY, "a_b", "a--b", "a---b", "a/-b", "a-/b", "x" * 299, "猫" * 301]
PAIRS = [("digits", "my_model"), ("digits_my", "model"), ("digits", "my_model_"), ("digits__my", "model")]


def test_no_two_names_have_the_same_file():
    of_one, of_two = {file_name(name) for name in NAMES}, {file_name(*pair) for pair in PAIRS}
    assert len(of_one) == len({*NAMES}) and len(of_two) == len(PAIRS)
    for written in of_one | of_two:
        assert len(f"images_{written}.png".encode()) < 255 and not set('/\\:*?"<>|\0\n') & set(written)


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["tiny_imagenet"], "tiny_imagenet"),
        (["digits", "vanilla"], "digits_vanilla"),
        (["tiny_imagenet", "robust"], "tiny_imagenet_robust"),
        (["digits", "openai/clip-vit-base-patch32"], "digits_openai--clip-vit-base-patch32"),
        (["digits", "my_model"], "digits__my_model"),
        (["x/../../../y"], "x--..--..--..--y"),
    ],
)
def test_files_are_called_as_names_are(names, written):
    assert file_name(*names) == written


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_a_spreadsheet_computes_nothing(text):
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(-1.5) == -1.5 and csv_cell(None) is None
