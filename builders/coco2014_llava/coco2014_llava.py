"""LLaVA-style conversations, descriptions and reasoning, from COCO 2014 captions and boxes."""

from mminstruct.builder import InstructBuilder


class Coco2014Llava(InstructBuilder):
    """COCO 2014 x prompt config llava."""

    SOURCE = "COCO2014"
    PROMPT_CONFIG = "llava"
