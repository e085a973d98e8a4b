"""LLaVA-style conversations, descriptions and reasoning, from the bundled sample."""

from mminstruct.builder import InstructBuilder


class SampleLlava(InstructBuilder):
    """Bundled sample x prompt config llava."""

    SOURCE = "SAMPLE"
    PROMPT_CONFIG = "llava"
