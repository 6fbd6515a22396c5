"""`methods`: what there is to train, from the folders themselves."""

import ast
import json
from pathlib import Path

from launch.config.docs import first_sentence
from launch.config.errors import ConfigError
from launch.config.overlay import PROJECT, shown
from launch.config.source import NotFound, definition
from launch.registry import MODELS


def main(words: list[str]) -> int:
    """Print each method with its idea, configurations and claim.

    Raises:
        ConfigError: the command was given words.
    """
    if words and words != ["--help"]:
        raise ConfigError(f"{words[0]}: `methods` takes no words")
    for name, path in MODELS.items():
        print(name)
        print(f"  {idea(name, path)}")
        configs = sorted((PROJECT / "configs" / name).glob("*.yaml"))
        print(f"  configs: {', '.join(shown(file) for file in configs) or 'none'}")
        print(f"  claim: {claim(name)}\n")
    return 0


def idea(name: str, path: str) -> str:
    """Return the first paragraph of the method's README, or else of its class."""
    readme = PROJECT / "lightning_modules" / name / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    paragraphs = [p for p in text.split("\n\n") if p.strip() and not p.lstrip().startswith(("#", "|", "```"))]
    try:
        return first_sentence(paragraphs[0] if paragraphs else ast.get_docstring(definition(path)[0]) or "")
    except NotFound:
        return "(its source is missing)"


def claim(name: str) -> str:
    """Return the verdict of the method's committed claim."""
    file = Path(PROJECT, "benchmarks", name, "claim", "results.json")
    if not file.exists():
        has_plan = (PROJECT / "configs" / "claims" / f"{name}.yaml").exists()
        return f"not run yet; python -m launch claim {name} --size quick" if has_plan else "none"
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("verdict", "no verdict"))
    except ValueError:
        return f"{shown(file)} is damaged"
