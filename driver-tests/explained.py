"""What differs and why (`differences.txt`), and the page docs/drivers.md, which has a section for each command here."""

import fnmatch
import pathlib

from servers import REPOSITORY

HERE = pathlib.Path(__file__).resolve().parent
PAGE = REPOSITORY / "docs" / "drivers.md"


def explanations():
    """Suite or program, pattern of names of tests or of lines, reason."""
    lines = (HERE / "differences.txt").read_text().splitlines()
    parts = [line.split(" ¦ ") for line in lines if line.strip() and not line.startswith("#")]
    return [(suite.strip(), pattern.strip(), why.strip()) for suite, pattern, why in parts]


def reason(suite, name, known):
    matching = (why for of, pattern, why in known if of == suite and fnmatch.fnmatchcase(name, pattern))
    return next(matching, None)


def write_section(name, lines):
    """Replaces what lies between the section's two marks on the page."""
    begin, end = f"<!-- {name}: written by driver-tests/{name}.py -->", f"<!-- end of {name} -->"
    text = PAGE.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text("\n".join([before + begin, "", *lines, "", end + after]))
