"""Where servers that speak OpenAI's API usually are.

**Source:** each one's own documentation, read in 2026.
"""

import shlex

SERVERS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "xai": "https://api.x.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "together": "https://api.together.xyz/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "azure": "https://RESOURCE.openai.azure.com/openai/v1",
    "vllm": "http://localhost:8000/v1",
    "sglang": "http://localhost:30000/v1",
    "ollama": "http://localhost:11434/v1",
    "lmstudio": "http://localhost:1234/v1",
    "llamaserver": "http://localhost:8080/v1",
}
"""Name, as it would be typed for a model source, without signs -> base URL."""


def usual_flags(name: str, model: str | None) -> str | None:
    """The flags for a model at a server of that name, or None if there is none here."""
    url = SERVERS.get(name.replace("_", ""))
    named = shlex.quote(model or "NAME")
    return url and f"--model_source openai --openai_base_url {url} --model {named}"
