"""LLaVA-style instructions from COCO 2017 together with LVIS and Localized Narratives."""

from mminstruct.builder import InstructBuilder


class Coco2017LvisLnLlava(InstructBuilder):
    """COCO 2017 with LVIS and Localized Narratives x prompt config llava_joined."""

    SOURCE = "COCO2017+LVIS+LN"
    PROMPT_CONFIG = "llava_joined"
