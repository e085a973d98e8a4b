"""Conversations, descriptions and reasoning about human motions, from HumanML3D's descriptions."""

from mminstruct.builder import InstructBuilder


class HumanML3DMotion(InstructBuilder):
    """HumanML3D x prompt config motion."""

    SOURCE = "HUMANML3D"
    PROMPT_CONFIG = "motion"
