"""LLaVA-style conversations, descriptions and reasoning, from COCO 2017 captions and boxes."""

from mminstruct.builder import InstructBuilder


class Coco2017Llava(InstructBuilder):
    """COCO 2017 x prompt config llava."""

    SOURCE = "COCO2017"
    PROMPT_CONFIG = "llava"
