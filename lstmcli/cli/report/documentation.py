"""The pages of the documentation, which lie in lstmcli/docs: what there is, and how a terminal shows one."""

from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[2] / "docs"
LINE = 100  # columns; longer lines of prose are hard to read


def topics() -> dict[str, str]:
    """Returns what each page answers, by its topic: a page begins with a title, an empty line, and that."""
    return {path.stem: path.read_text().splitlines()[2] for path in sorted(PAGES.glob("*.md"))}


def read_page(topic: str) -> str:
    """Returns a page as Markdown."""
    return (PAGES / f"{topic}.md").read_text()


def rendered(page: str, columns: int) -> Any:
    """Draws a page with rich, for a terminal of so many columns, in colours that suit a light and a dark one."""
    from rich.constrain import Constrain
    from rich.markdown import Markdown
    from rich.syntax import ANSISyntaxTheme

    plain: Any = ANSISyntaxTheme({})
    return Constrain(Markdown(page, code_theme=plain), min(columns, LINE))
