"""Contexts -> messages, as a prompt config says."""

from mminstruct.prompts.config import (
    Example,
    InstructionType,
    PromptConfig,
    Rendering,
    format_turns,
)
from mminstruct.prompts.files import find, load, names, parse, type_names
from mminstruct.prompts.messages import Draw, Prompt, reductions, render, render_context

__all__ = [
    "Draw",
    "Example",
    "InstructionType",
    "Prompt",
    "PromptConfig",
    "Rendering",
    "find",
    "format_turns",
    "load",
    "names",
    "parse",
    "reductions",
    "render",
    "render_context",
    "type_names",
]
