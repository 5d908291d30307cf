"""Text from outside, as each language that hpt writes has to have it: a function for each, used wherever names enter.

Class names, benchmarks, models, prompts and what foreign cards say may hold anything. What is harmless stays as it is:
`forget-me-not`, `C++`, `rock_beauty`, `Crane (bird)`, `猫`. What isn't is shown, and does nothing.

    markdown, code         tables, cards and pages; inline code in them
    html, address          Gradio's messages and HTML comments; a part of a link's address
    mathtext               matplotlib's titles and labels
    python_literal, shell  code and commands that others copy from a card
    file_name              a part of a file's name
    csv_cell               a cell that a spreadsheet opens
    terminal, one_line     what is printed; a name in a line
"""

import html as html_entities
import json
import re
import shlex
from unicodedata import category
from urllib.parse import quote

from hpt.json_files import digest


# Unicode's categories of controls, formats such as turns of direction, halves of characters and line separators
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # formats that Persian and emoji are written with
SHORT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
LONGEST_PART = 80  # bytes; a file system takes 255 for a whole name
LONGEST_LINE = 200  # characters in a picture


def one_line(text: str) -> str:
    """A name in a line: what can't be seen in it, or would end the line, is written as Python writes it."""
    return "".join(_write_out(char) if category(char) in HIDDEN and char not in JOINERS else char for char in text)


def _write_out(char: str) -> str:
    number = ord(char)
    written = f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return SHORT_ESCAPES.get(char, written)


def terminal(text: str) -> str:
    """Lines that are printed: no other control character reaches the terminal."""
    return "\n".join(map(one_line, text.split("\n")))


def markdown(text: str) -> str:
    r"""A name or a phrase as text of Markdown, with GitHub's tables and `$math$`, wherever it stands in a line.

    `<b>` becomes `&lt;b&gt;`, `*x*` becomes `\*x\*`; `rock_beauty` and `90.0 [85.0, 95.0]` stay.
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", one_line(text)).replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\`*~$|]", r"\\\g<0>", text)
    text = re.sub(r"(?<!\w)_+|_+(?!\w)", lambda run: r"\_" * len(run[0]), text)  # within a word it means nothing
    text = re.sub(r"(\[\d[\d., ]*\])(?![\[(:])|([\[\]])", lambda part: part[1] or rf"\{part[2]}", text)  # links
    text = re.sub(r"^([-+#=])|^(\d+)([.)])(?=\s|$)|(?<=\s)(#+)$", r"\2\\\1\3\4", text)  # headings and lists
    return re.sub(r"^ +| +$", lambda run: "&#32;" * len(run[0]), text)


def code(text: str) -> str:
    """Inline code of Markdown, also in a table."""
    if "|" in text:  # which ends a table's cell in code too
        return f"<code>{markdown(text)}</code>"
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " * (text.strip("` ") != text or not text)
    return f"{fence}{padding}{text}{padding}{fence}"


def html(text: str) -> str:
    """Text, or an attribute's value, of HTML."""
    return html_entities.escape(one_line(text))


def address(text: str) -> str:
    """A path within the address that a link has."""
    return quote(text, errors="replace")


def mathtext(text: str) -> str:
    """Text of a picture by matplotlib, which reads `$x$` as mathematics, and leaves `_x` and "" out of legends."""
    lines = [line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…" for line in text.split("\n")]
    shown = terminal("\n".join(lines)).replace("$", r"\$")
    return f" {shown}" if shown[:1] in ("", "_") else shown


def python_literal(value: str | int | list[str]) -> str:
    """A text, a number or a list of texts as Python code, which gives the same again."""
    return one_line(json.dumps(value, ensure_ascii=False))


def shell(text: str) -> str:
    """A word of a command for bash, on one line."""
    if one_line(text) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{one_line(escaped)}'"


def file_name(*names: str) -> str:
    """A part of a file's name that stands for these names, and for no others.

    Letters, digits, `_`, `.` and `-` stay; `/` becomes `--`, as in the Hub's cache. Where that doesn't give the names
    back, a digest of them follows.
    """
    parts = [re.sub(r"[^\w.-]", "_", name.replace("/", "--")) for name in names]
    short = [part.encode()[:LONGEST_PART].decode(errors="ignore") for part in parts]
    between = "__" if any("_" in part for part in parts[1:]) else "_"
    unclear = any(part.strip("_") != part or "__" in part for part in parts)
    if unclear or [part.replace("--", "/") for part in short] != list(names):
        return f"{between.join(short)}~{digest(names)[:8]}"
    return between.join(short)


def csv_cell(value):
    """A cell of a CSV file; a spreadsheet would compute a text that begins like a formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
