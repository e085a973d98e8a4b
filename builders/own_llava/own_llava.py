"""LLaVA-style conversations, descriptions and reasoning, from annotations of your own."""

from mminstruct.builder import InstructBuilder


class OwnLlava(InstructBuilder):
    """What ``source`` names (a description, a file, a folder) x prompt config llava."""

    SOURCE = ""
    PROMPT_CONFIG = "llava"
