"""What a card says of a source or a prompt config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mminstruct import loading, plugins, prompts, resources
from mminstruct.errors import ConfigError
from mminstruct.prompts.config import PromptConfig
from mminstruct.releases.markdown import to_markdown
from mminstruct.releases.origin import Origin
from mminstruct.sources import SourceInfo


@dataclass(frozen=True, slots=True)
class Page:
    """Prose about a builder, in Markdown: what it is, what it is good for, its known limits."""

    about: str
    uses: str
    limits: str


_SECTIONS = {"What it is": "about", "Good for": "uses", "Known limits": "limits"}


def parse_page(text: str, where: str) -> Page:
    """A builder's page from its text.

    Raises:
        ConfigError: it doesn't have exactly the sections of a page, each with some text.
    """
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    found = {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    if list(found) != list(_SECTIONS) or not all(found.values()) or not text.startswith("## "):
        raise ConfigError(
            f"{where}: got the sections {', '.join(found) or 'none'} against "
            f"{', '.join(_SECTIONS)} expected, each with text; write them"
        )
    return Page(**{_SECTIONS[name]: body for name, body in found.items()})


def general_page(source: SourceInfo, config: PromptConfig) -> Page:
    """A page for a pair of source and prompt config that has no builder of its own."""
    parts = source.parts or (source,)
    media = f"{source.modality}s"
    return Page(
        about=" ".join(
            [*(to_markdown(part.description) for part in parts), to_markdown(config.description)]
        ),
        uses=f"Teaching a model to talk about {media} of this kind, and experiments with what a "
        f"writer makes of the annotations of {to_markdown(source.title)}.",
        limits=f"What nobody annotated is missing or guessed, and mistakes of the annotations are "
        f"passed on. The {media} themselves are not included and have licences of their own.",
    )


def prose_of(origin: Origin, texts: Sequence[str]) -> str:
    """The pages' texts, each under its source's name if there are several."""
    distinct = dict(zip(texts, origin.sources, strict=True))
    if len(distinct) == 1:
        return texts[0]
    return "\n\n".join(f"*{to_markdown(s.title)}.* {text}" for text, s in distinct.items())


def find_page(source: SourceInfo, config: PromptConfig) -> Page:
    """The prose about the builder of this pair; general words if there is none, or no builder."""
    is_known = prompts.names().get(config.name) == plugins.OURS
    ours = is_known and prompts.load(config.name).whole.hash == config.whole.hash
    script = loading.find(source.name, config.name) if ours else None
    path = resources.folder("cards") / f"{script.parent.name}.md" if script else None
    # Requests are paid for by now: a page that nobody has written yet is no reason to lose them.
    if path is None or not path.is_file():
        return general_page(source, config)
    return parse_page(path.read_text(encoding="utf-8"), f"cards/{path.name}")
