"""LLaVA-style conversations, descriptions and reasoning, from all annotations of Open Images V7."""

from mminstruct.builder import InstructBuilder


class OpenImagesV7Llava(InstructBuilder):
    """Open Images V7 x prompt config openimagesv7."""

    SOURCE = "OPENIMAGESV7"
    PROMPT_CONFIG = "openimagesv7"
