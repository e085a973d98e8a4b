"""The types of coco2014_llava for models with a window of 2,048 tokens."""

from mminstruct.builder import InstructBuilder


class Coco2014LlavaSmallcontext(InstructBuilder):
    """COCO 2014 x prompt config llava_smallcontext."""

    SOURCE = "COCO2014"
    PROMPT_CONFIG = "llava_smallcontext"
