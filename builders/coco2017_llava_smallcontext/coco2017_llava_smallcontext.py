"""The types of coco2017_llava for models with a window of 2,048 tokens."""

from mminstruct.builder import InstructBuilder


class Coco2017LlavaSmallcontext(InstructBuilder):
    """COCO 2017 x prompt config llava_smallcontext."""

    SOURCE = "COCO2017"
    PROMPT_CONFIG = "llava_smallcontext"
