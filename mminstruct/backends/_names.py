"""Whether two names are of models of different families.

This finds a contradiction, which ends a run; terms are looked up by exact ids alone.
"""

from __future__ import annotations

import re
from functools import lru_cache

# A family's own names first; fine-tuned models are called by others, and by these besides.
_FAMILIES = """
    gpt chatgpt | claude | gemini | gemma | llama codellama | qwen qwq qvq | deepseek | phi
    falcon
    mistral mixtral ministral magistral codestral devstral pixtral | smollm | granite | olmo
    glm chatglm | kimi | grok | nemotron | internlm | minicpm | ernie | hunyuan | jamba | exaone
"""
_FAMILY_OF = {
    name: names.split()[0]
    for names in _FAMILIES.replace("\n", " | ").split("|")
    if names.strip()
    for name in names.split()
}


@lru_cache
def families(name: str) -> frozenset[str]:
    """The families that a name has the words of; none for a name that a server made up."""
    words = re.findall(r"[a-z]+", name.lower())
    return frozenset(_FAMILY_OF[word] for word in words if word in _FAMILY_OF)


def contradict(one: str, other: str) -> bool:
    """Whether both name families, and none in common."""
    first, second = families(one), families(other)
    return bool(first and second and not first & second)
