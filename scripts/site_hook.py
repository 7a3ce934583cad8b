"""A hook of mkdocs: CONTRIBUTING.md and CHANGELOG.md, which stand beside docs/, become pages of the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # address on the site -> file


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, with their links as seen from docs/."""
    for address, name in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ in the repository lead to those pages on the site."""
    for address, name in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({address}")
    return markdown
