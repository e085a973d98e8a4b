"""Contexts -> messages, as a prompt config says."""

from mminstruct.prompts.config import (
    Example,
    InstructionType,
    PromptConfig,
    Rendering,
    format_turns,
)
from mminstruct.prompts.files import find, load, names, parse, type_names
from mminstruct.prompts.messages import Prompt, question_for, reductions, render, render_context

__all__ = [
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
    "question_for",
    "reductions",
    "render",
    "render_context",
    "type_names",
]
